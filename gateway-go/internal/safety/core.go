// Package safety holds the pure core of the safety state machine and the
// monitor that keeps one machine per subject. The table is
// safety/machine.yaml, the same that the Python core loads.
package safety

import (
	"fmt"
	"maps"
	"slices"
)

// TableError says why a table does not load: a hole, a nondeterminism, an
// unknown name, an unreachable state or a step without its actions.
type TableError struct{ Reason string }

func (e *TableError) Error() string { return "safety table: " + e.Reason }

// Guard holds when the count of a counter is Kind (above, at_least, below) Limit.
// after_backoff holds when the last time counted lies at least Limit ms back,
// doubled for each time counted before it, at most LimitMax ms; or nothing is counted.
type Guard struct {
	Counter, Kind   string
	Limit, LimitMax int64
}

func (g *Guard) holds(times []int64, nowMs int64) bool {
	n := int64(len(times))
	switch g.Kind {
	case "above":
		return n > g.Limit
	case "at_least":
		return n >= g.Limit
	case "below":
		return n < g.Limit
	}
	return n == 0 || nowMs-times[n-1] >= min(g.Limit<<min(n-1, 32), g.LimitMax)
}

// Row is one way out of a state for an event.
type Row struct {
	To      string
	Count   string
	Guard   *Guard
	Clear   []string
	Actions []string
}

type key struct{ state, event string }

// Table is a checked specification. It is never changed after loading.
type Table struct {
	Initial    string
	Latched    string
	Digest     string
	Ranks      map[string]int
	Events     []string
	Parameters map[string]int64
	rows       map[key][]Row
	windowsMs  map[string]int64
}

// MachineState is a state with its counters: the times (ms) of what was
// counted. Values are never changed in place.
type MachineState struct {
	Name     string
	Counters map[string][]int64
}

// Source is the parsed form of safety/machine.yaml.
type Source struct {
	Initial string `json:"initial"`
	Digest  string `json:"digest"`
	States  map[string]struct {
		Rank    int      `json:"rank"`
		Latched bool     `json:"latched"`
		OnEntry []string `json:"on_entry"`
	} `json:"states"`
	Events     map[string]any `json:"events"`
	Actions    map[string]any `json:"actions"`
	Parameters map[string]struct {
		Default int64 `json:"default"`
	} `json:"parameters"`
	Counters map[string]struct {
		Window string `json:"window"`
	} `json:"counters"`
	Transitions map[string]map[string][]sourceRow `json:"transitions"`
}

type sourceRow struct {
	To      string         `json:"to"`
	Count   string         `json:"count"`
	Guard   map[string]any `json:"guard"`
	Clear   []string       `json:"clear"`
	Actions []string       `json:"actions"`
}

func (s *Source) parameters(override map[string]int64) (map[string]int64, error) {
	values := map[string]int64{}
	for name, p := range s.Parameters {
		values[name] = p.Default
	}
	for name, value := range override {
		if _, known := values[name]; !known || value < 0 {
			return nil, &TableError{fmt.Sprintf("unknown or negative parameter %s=%d", name, value)}
		}
		values[name] = value
	}
	return values, nil
}

// LoadTable checks a specification; override replaces defaults of parameters.
func LoadTable(s *Source, override map[string]int64) (*Table, error) {
	values, err := s.parameters(override)
	if err != nil {
		return nil, err
	}
	t := &Table{
		Initial: s.Initial, Digest: s.Digest, Ranks: map[string]int{}, Parameters: values, rows: map[key][]Row{}, windowsMs: map[string]int64{},
	}
	for name, state := range s.States {
		t.Ranks[name] = state.Rank
		if state.Latched {
			t.Latched = name
		}
	}
	t.Events = slices.Sorted(maps.Keys(s.Events))
	for name, c := range s.Counters {
		if c.Window != "" {
			t.windowsMs[name] = values[c.Window]
		}
	}
	if len(s.Transitions) != len(s.States) {
		return nil, &TableError{"unhandled or unknown states"}
	}
	for state := range s.States {
		if len(s.Transitions[state]) != len(t.Events) {
			return nil, &TableError{state + ": unhandled or unknown events"}
		}
		for _, event := range t.Events {
			rows, err := s.rows(state, event, values)
			if err != nil {
				return nil, err
			}
			t.rows[key{state, event}] = rows
		}
	}
	return t, t.connected()
}

