package safety

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

const lineBytesMax = 64 << 10

type simulatedEvent struct {
	TimeMs  *int64 `json:"time_ms"`
	Subject string `json:"subject"`
	Event   string `json:"event"`
}

type simulatedStep struct {
	TimeMs  int64    `json:"time_ms"`
	Subject string   `json:"subject"`
	Event   string   `json:"event"`
	From    string   `json:"from"`
	To      string   `json:"to"`
	Actions []string `json:"actions"`
}

// Simulate drives the core: one event a line comes in as JSON
// (safety/events.schema.json), one step a line goes out. The Python core's
// `vigil safety simulate` gives the same bytes for the same lines.
func Simulate(t *Table, in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, lineBytesMax)
	write := bufio.NewWriter(out)
	defer write.Flush()
	encode := json.NewEncoder(write)
	encode.SetEscapeHTML(false)
	machines, last := map[string]MachineState{}, int64(0)
	number := 0
	for lines.Scan() {
		number++
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		e, err := parseEvent(t, line, last)
		if err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
		last = *e.TimeMs
		before, known := machines[e.Subject]
		if !known {
			before = t.Start()
		}
		after, actions := t.Step(before, e.Event, last)
		machines[e.Subject] = after
		if err := encode.Encode(simulatedStep{last, e.Subject, e.Event, before.Name, after.Name, append([]string{}, actions...)}); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("line %d: %w, the limit is %d bytes", number+1, err, lineBytesMax)
	}
	return nil
}

func parseEvent(t *Table, line []byte, last int64) (*simulatedEvent, error) {
	decode := json.NewDecoder(bytes.NewReader(line))
	decode.DisallowUnknownFields()
	e := &simulatedEvent{}
	if err := decode.Decode(e); err != nil || decode.More() {
		return nil, fmt.Errorf("not an event ({\"time_ms\": N, \"event\": NAME, \"subject\": TEXT}): %s", clipped(line))
	}
	switch {
	case e.TimeMs == nil:
		return nil, fmt.Errorf("time_ms is missing")
	case *e.TimeMs < last:
		return nil, fmt.Errorf("time_ms %d comes after %d: time does not go back", *e.TimeMs, last)
	case !slices.Contains(t.Events, e.Event):
		return nil, fmt.Errorf("unknown event %q; known are %s", e.Event, strings.Join(t.Events, ", "))
	}
	return e, nil
}

func clipped(line []byte) string {
	return string(line[:min(len(line), 80)])
}
