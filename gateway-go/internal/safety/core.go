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
// unknown name or an unreachable state.
type TableError struct{ Reason string }

func (e *TableError) Error() string { return "safety table: " + e.Reason }

// Guard holds when a counter is above (Strict) or at least Limit.
type Guard struct {
	Counter string
	Limit   int
	Strict  bool
}

func (g *Guard) holds(value int) bool {
	if g.Strict {
		return value > g.Limit
	}
	return value >= g.Limit
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
	Initial   string
	Digest    string
	Ranks     map[string]int
	Events    []string
	rows      map[key][]Row
	windowsMs map[string]int64
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
		Rank int `json:"rank"`
	} `json:"states"`
	Events     map[string]any `json:"events"`
	Parameters map[string]struct {
		Default int `json:"default"`
	} `json:"parameters"`
	Counters map[string]struct {
		Window string `json:"window"`
	} `json:"counters"`
	Transitions map[string]map[string][]struct {
		To      string         `json:"to"`
		Count   string         `json:"count"`
		Guard   map[string]any `json:"guard"`
		Clear   []string       `json:"clear"`
		Actions []string       `json:"actions"`
	} `json:"transitions"`
}

func (s *Source) parameters(override map[string]int) map[string]int {
	values := map[string]int{}
	for name, p := range s.Parameters {
		values[name] = p.Default
	}
	maps.Copy(values, override)
	return values
}

// LoadTable checks a specification; override replaces defaults of parameters.
func LoadTable(s *Source, override map[string]int) (*Table, error) {
	values := s.parameters(override)
	t := &Table{Initial: s.Initial, Digest: s.Digest, Ranks: map[string]int{}, rows: map[key][]Row{}, windowsMs: map[string]int64{}}
	for name, state := range s.States {
		t.Ranks[name] = state.Rank
	}
	t.Events = slices.Sorted(maps.Keys(s.Events))
	for name, c := range s.Counters {
		if c.Window != "" {
			t.windowsMs[name] = int64(values[c.Window])
		}
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

func (s *Source) rows(state, event string, values map[string]int) ([]Row, error) {
	where := state + "/" + event
	options := s.Transitions[state][event]
	if len(options) == 0 {
		return nil, &TableError{where + ": unhandled"}
	}
	rows := make([]Row, 0, len(options))
	for i, o := range options {
		row := Row{To: o.To, Count: o.Count, Clear: o.Clear, Actions: o.Actions}
		used := append([]string{}, o.Clear...)
		if o.Count != "" {
			used = append(used, o.Count)
		}
		if o.Guard != nil {
			counter, _ := o.Guard["counter"].(string)
			limit, strict := o.Guard["above"].(string)
			if !strict {
				limit, _ = o.Guard["at_least"].(string)
			}
			value, known := values[limit]
			if !known {
				return nil, &TableError{fmt.Sprintf("%s: unknown parameter %q", where, limit)}
			}
			row.Guard = &Guard{counter, value, strict}
			used = append(used, counter)
		}
		if _, known := s.States[o.To]; !known {
			return nil, &TableError{where + ": unknown state " + o.To}
		}
		for _, name := range used {
			if _, known := s.Counters[name]; !known {
				return nil, &TableError{where + ": unknown counter " + name}
			}
		}
		if (row.Guard == nil) != (i == len(options)-1) {
			return nil, &TableError{where + ": exactly the last row must have no guard"}
		}
		rows = append(rows, row)
	}
	return rows, nil
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

// Step gives the next state and the requested actions. nowMs is monotonic. An
// event that is not in the table is a caller's mistake and panics.
func (t *Table) Step(state MachineState, event string, nowMs int64) (MachineState, []string) {
	rows, known := t.rows[key{state.Name, event}]
	if !known {
		panic("safety: no row for " + state.Name + "/" + event)
	}
	counters := maps.Clone(state.Counters)
	if counters == nil {
		counters = map[string][]int64{}
	}
	for _, row := range rows {
		if row.Count != "" {
			counters[row.Count] = t.counted(counters[row.Count], row.Count, nowMs)
		}
		if row.Guard != nil && !row.Guard.holds(len(counters[row.Guard.Counter])) {
			continue
		}
		for _, name := range row.Clear {
			delete(counters, name)
		}
		return MachineState{row.To, counters}, row.Actions
	}
	panic("safety: a loaded table always has a row without a guard")
}

func (t *Table) counted(times []int64, name string, nowMs int64) []int64 {
	window, windowed := t.windowsMs[name]
	kept := make([]int64, 0, len(times)+1)
	for _, at := range times {
		if !windowed || nowMs-at < window {
			kept = append(kept, at)
		}
	}
	return append(kept, nowMs)
}
