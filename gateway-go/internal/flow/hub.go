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

	safetyv1 "vigil/gateway/gen/vigil/safety/v1"
	"vigil/gateway/internal/events"
	"vigil/gateway/internal/rules"
)

// historyMax is how many changes are kept for who asks for them, or resumes.
const historyMax = 1000

// hub gives changes to watchers; one that falls behind is told to start anew.
type hub struct {
	mu sync.Mutex
	// run names this run in the tokens by which watchers go on.
	run      string
	count    uint64
	past     []*safetyv1.Transition
	watchers map[chan *safetyv1.Transition]bool
}

// subscribe gives what is published from now on, and before it what came after the
// change that a token names.
func (h *hub) subscribe(queueMax int64, token string) (chan *safetyv1.Transition, []*safetyv1.Transition, error) {
	ch := make(chan *safetyv1.Transition, queueMax)
	h.mu.Lock()
	defer h.mu.Unlock()
	missed, err := h.after(token)
	if err != nil {
		return nil, nil, err
	}
	if h.watchers == nil {
		h.watchers = map[chan *safetyv1.Transition]bool{}
	}
	h.watchers[ch] = true
	return ch, missed, nil
}

// after gives the changes after the one that a token names.
func (h *hub) after(token string) ([]*safetyv1.Transition, error) {
	if token == "" {
		return nil, nil
	}
	run, number, _ := strings.Cut(token, "/")
	n, err := strconv.ParseUint(number, 10, 64)
	oldest := h.count - uint64(len(h.past)) // number of the change before the first that is kept
	if err != nil || run != h.run || h.run == "" || n > h.count || n < oldest {
		return nil, &CallError{
			Code: codes.OutOfRange, Event: events.SemanticViolation, Reason: "RESUME_GONE",
			Text:       fmt.Sprintf("resume %q is of another run of the gateway, or more than %d changes ago; watch anew", token, historyMax),
			Violations: []rules.Violation{{Field: "resume", Description: "not known"}},
		}
	}
	return slices.Clone(h.past[n-oldest:]), nil
}

func (h *hub) unsubscribe(ch chan *safetyv1.Transition) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, ch)
}

func (h *hub) publish(t *safetyv1.Transition) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.run == "" {
		h.run = rand.Text()[:12]
	}
	h.count++
	t.Resume = fmt.Sprintf("%s/%d", h.run, h.count)
	if len(h.past) == historyMax {
		h.past = h.past[1:]
	}
	h.past = append(h.past, t)
	for ch := range h.watchers {
		select {
		case ch <- t:
		default:
			close(ch)
			delete(h.watchers, ch)
		}
	}
}

// latest gives what was published, oldest first.
func (h *hub) latest() []*safetyv1.Transition {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.past)
}

// watchState sends the present state, then each change.
func (s *Service) watchState(c *streamCall) error {
	request := c.request.(*safetyv1.WatchRequest)
	changes, missed, err := s.hub.subscribe(s.limits.WatchQueueMax, request.Resume)
	if err != nil {
		return err
	}
	defer s.hub.unsubscribe(changes)
	emit := func(t *safetyv1.Transition) error {
		if t != nil && len(request.Subjects) > 0 && !slices.Contains(request.Subjects, t.Subject) {
			return nil
		}
		data, err := proto.Marshal(&safetyv1.WatchResponse{State: s.system(), Transition: t})
		if err != nil {
			return err
		}
		return c.send(data)
	}
	for _, t := range append([]*safetyv1.Transition{nil}, missed...) {
		if err := emit(t); err != nil {
			return err
		}
	}
	for {
		select {
		case <-c.ctx.Done():
			return c.ctx.Err()
		case <-s.drained.Done():
			return errDraining
		case t, open := <-changes:
			if !open {
				return limitError("watch_queue", "the reader of the stream is too slow")
			}
			if err := emit(t); err != nil {
				return err
			}
		}
	}
}
