package safety

import (
	_ "embed"
	"encoding/json"
	"sync"
	"time"
)

//go:embed machine_gen.json
var machineJSON []byte

// Machine loads Vigil's own table; parameters replace defaults.
func Machine(parameters map[string]int64) (*Table, error) {
	source, err := ParseSource(machineJSON)
	if err != nil {
		return nil, err
	}
	return LoadTable(source, parameters)
}

// ParseSource reads the JSON form of safety/machine.yaml.
func ParseSource(data []byte) (*Source, error) {
	var s Source
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, &TableError{err.Error()}
	}
	return &s, nil
}

// Change is one change of one subject's state: all that the step was computed
// from, and what came of it.
type Change struct {
	Subject, From, To, Event, Reason string
	// By is who reset a stop.
	By      string
	TimeUs  int64
	Actions []string
	NowMs   int64
	// Counters is what was counted before the step.
	Counters map[string][]int64
}

// Status is a subject's state, why, and since when.
type Status struct {
	State, Reason string
	SinceUs       int64
}

// Monitor keeps one machine per subject. All methods may be called at the same
// time, but not by the listener. It hears each change, in order, while no other
// change happens. Then the actions that the step requested and that have a
// function are carried out; one that fails is the event action_failed.
type Monitor struct {
	table    *Table
	listener func(Change)
	actions  map[string]func(Change) error
	failed   func(subject, text string)
	start    time.Time

	order    sync.Mutex // held while a change is made, told and followed
	mu       sync.Mutex
	machines map[string]MachineState
	status   map[string]Status
}

// NewMonitor makes a monitor without subjects. Actions may be nil; failed hears of
// those that could not be carried out.
func NewMonitor(
	table *Table, listener func(Change), actions map[string]func(Change) error, failed func(subject, text string),
) *Monitor {
	return &Monitor{
		table: table, listener: listener, actions: actions, failed: failed, start: time.Now(),
		machines: map[string]MachineState{}, status: map[string]Status{},
	}
}

// Table is the monitor's specification.
func (m *Monitor) Table() *Table { return m.table }

// Restore puts a subject into the stop that was kept for it.
func (m *Monitor) Restore(subject string, stop Stop) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.machines[subject] = m.table.Stopped()
	m.status[subject] = Status{m.table.Latched, stop.Reason, stop.SinceUs}
}

// Event feeds one event to a subject and returns its state.
func (m *Monitor) Event(subject, event, reason string) string {
	return m.feed(subject, event, reason, "")
}

// Reset feeds the event reset, and says whether the subject was latched.
func (m *Monitor) Reset(subject, reason, by string) bool {
	if m.Status(subject).State != m.table.Latched {
		return false
	}
	m.feed(subject, "reset", reason, by)
	return true
}

func (m *Monitor) feed(subject, event, reason, by string) string {
	m.order.Lock()
	defer m.order.Unlock()
	for {
		change, state := m.step(subject, event, reason, by)
		if change == nil {
			return state
		}
		m.listener(*change)
		failed := m.follow(change)
		if failed == "" {
			return state
		}
		if m.failed != nil {
			m.failed(subject, failed)
		}
		event, reason, by = "action_failed", failed, ""
	}
}

// step makes one step; the change is nil when the state stays.
func (m *Monitor) step(subject, event, reason, by string) (*Change, string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before, known := m.machines[subject]
	if !known {
		before = m.table.Start()
		m.status[subject] = Status{before.Name, "", time.Now().UnixMicro()}
	}
	nowMs := time.Since(m.start).Milliseconds()
	after, actions := m.table.Step(before, event, nowMs)
	m.machines[subject] = after
	if after.Name == before.Name {
		return nil, after.Name
	}
	nowUs := time.Now().UnixMicro()
	m.status[subject] = Status{after.Name, reason, nowUs}
	return &Change{subject, before.Name, after.Name, event, reason, by, nowUs, actions, nowMs, before.Counters}, after.Name
}

// follow carries out what a step requested, and says what failed.
func (m *Monitor) follow(c *Change) string {
	for _, name := range c.Actions {
		if work := m.actions[name]; work != nil {
			if err := work(*c); err != nil {
				return name + ": " + err.Error()
			}
		}
	}
	return ""
}

// Status of one subject; the initial state when it is unknown.
func (m *Monitor) Status(subject string) Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, known := m.status[subject]; known {
		return s
	}
	return Status{State: m.table.Initial}
}

// Worst is the state with the highest rank; the initial state without any.
func (t *Table) Worst(states []string) string {
	worst := ""
	for _, s := range states {
		if worst == "" || t.Ranks[s] > t.Ranks[worst] {
			worst = s
		}
	}
	if worst == "" {
		return t.Initial
	}
	return worst
}
