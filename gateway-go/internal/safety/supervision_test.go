package safety

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"
)

// histories are random ones with what the core in Python made of them
// (tools/supervision_vectors.py).
type histories struct {
	Supervision json.RawMessage
	Histories   []struct {
		Entity string
		Steps  [][11]any
	}
	Wholes [][][3]json.RawMessage
}

func readHistories(t *testing.T) *histories {
	t.Helper()
	data, err := os.ReadFile("../../../tests/vectors/supervision.json")
	if err != nil {
		t.Fatal(err)
	}
	vectors := &histories{}
	if err := json.Unmarshal(data, vectors); err != nil {
		t.Fatal(err)
	}
	return vectors
}

func TestSupervisionEqualsPython(t *testing.T) {
	vectors := readHistories(t)
	entities, _, err := LoadSupervision(vectors.Supervision, "gateway")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for i, h := range vectors.Histories {
		e, state := entities[h.Entity], NewEntityState()
		for j, step := range h.Steps {
			now := int64(step[0].(float64))
			switch step[1].(string) {
			case "activate":
				state = e.Activate(state, now)
			case "deactivate":
				state = e.Deactivate(state)
			case "checkpoint":
				state = e.Checkpoint(state, step[2].(string), now)
			case "cycle":
				state = e.Cycle(state, now)
			}
			want := EntityState{
				step[3].(string), step[4].(string), int64(step[5].(float64)), int64(step[6].(float64)), int64(step[7].(float64)),
				step[8].(string), int64(step[9].(float64)), int64(step[10].(float64)),
			}
			if state != want {
				t.Fatalf("history %d (%s), step %d %v:\n got %+v\nwant %+v", i, h.Entity, j, step[:3], state, want)
			}
			seen[state.Status]++
		}
	}
	for _, status := range []string{SupervisionOK, SupervisionFailed, SupervisionExpired, SupervisionDeactivated} {
		if seen[status] < 20 {
			t.Errorf("the vectors hold %s %d times", status, seen[status])
		}
	}
}

func TestGlobalStatusEqualsPython(t *testing.T) {
	vectors, stopped := readHistories(t), 0
	for i, whole := range vectors.Wholes {
		state := GlobalState{Status: SupervisionOK}
		for j, step := range whole {
			var now int64
			var statuses []string
			var want string
			if json.Unmarshal(step[0], &now) != nil || json.Unmarshal(step[1], &statuses) != nil || json.Unmarshal(step[2], &want) != nil {
				t.Fatal("not a step")
			}
			if state = state.Step(statuses, now, 100); state.Status != want {
				t.Fatalf("whole %d, step %d: %s, expected %s", i, j, state.Status, want)
			}
		}
		if state.Status == SupervisionStopped {
			stopped++
		}
	}
	if stopped == 0 || stopped == len(vectors.Wholes) {
		t.Errorf("%d of %d stopped", stopped, len(vectors.Wholes))
	}
}

// What cannot be supervised does not load; each text names the part.
func TestBrokenSupervisionDoesNotLoad(t *testing.T) {
	for form, text := range map[string]string{
		`{}`: "nothing is supervised",
		`{"alive": {"reference_ms": 5, "min": 1, "max": 0, "failed_tolerance": 0}}`:                              "over 5 ms",
		`{"alive": {"reference_ms": 50, "min": 3, "max": 2, "failed_tolerance": 0}}`:                             "3..2",
		`{"logical": {"start": ["a"], "next": {"b": []}}}`:                                                       "nothing may follow a",
		`{"logical": {"start": ["a"], "next": {"a": []}}, "deadlines": [{"from": "a", "to": "b", "max_ms": 1}]}`: "does not know",
	} {
		form = `{"cycle_ms": 10, "entities": {"part": {"process": "gateway", ` + strings.TrimPrefix(form, "{") + `}}`
		form = strings.Replace(form, `, }`, `}`, 1)
		if _, _, err := LoadSupervision([]byte(form), "gateway"); err == nil || !strings.Contains(err.Error(), text) || !strings.HasPrefix(err.Error(), "part: ") {
			t.Errorf("%s: %v", form, err)
		}
	}
}

type expiry struct{ part, reason string }

func supervised(t *testing.T, stoppedAfter time.Duration, busy func() []Work) (*Supervision, *[]expiry) {
	t.Helper()
	told := &[]expiry{}
	s, err := NewSupervision(stoppedAfter, func(part, reason string) { *told = append(*told, expiry{part, reason}) }, busy)
	if err != nil {
		t.Fatal(err)
	}
	return s, told
}

