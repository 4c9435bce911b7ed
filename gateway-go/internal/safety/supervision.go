package safety

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Statuses of supervision (AUTOSAR SWS_WatchdogManager).
const (
	SupervisionOK          = "OK"
	SupervisionFailed      = "FAILED"
	SupervisionExpired     = "EXPIRED"
	SupervisionStopped     = "STOPPED"
	SupervisionDeactivated = "DEACTIVATED"
)

// Alive asks for Min to Max (0: any number) indications within ReferenceMs; so many
// failed references in a row are borne.
type Alive struct {
	ReferenceMs     int64 `json:"reference_ms"`
	Min             int64 `json:"min"`
	Max             int64 `json:"max"`
	FailedTolerance int64 `json:"failed_tolerance"`
}

// Deadline bounds the time between two checkpoints.
type Deadline struct {
	From  string `json:"from"`
	To    string `json:"to"`
	MaxMs int64  `json:"max_ms"`
}

// Logical says which checkpoint may come first, and which may follow which.
type Logical struct {
	Start []string            `json:"start"`
	Next  map[string][]string `json:"next"`
}

// Entity is what one part has promised. Logical is nil without logical supervision.
type Entity struct {
	Name      string     `json:"-"`
	Process   string     `json:"process"`
	Alive     *Alive     `json:"alive"`
	Deadlines []Deadline `json:"deadlines"`
	Logical   *Logical   `json:"logical"`
}

// EntityState is a local status and why, what alive supervision counts, the last
// checkpoint and its time, and how often it expired. The zero value has no status:
// begin with NewEntityState.
type EntityState struct {
	Status, Reason           string
	Indications, ReferenceMs int64
	FailedReferences         int64
	Last                     string
	LastMs                   int64
	Expiries                 int64
}

// NewEntityState is that of a part of which nothing is asked yet.
func NewEntityState() EntityState { return EntityState{Status: SupervisionDeactivated} }

// LoadSupervision reads the JSON form of safety/supervision.yaml: the entities of one
// process by name, and the length of a cycle.
func LoadSupervision(data []byte, process string) (map[string]*Entity, int64, error) {
	var raw struct {
		CycleMs  int64              `json:"cycle_ms"`
		Entities map[string]*Entity `json:"entities"`
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, 0, err
	}
	maps.DeleteFunc(raw.Entities, func(_ string, e *Entity) bool { return e.Process != process })
	for name, e := range raw.Entities {
		e.Name = name
		if err := e.check(raw.CycleMs); err != nil {
			return nil, 0, fmt.Errorf("%s: %w", name, err)
		}
	}
	return raw.Entities, raw.CycleMs, nil
}

func (e *Entity) check(cycleMs int64) error {
	if a := e.Alive; a != nil && (a.ReferenceMs < cycleMs || a.Min < 0 || 0 < a.Max && a.Max < a.Min) {
		return fmt.Errorf("alive supervision over %d ms, %d..%d", a.ReferenceMs, a.Min, a.Max)
	}
	if e.Logical != nil {
		named := slices.Clone(e.Logical.Start)
		for _, after := range e.Logical.Next {
			named = append(named, after...)
		}
		for _, name := range named {
			if _, known := e.Logical.Next[name]; !known {
				return fmt.Errorf("nothing may follow %s", name)
			}
		}
		for _, d := range e.Deadlines {
			if e.Logical.Next[d.From] == nil || e.Logical.Next[d.To] == nil {
				return fmt.Errorf("a deadline names a checkpoint that logical supervision does not know")
			}
		}
	}
	if e.Alive == nil && len(e.Deadlines) == 0 && e.Logical == nil {
		return fmt.Errorf("nothing is supervised")
	}
	return nil
}

// Activate begins to supervise; an active one stays as it is.
func (e *Entity) Activate(s EntityState, nowMs int64) EntityState {
	if s.Status != SupervisionDeactivated {
		return s
	}
	return EntityState{Status: SupervisionOK, ReferenceMs: nowMs, LastMs: nowMs, Expiries: s.Expiries}
}

// Deactivate stops supervising.
func (e *Entity) Deactivate(s EntityState) EntityState {
	return EntityState{Status: SupervisionDeactivated, Expiries: s.Expiries}
}

