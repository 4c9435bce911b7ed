package flow

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	livev1 "vigil/gateway/gen/vigil/live/v1"
	modelsv1 "vigil/gateway/gen/vigil/models/v1"
	safetyv1 "vigil/gateway/gen/vigil/safety/v1"
	"vigil/gateway/internal/events"
	"vigil/gateway/internal/rules"
)

// How many events are kept for who resumes, and how many changes of states for who asks for history: a
// model whose versions come and go must not push those out.
const historyMax, eventsMax = 1000, 4000

// hub gives events to watchers; one that falls behind is told to start anew.
type hub struct {
	mu sync.Mutex
	// run names this run in the tokens by which watchers go on.
	run      string
	count    uint64
	past     []*livev1.Event
	changes  []*safetyv1.Transition
	watchers map[chan *livev1.Event]bool
}

// subscribe gives what is published from now on, and before it what came after the
// event that a token names.
func (h *hub) subscribe(queueMax int64, token string) (*follower, error) {
	ch := make(chan *livev1.Event, queueMax)
	h.mu.Lock()
	defer h.mu.Unlock()
	missed, err := h.after(token)
	if err != nil {
		return nil, err
	}
	h.begin()
	if token == "" {
		token = fmt.Sprintf("%s/%d", h.run, h.count)
	}
	if h.watchers == nil {
		h.watchers = map[chan *livev1.Event]bool{}
	}
	h.watchers[ch] = true
	return &follower{ch, missed, token}, nil
}

// follower is one who watches: what comes, what it missed, and where that begins.
type follower struct {
	came   chan *livev1.Event
	missed []*livev1.Event
	resume string
}

// after gives the events after the one that a token names.
func (h *hub) after(token string) ([]*livev1.Event, error) {
	if token == "" {
		return nil, nil
	}
	run, number, _ := strings.Cut(token, "/")
	n, err := strconv.ParseUint(number, 10, 64)
	oldest := h.count - uint64(len(h.past)) // number of the event before the first that is kept
	if err != nil || run != h.run || h.run == "" || n > h.count || n < oldest {
		return nil, &CallError{
			Code: codes.OutOfRange, Event: events.SemanticViolation, Reason: "RESUME_GONE",
			Text:       fmt.Sprintf("resume %q is of another run of the gateway, or more than %d events ago; watch anew", token, eventsMax),
			Violations: []rules.Violation{{Field: "resume", Description: "not known"}},
		}
	}
	return slices.Clone(h.past[n-oldest:]), nil
}

func (h *hub) unsubscribe(ch chan *livev1.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, ch)
}

func (h *hub) begin() {
	if h.run == "" {
		h.run = rand.Text()[:12]
	}
}

// changed publishes a change of a state.
func (h *hub) changed(t *safetyv1.Transition) {
	h.publish(&livev1.Event{Of: &livev1.Event_Transition{Transition: t}})
}

// model publishes what happened to a version.
func (h *hub) model(e *modelsv1.ModelEvent) {
	h.publish(&livev1.Event{Of: &livev1.Event_Model{Model: e}})
}

func (h *hub) publish(e *livev1.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.begin()
	h.count++
	e.Resume = fmt.Sprintf("%s/%d", h.run, h.count)
	if t := e.GetTransition(); t != nil {
		t.Resume = e.Resume
		h.changes = append(h.changes[max(0, len(h.changes)+1-historyMax):], t)
	}
	h.past = append(h.past[max(0, len(h.past)+1-eventsMax):], e)
	for ch := range h.watchers {
		select {
		case ch <- e:
		default:
			close(ch)
			delete(h.watchers, ch)
		}
	}
}

// transitions gives the changes of states that were published, oldest first.
func (h *hub) transitions() []*safetyv1.Transition {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.changes)
}

// watchState sends the present state, then each change.
func (s *Service) watchState(c *streamCall) error {
	request := c.request.(*safetyv1.WatchRequest)
	f, err := s.hub.subscribe(s.limits.WatchQueueMax, request.Resume)
	if err != nil {
		return err
	}
	defer s.hub.unsubscribe(f.came)
	emit := func(e *livev1.Event) error {
		t := e.GetTransition()
		if e != nil && (t == nil || len(request.Subjects) > 0 && !slices.Contains(request.Subjects, t.Subject)) {
			return nil
		}
		data, err := proto.Marshal(&safetyv1.WatchResponse{State: s.system(), Transition: t})
		if err != nil {
			return err
		}
		return c.send(data)
	}
	for _, e := range append([]*livev1.Event{nil}, f.missed...) {
		if err := emit(e); err != nil {
			return err
		}
	}
	for {
		select {
		case <-c.ctx.Done():
			return c.ctx.Err()
		case <-s.drained.Done():
			return errDraining
		case e, open := <-f.came:
			if !open {
				return limitError("watch_queue", "the reader of the stream is too slow")
			}
			if err := emit(e); err != nil {
				return err
			}
		}
	}
}
