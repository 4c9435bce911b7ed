package safety

import (
	"context"
	_ "embed"
	"maps"
	"slices"
	"sync"
	"time"
)

//go:embed supervision_gen.json
var supervisionJSON []byte

// ownPause between two cycles means that this process, or the machine, stood still:
// what was not done meanwhile says nothing.
const ownPause = 500 * time.Millisecond

// Work is what a goroutine is at: since when it has not got on; the zero time when it
// has nothing to do.
type Work struct {
	Part  string
	Since time.Time
}

// Supervision judges the gateway's own parts each cycle. Indicate, Activate, Stands
// and Report may be called from anywhere.
type Supervision struct {
	entities     map[string]*Entity
	cycle        time.Duration
	stoppedAfter time.Duration
	told         func(part, reason string)
	busy         func() []Work
	start        time.Time

	mu     sync.Mutex
	states map[string]EntityState
	// late is work beyond its deadline, by part; toldOf the expiries that were told.
	late   map[string]string
	toldOf map[string]int64
	global GlobalState
	judged time.Time // when the latest cycle was
	active time.Time // when anything was done here
	over   bool      // nothing is judged any more, in order
	// asked is how often Stopped was asked since the cycle at askedOf, and since when.
	asked            int
	askedOf, askedAt time.Time
}

// NewSupervision makes one; Run judges. told hears of each expiry, once; busy is asked
// each cycle what the goroutines are at that pay nothing for being watched. After
// stoppedAfter of something expired the process is Stopped; 0: never.
func NewSupervision(stoppedAfter time.Duration, told func(part, reason string), busy func() []Work) (*Supervision, error) {
	entities, cycleMs, err := LoadSupervision(supervisionJSON, "gateway")
	if err != nil {
		return nil, &TableError{"supervision: " + err.Error()}
	}
	s := &Supervision{
		entities: entities, cycle: time.Duration(cycleMs) * time.Millisecond, stoppedAfter: stoppedAfter, told: told, busy: busy,
		start: time.Now(), states: map[string]EntityState{}, late: map[string]string{}, toldOf: map[string]int64{}, judged: time.Now(),
		active: time.Now(),
		global: GlobalState{Status: SupervisionOK},
	}
	for name, e := range entities {
		if e.Alive != nil || e.Logical != nil {
			s.states[name] = NewEntityState()
		}
	}
	return s, nil
}

func (s *Supervision) nowMs(t time.Time) int64 { return t.Sub(s.start).Milliseconds() }

// Activate supervises a part from now on.
func (s *Supervision) Activate(part string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.states[part] = s.entities[part].Activate(s.states[part], s.nowMs(time.Now()))
}

// Indicate says that a part passes a checkpoint.
func (s *Supervision) Indicate(part, checkpoint string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.resume(now)
	s.states[part] = s.entities[part].Checkpoint(s.states[part], checkpoint, s.nowMs(now))
}

// Run judges each cycle until ctx is done, which is the orderly end of it.
func (s *Supervision) Run(ctx context.Context) {
	defer func() {
		s.mu.Lock()
		s.over = true
		s.mu.Unlock()
	}()
	tick := time.NewTicker(s.cycle)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.judge(time.Now())
		}
	}
}

// judge is one cycle.
func (s *Supervision) judge(now time.Time) {
	work := s.busy()
	s.mu.Lock()
	if s.resume(now) {
		work = nil
	}
	s.judged = now
	fresh := s.judgeWork(work, now)
	var statuses []string
	for part, before := range s.states {
		after := s.entities[part].Cycle(before, s.nowMs(now))
		s.states[part] = after
		statuses = append(statuses, after.Status)
		if after.Expiries > s.toldOf[part] { // it may have come about at a checkpoint, and be cured
			s.toldOf[part] = after.Expiries
			reason := after.Reason
			if reason == "" {
				reason = before.Reason
			}
			fresh[part] = reason
		}
	}
	if len(s.late) > 0 {
		statuses = append(statuses, SupervisionExpired)
	}
	after := s.stoppedAfter.Milliseconds()
	if after == 0 {
		after = 1 << 60
	}
	s.global = s.global.Step(statuses, s.nowMs(now), after)
	s.mu.Unlock()
	for part, reason := range fresh {
		s.told(part, reason)
	}
}

// judgeWork holds what goroutines are at against its deadline, and gives what is
// newly late.
func (s *Supervision) judgeWork(work []Work, now time.Time) map[string]string {
	fresh, late := map[string]string{}, map[string]string{}
	for _, w := range work {
		if w.Since.IsZero() {
			continue
		}
		e := s.entities[w.Part]
		state := EntityState{Status: SupervisionOK, Last: e.Deadlines[0].From, LastMs: s.nowMs(w.Since)}
		// SR-054
		if judged := e.Cycle(state, s.nowMs(now)); judged.Status == SupervisionExpired {
			late[w.Part] = judged.Reason
			if s.late[w.Part] == "" {
				fresh[w.Part] = judged.Reason
			}
		}
	}
	s.late = late
	return fresh
}

// resume says whether the process stood still until now; then every part that is active
// begins anew from the checkpoint that it passed last.
func (s *Supervision) resume(now time.Time) bool {
	paused := now.Sub(s.active) > ownPause
	s.active = now
	if !paused {
		return false
	}
	for part, state := range s.states {
		if state.Status != SupervisionDeactivated {
			s.states[part] = s.entities[part].Resume(state, s.nowMs(now))
		}
	}
	return true
}

// Expired is what is expired now with its reason, empty when all is well.
func (s *Supervision) Expired() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	reasons := maps.Clone(s.late)
	for part, state := range s.states {
		if state.Status == SupervisionExpired {
			reasons[part] = state.Reason
		}
	}
	return describeExpired(reasons)
}

// PartStatus is how a part is found.
type PartStatus struct{ Part, Status, Reason string }

// Parts is how each part is found now, by name.
func (s *Supervision) Parts() []PartStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []PartStatus
	for _, name := range slices.Sorted(maps.Keys(s.entities)) {
		found := PartStatus{Part: name, Status: SupervisionOK}
		if state, kept := s.states[name]; kept {
			found.Status, found.Reason = state.Status, state.Reason
		} else if why := s.late[name]; why != "" {
			found.Status, found.Reason = SupervisionExpired, why
		}
		out = append(out, found)
	}
	return out
}

// SidecarParts are the names of the parts that the sidecar supervises.
func SidecarParts() ([]string, error) {
	entities, _, err := LoadSupervision(supervisionJSON, "sidecar")
	return slices.Sorted(maps.Keys(entities)), err
}

// standsAsks is how often Stopped has to be asked between two cycles to call the judging
// dead: after a pause it is asked before the next cycle.
const standsAsks = 20

// Stopped says why the process is to be replaced, if so: something was expired for too
// long, or nothing is judged any more.
func (s *Supervision) Stopped() string {
	now := time.Now()
	s.mu.Lock()
	status, over := s.global.Status, s.over
	if s.judged != s.askedOf {
		s.asked, s.askedOf, s.askedAt = 0, s.judged, now
	}
	s.asked++
	stands := now.Sub(s.askedAt)
	dead := s.stoppedAfter > 0 && stands > s.stoppedAfter && s.asked > standsAsks
	s.mu.Unlock()
	switch {
	case over:
		return ""
	case status == SupervisionStopped:
		return "supervision stopped: " + s.Expired()
	case dead:
		return "supervision stands still since " + stands.Round(time.Millisecond).String()
	}
	return ""
}
