package safety

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const scenarios = "../../../safety/scenarios"

func table(t *testing.T, override map[string]int64) *Table {
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
	if len(files) < 11 {
		t.Fatalf("only %d scenarios", len(files))
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			override := map[string]int64{}
			lines := strings.Split(strings.TrimSpace(string(data)), "\n")
			for _, line := range lines {
				if rest, ok := strings.CutPrefix(line, "# parameters: "); ok {
					for _, pair := range strings.Fields(rest) {
						k, v, _ := strings.Cut(pair, "=")
						override[k], _ = strconv.ParseInt(v, 10, 64)
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

// seen gives a state as it is some ms later, times relative to then, and its text.
func seen(tb *Table, s MachineState, later int64) (MachineState, string) {
	out, parts := MachineState{Name: s.Name, Counters: map[string][]int64{}}, []string{s.Name}
	for _, name := range slices.Sorted(maps.Keys(s.Counters)) {
		window, windowed := tb.windowsMs[name]
		var ages []string
		for _, at := range s.Counters[name] {
			if !windowed {
				out.Counters[name] = append(out.Counters[name], at)
			} else if later-at < window {
				out.Counters[name] = append(out.Counters[name], at-later)
				ages = append(ages, strconv.FormatInt(later-at, 10))
			}
		}
		if n := len(out.Counters[name]); n > 0 && windowed {
			parts = append(parts, name+"="+strings.Join(ages, ","))
		} else if n > 0 {
			parts = append(parts, fmt.Sprintf("%s=%d", name, n))
		}
	}
	return out, strings.Join(parts, " ")
}

// The graph of all reachable states for small parameters, time included, is the
// one of the Python core (vigil_safety.explore): one hash of all its steps.
func TestGraphEqualsPython(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(scenarios, "graph.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		Parameters    map[string]int64
		States, Steps int
		SHA256        string
	}
	if err := json.Unmarshal(data, &want); err != nil {
		t.Fatal(err)
	}
	tb := table(t, want.Parameters)
	graph := map[string][]string{}
	todo := []MachineState{tb.Start()}
	steps := 0
	for len(todo) > 0 {
		state, name := seen(tb, todo[len(todo)-1], 0)
		todo = todo[:len(todo)-1]
		if graph[name] != nil {
			continue
		}
		var lines []string
		for _, event := range tb.Events {
			after, actions := tb.Step(state, event, 0)
			after, text := seen(tb, after, 0)
			lines = append(lines, fmt.Sprintf("%s | %s | %s | %s\n", name, event, text, strings.Join(actions, " ")))
			todo = append(todo, after)
		}
		after, text := seen(tb, state, 1)
		lines = append(lines, fmt.Sprintf("%s | tick | %s | \n", name, text))
		todo = append(todo, after)
		slices.Sort(lines)
		graph[name] = lines
		steps += len(lines)
	}
	hash := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(graph)) {
		for _, line := range graph[name] {
			hash.Write([]byte(line))
		}
	}
	if got := hex.EncodeToString(hash.Sum(nil)); len(graph) != want.States || steps != want.Steps || got != want.SHA256 {
		t.Fatalf("Go reaches %d states by %d steps (%s), Python %d by %d (%s)", len(graph), steps, got, want.States, want.Steps, want.SHA256)
	}
}

// A table with a hole, a nondeterminism, an unknown name or an unreachable state does not load.
func TestBrokenTables(t *testing.T) {
	for name, change := range map[string]func(*Source){
		"unhandled event":            func(s *Source) { delete(s.Transitions["NORMAL"], "fault") },
		"guard last":                 func(s *Source) { s.Transitions["NORMAL"]["fault"] = s.Transitions["NORMAL"]["fault"][:1] },
		"entered without its action": func(s *Source) { s.Transitions["NORMAL"]["fault"][1].Actions = nil },
		"unknown action":             func(s *Source) { s.Transitions["NORMAL"]["ready"][0].Actions = []string{"nothing"} },
		"two guards":                 func(s *Source) { s.Transitions["NORMAL"]["fault"][0].Guard["below"] = "rounds_max" },
		"unknown parameter":          func(s *Source) { s.Transitions["NORMAL"]["fault"][0].Guard["above"] = "nothing" },
		"latched":                    func(s *Source) { s.Transitions["SAFE_STOP"]["ready"][0].To = "STARTING" },
		"no states":                  func(s *Source) { delete(s.Transitions, "NORMAL") },
		"unknown state":              func(s *Source) { s.Transitions["NORMAL"]["ready"][0].To = "NOWHERE" },
		"unknown counter":            func(s *Source) { s.Transitions["NORMAL"]["ready"][0].Count = "nothing" },
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
	m := NewMonitor(table(t, nil), func(c Change) { heard = append(heard, c.Subject+" "+c.From+">"+c.To+" "+c.Event) }, nil, nil)
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