// Resume begins anew from the checkpoint that was passed last: what was not done while
// the process stood still says nothing.
func (e *Entity) Resume(s EntityState, nowMs int64) EntityState {
	return EntityState{Status: SupervisionOK, Last: s.Last, ReferenceMs: nowMs, LastMs: nowMs, Expiries: s.Expiries}
}

func expired(s EntityState, reason string) EntityState {
	if s.Status != SupervisionExpired {
		s.Expiries++
	}
	s.Status, s.Reason = SupervisionExpired, reason
	return s
}

// Checkpoint is a part passing one, which is an indication of life too. Nothing
// happens while deactivated.
func (e *Entity) Checkpoint(s EntityState, name string, nowMs int64) EntityState {
	if s.Status == SupervisionDeactivated {
		return s
	}
	before := s
	s.Last, s.LastMs, s.Indications = name, nowMs, s.Indications+1
	if e.Logical != nil {
		allowed, after := e.Logical.Start, "nothing"
		if before.Last != "" {
			allowed, after = e.Logical.Next[before.Last], before.Last
		}
		// SR-022
		if !slices.Contains(allowed, name) {
			return expired(s, name+" came after "+after)
		}
	}
	for _, d := range e.Deadlines {
		if took := nowMs - before.LastMs; before.Last == d.From && name == d.To && took > d.MaxMs {
			return expired(s, fmt.Sprintf("%s to %s took %d ms, the limit is %d", d.From, d.To, took, d.MaxMs))
		}
	}
	return s
}

// Cycle judges a part at the end of a supervision cycle. Missing indications count as
// none.
func (e *Entity) Cycle(s EntityState, nowMs int64) EntityState {
	if s.Status == SupervisionDeactivated {
		return s
	}
	under := false // a deadline runs: nothing else is asked
	for _, d := range e.Deadlines {
		if s.Last != d.From {
			continue
		}
		under = true
		// SR-021
		if late := nowMs - s.LastMs; late > d.MaxMs {
			s = expired(s, fmt.Sprintf("%s has not come %d ms after %s, the limit is %d", d.To, late, d.From, d.MaxMs))
			s.Indications, s.ReferenceMs = 0, nowMs
			return s
		}
	}
	if e.Alive == nil || under {
		s.Status, s.Reason, s.Indications, s.ReferenceMs = SupervisionOK, "", 0, nowMs
		return s
	}
	passed := nowMs - s.ReferenceMs
	if passed < e.Alive.ReferenceMs {
		return s
	}
	return e.judgeAlive(s, passed, nowMs)
}

func (e *Entity) judgeAlive(s EntityState, passed, nowMs int64) EntityState {
	n := s.Indications
	s.Indications, s.ReferenceMs = 0, nowMs
	// SR-020
	if e.Alive.Min <= n && (e.Alive.Max == 0 || n <= e.Alive.Max) {
		s.Status, s.Reason, s.FailedReferences = SupervisionOK, "", 0
		return s
	}
	s.FailedReferences++
	most := "any"
	if e.Alive.Max > 0 {
		most = fmt.Sprint(e.Alive.Max)
	}
	reason := fmt.Sprintf("%d signs of life within %d ms, expected %d..%s", n, passed, e.Alive.Min, most)
	if s.FailedReferences <= e.Alive.FailedTolerance {
		s.Status, s.Reason = SupervisionFailed, reason
		return s
	}
	return expired(s, reason)
}

// GlobalState is the status of the process: Stopped, for good, once something was
// expired for too long.
type GlobalState struct {
	Status         string
	ExpiredSinceMs int64 // while Expired or Stopped
}

// Step gives the worst of all statuses; Stopped after stoppedAfterMs of Expired.
func (g GlobalState) Step(statuses []string, nowMs, stoppedAfterMs int64) GlobalState {
	switch {
	case g.Status == SupervisionStopped:
		return g
	case !slices.Contains(statuses, SupervisionExpired):
		if slices.Contains(statuses, SupervisionFailed) {
			return GlobalState{Status: SupervisionFailed}
		}
		return GlobalState{Status: SupervisionOK}
	case g.Status != SupervisionExpired:
		g = GlobalState{SupervisionExpired, nowMs}
	}
	if nowMs-g.ExpiredSinceMs >= stoppedAfterMs {
		g.Status = SupervisionStopped
	}
	return g
}

// describeExpired joins parts and reasons in order of names.
func describeExpired(reasons map[string]string) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(reasons)) {
		out = append(out, name+": "+reasons[name])
	}
	return strings.Join(out, "; ")
}
