package safety

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const scenarios = "../../../safety/scenarios"

func table(t *testing.T, override map[string]int) *Table {
	t.Helper()
	source, err := ParseSource(machineJSON)
	if err != nil {
		t.Fatal(err)
	}
	out, err := LoadTable(source, override)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Each readable transcript is what the core does; the Python core runs the same files.
func TestScenarios(t *testing.T) {
	files, _ := filepath.Glob(filepath.Join(scenarios, "*.txt"))
	if len(files) < 4 {
		t.Fatalf("only %d scenarios", len(files))
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			override := map[string]int{}
			lines := strings.Split(strings.TrimSpace(string(data)), "\n")
			for _, line := range lines {
				if rest, ok := strings.CutPrefix(line, "# parameters: "); ok {
					for _, pair := range strings.Fields(rest) {
						k, v, _ := strings.Cut(pair, "=")
						override[k], _ = strconv.Atoi(v)
					}
				}
			}
			tb := table(t, override)
			state := tb.Start()
			for _, line := range lines {
				if strings.HasPrefix(line, "#") {
					continue
				}
				left, right, _ := strings.Cut(line, " -> ")
				at, event, _ := strings.Cut(left, " ")
				now, _ := strconv.ParseInt(at, 10, 64)
				var actions []string
				state, actions = tb.Step(state, event, now)
				got := strings.TrimSpace(state.Name + " " + strings.Join(actions, " "))
				if got != right {
					t.Fatalf("%s: got %q", line, got)
				}
			}
		})
	}
}

func text(s MachineState) string {
	parts := []string{s.Name}
	for _, name := range []string{"good", "rounds"} {
		if n := len(s.Counters[name]); n > 0 {
			parts = append(parts, fmt.Sprintf("%s=%d", name, n))
		}
	}
	return strings.Join(parts, " ")
}

// The reachable states for small parameters are those that the Python core reaches.
func TestGraphEqualsPython(t *testing.T) {
	tb := table(t, map[string]int{"good_probes_min": 2, "rounds_max": 2, "rounds_window_ms": 1_000_000_000})
	graph := map[string]map[string]string{}
	todo := []MachineState{tb.Start()}
	for len(todo) > 0 {
		state := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if graph[text(state)] != nil {
			continue
		}
		row := map[string]string{}
		graph[text(state)] = row
		for _, event := range tb.Events {
			after, actions := tb.Step(state, event, 0)
			row[event] = strings.TrimSpace(text(after) + " / " + strings.Join(actions, " "))
			todo = append(todo, after)
		}
	}
	data, err := os.ReadFile(filepath.Join(scenarios, "graph.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]map[string]string
	if err := json.Unmarshal(data, &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(graph, want) {
		t.Fatalf("the graphs differ: Go reaches %d states, Python %d", len(graph), len(want))
	}
}

// A table with a hole, a nondeterminism, an unknown name or an unreachable state does not load.
func TestBrokenTables(t *testing.T) {
	for name, change := range map[string]func(*Source){
		"unhandled event": func(s *Source) { delete(s.Transitions["NORMAL"], "fault") },
		"guard last":      func(s *Source) { s.Transitions["NORMAL"]["fault"] = s.Transitions["NORMAL"]["fault"][:1] },
		"unknown state":   func(s *Source) { s.Transitions["NORMAL"]["ready"][0].To = "NOWHERE" },
		"unknown counter": func(s *Source) { s.Transitions["NORMAL"]["ready"][0].Count = "nothing" },
		"unreachable": func(s *Source) {
			s.States["ISLAND"] = s.States["NORMAL"]
			s.Transitions["ISLAND"] = s.Transitions["NORMAL"]
		},
	} {
		source, err := ParseSource(slices.Clone(machineJSON))
		if err != nil {
			t.Fatal(err)
		}
		change(source)
		if _, err := LoadTable(source, nil); err == nil {
			t.Errorf("%s: the table loaded", name)
		}
	}
}

// Listeners hear of changes with their cause, not of events that change nothing.
func TestMonitor(t *testing.T) {
	var heard []string
	m := NewMonitor(table(t, nil), func(c Change) { heard = append(heard, c.Subject+" "+c.From+">"+c.To+" "+c.Event) })
	m.Event("sidecar", "ready", "")
	m.Event("sidecar", "ready", "")
	m.Event("sidecar", "fault", "gone")
	want := []string{"sidecar STARTING>NORMAL ready", "sidecar NORMAL>DEGRADED fault"}
	if !slices.Equal(heard, want) {
		t.Fatalf("heard %q", heard)
	}
	if s := m.Status("sidecar"); s.State != "DEGRADED" || s.Reason != "gone" || s.SinceUs == 0 {
		t.Fatalf("status %+v", s)
	}
	if w := m.Table().Worst([]string{"NORMAL", "RECOVERING"}); w != "RECOVERING" {
		t.Fatalf("worst is %s", w)
	}
}
