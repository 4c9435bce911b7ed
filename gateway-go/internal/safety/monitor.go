package safety

import (
	_ "embed"
	"encoding/json"
	"sync"
	"time"
)

//go:embed machine_gen.json
var machineJSON []byte

// Machine loads Vigil's own table.
func Machine() (*Table, error) {
	source, err := ParseSource(machineJSON)
	if err != nil {
		return nil, err
	}
	return LoadTable(source, nil)
}

// ParseSource reads the JSON form of safety/machine.yaml.
func ParseSource(data []byte) (*Source, error) {
	var s Source
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, &TableError{err.Error()}
	}
	return &s, nil
}

// Change is one change of one subject's state.
type Change struct {
	Subject, From, To, Event, Reason string
	TimeUs                           int64
	Actions                          []string
}

// Status is a subject's state, why, and since when.
type Status struct {
	State, Reason string
	SinceUs       int64
}

// Monitor keeps one machine per subject. All methods may be called at the same
// time. Listener hears each change, in order, while no other change happens.
type Monitor struct {
	table    *Table
	listener func(Change)
	start    time.Time

	order    sync.Mutex // held while a change is made and told
	mu       sync.Mutex
	machines map[string]MachineState
	status   map[string]Status
}

// NewMonitor makes a monitor without subjects.
func NewMonitor(table *Table, listener func(Change)) *Monitor {
	return &Monitor{
		table: table, listener: listener, start: time.Now(),
		machines: map[string]MachineState{}, status: map[string]Status{},
	}
}

// Table is the monitor's specification.
func (m *Monitor) Table() *Table { return m.table }

// Event feeds one event to a subject and returns its state.
func (m *Monitor) Event(subject, event, reason string) string {
	m.order.Lock()
	defer m.order.Unlock()
	m.mu.Lock()
	before, known := m.machines[subject]
	if !known {
		before = m.table.Start()
		m.status[subject] = Status{before.Name, "", time.Now().UnixMicro()}
	}
	after, actions := m.table.Step(before, event, time.Since(m.start).Milliseconds())
	m.machines[subject] = after
	changed := after.Name != before.Name
	nowUs := time.Now().UnixMicro()
	if changed {
		m.status[subject] = Status{after.Name, reason, nowUs}
	}
	m.mu.Unlock()
	if changed {
		m.listener(Change{subject, before.Name, after.Name, event, reason, nowUs, actions})
	}
	return after.Name
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