func (s *Source) rows(state, event string, values map[string]int64) ([]Row, error) {
	where := state + "/" + event
	options := s.Transitions[state][event]
	if len(options) == 0 {
		return nil, &TableError{where + ": unhandled"}
	}
	rows := make([]Row, 0, len(options))
	for i, o := range options {
		row := Row{To: o.To, Count: o.Count, Clear: o.Clear, Actions: o.Actions}
		if o.Guard != nil {
			guard, err := newGuard(o.Guard, values, where)
			if err != nil {
				return nil, err
			}
			row.Guard = guard
		}
		if err := s.check(&row, state, event); err != nil {
			return nil, err
		}
		if (row.Guard == nil) != (i == len(options)-1) {
			return nil, &TableError{where + ": exactly the last row must have no guard"}
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func newGuard(raw map[string]any, values map[string]int64, where string) (*Guard, error) {
	counter, _ := raw["counter"].(string)
	g := &Guard{Counter: counter}
	for _, kind := range []string{"above", "at_least", "below", "after_backoff"} {
		if raw[kind] == nil {
			continue
		}
		names, isList := raw[kind].([]any)
		if !isList {
			names = []any{raw[kind]}
		}
		if g.Kind != "" || (len(names) != 1 && kind != "after_backoff") || len(names) > 2 {
			return nil, &TableError{where + ": a guard needs one of above, at_least, below, after_backoff"}
		}
		g.Kind = kind
		for i, name := range names {
			text, _ := name.(string)
			value, known := values[text]
			if !known {
				return nil, &TableError{fmt.Sprintf("%s: unknown parameter %q", where, text)}
			}
			if i == 0 {
				g.Limit = value
			} else {
				g.LimitMax = value
			}
		}
	}
	if g.Kind == "" {
		return nil, &TableError{where + ": a guard needs one of above, at_least, below, after_backoff"}
	}
	return g, nil
}

func (s *Source) check(row *Row, state, event string) error {
	where := state + "/" + event
	target, known := s.States[row.To]
	if !known {
		return &TableError{where + ": unknown state " + row.To}
	}
	used := slices.Clone(row.Clear)
	if row.Count != "" {
		used = append(used, row.Count)
	}
	if row.Guard != nil {
		used = append(used, row.Guard.Counter)
	}
	for _, name := range used {
		if _, known := s.Counters[name]; !known {
			return &TableError{where + ": unknown counter " + name}
		}
	}
	for _, name := range row.Actions {
		if _, known := s.Actions[name]; !known {
			return &TableError{where + ": unknown action " + name}
		}
	}
	if row.To == state {
		return nil
	}
	for _, name := range target.OnEntry {
		if !slices.Contains(row.Actions, name) {
			return &TableError{fmt.Sprintf("%s: %s is entered without %s", where, row.To, name)}
		}
	}
	if s.States[state].Latched && event != "reset" {
		return &TableError{where + ": a latched state is left by something else than a reset"}
	}
	return nil
}

func (t *Table) connected() error {
	reached, edge := map[string]bool{t.Initial: true}, []string{t.Initial}
	for len(edge) > 0 {
		state := edge[len(edge)-1]
		edge = edge[:len(edge)-1]
		for _, event := range t.Events {
			for _, row := range t.rows[key{state, event}] {
				if !reached[row.To] {
					reached[row.To] = true
					edge = append(edge, row.To)
				}
			}
		}
	}
	if len(reached) != len(t.Ranks) {
		return &TableError{"unreachable states"}
	}
	return nil
}

// Start is the state of a machine that has seen nothing.
func (t *Table) Start() MachineState { return MachineState{Name: t.Initial} }

// Stopped is the state of a machine whose stop was kept over a restart.
func (t *Table) Stopped() MachineState { return MachineState{Name: t.Latched} }

// Step gives the next state and the requested actions. nowMs is monotonic; what
// lies outside its window is not counted. An event that is not in the table is a
// caller's mistake and panics.
func (t *Table) Step(state MachineState, event string, nowMs int64) (MachineState, []string) {
	rows, known := t.rows[key{state.Name, event}]
	if !known {
		panic("safety: no row for " + state.Name + "/" + event)
	}
	counters := map[string][]int64{}
	for name, times := range state.Counters {
		if kept := t.kept(name, times, nowMs); len(kept) > 0 {
			counters[name] = kept
		}
	}
	for _, row := range rows {
		if row.Count != "" {
			counters[row.Count] = append(slices.Clip(counters[row.Count]), nowMs)
		}
		// SR-032
		if row.Guard != nil && !row.Guard.holds(counters[row.Guard.Counter], nowMs) {
			continue
		}
		for _, name := range row.Clear {
			delete(counters, name)
		}
		return MachineState{row.To, counters}, row.Actions
	}
	panic("safety: a loaded table always has a row without a guard")
}

func (t *Table) kept(name string, times []int64, nowMs int64) []int64 {
	window, windowed := t.windowsMs[name]
	if !windowed {
		return times
	}
	kept := make([]int64, 0, len(times)+1)
	for _, at := range times {
		if nowMs-at < window {
			kept = append(kept, at)
		}
	}
	return kept
}