// run judges each cycle from a time on, without waiting.
func (s *Supervision) run(from time.Time, d time.Duration) time.Time {
	for end := from.Add(d); from.Before(end); {
		from = from.Add(s.cycle)
		s.judge(from)
	}
	return from
}

// A goroutine that does not get on expires, is told once, stops the process when it
// lasts, and is well again when it gets on before.
func TestWorkThatDoesNotGetOn(t *testing.T) {
	var since time.Time
	s, told := supervised(t, time.Second, func() []Work { return []Work{{"link_reader", since}, {"link_watch", time.Time{}}} })
	now := s.run(s.judged, 30*time.Second)
	since = now
	if now = s.run(now, 5*time.Second); s.Expired() != "" {
		t.Fatalf("expired within its deadline: %s", s.Expired())
	}
	if now = s.run(now, 500*time.Millisecond); !strings.HasPrefix(s.Expired(), "link_reader: taken has not come 5") || len(*told) != 1 || (*told)[0].part != "link_reader" {
		t.Fatalf("%q, told %v", s.Expired(), *told)
	}
	since = now
	if now = s.run(now, 200*time.Millisecond); s.Expired() != "" || s.global.Status != SupervisionOK {
		t.Fatalf("it got on: %s, %s", s.Expired(), s.global.Status)
	}
	now = s.run(now, 7*time.Second)
	if s.global.Status != SupervisionStopped || len(*told) != 2 {
		t.Fatalf("%s, told %v", s.global.Status, *told)
	}
	since = time.Time{}
	if s.run(now, time.Second); s.global.Status != SupervisionStopped {
		t.Error("what stopped went on")
	}
}

// A part that passes its checkpoints is well; one that stops in the midst expires.
func TestPartsThatPassCheckpoints(t *testing.T) {
	s, told := supervised(t, 0, func() []Work { return nil })
	s.Activate("router")
	now := s.judged
	for range 20 {
		for _, checkpoint := range []string{"asked", "decoded", "judged", "answered"} {
			s.Indicate("router", checkpoint)
		}
		now = s.run(now, 500*time.Millisecond)
	}
	if s.Expired() != "" || s.Stopped() != "" {
		t.Fatalf("%s; %s", s.Expired(), s.Stopped())
	}
	s.Indicate("router", "asked")
	s.Indicate("router", "decoded")
	if s.run(now, 10*time.Second); !strings.HasPrefix(s.Expired(), "router: judged has not come") || len(*told) != 1 {
		t.Errorf("%q, told %v", s.Expired(), *told)
	}
}

// What this process could not do while it stood still is no fault of its parts.
func TestAPauseOfTheWholeSaysNothing(t *testing.T) {
	var since time.Time
	s, told := supervised(t, time.Second, func() []Work { return []Work{{"link_watch", since}} })
	s.Activate("router")
	s.Indicate("router", "asked")
	now := s.run(s.judged, time.Second)
	since = now
	s.judge(now.Add(time.Minute))
	if s.Expired() != "" || len(*told) != 0 {
		t.Errorf("%q, told %v", s.Expired(), *told)
	}
	// What was under way when all stood still goes on: its next checkpoint is none out of order.
	for _, first := range []bool{true, false} { // whoever comes first, the part or the judge
		s.active = time.Now().Add(-time.Minute)
		if !first {
			s.judge(time.Now())
		}
		s.Indicate("router", "decoded")
		s.judge(time.Now())
		for _, checkpoint := range []string{"judged", "answered", "asked"} {
			s.Indicate("router", checkpoint)
		}
		if s.Expired() != "" || len(*told) != 0 {
			t.Errorf("%q, told %v", s.Expired(), *told)
		}
	}
}

// Supervision that nobody runs any more is no good news.
func TestSupervisionThatStandsStillIsStopped(t *testing.T) {
	s, _ := supervised(t, time.Second, func() []Work { return nil })
	if why := s.Stopped(); why != "" {
		t.Fatal(why)
	}
	s.askedAt = s.askedAt.Add(-time.Minute)
	if why := s.Stopped(); why != "" {
		t.Errorf("after one look: %q", why) // a pause of all ends so
	}
	for range standsAsks {
		s.Stopped()
	}
	if why := s.Stopped(); !strings.HasPrefix(why, "supervision stands still") {
		t.Errorf("%q", why)
	}
	s.over = true
	if why := s.Stopped(); why != "" {
		t.Errorf("after an orderly end: %q", why)
	}
}
