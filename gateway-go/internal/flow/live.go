package flow

import (
	"context"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"vigil/gateway/gen/contract"
	linkv1 "vigil/gateway/gen/vigil/link/v1"
	livev1 "vigil/gateway/gen/vigil/live/v1"

	"vigil/gateway/internal/figures"
	"vigil/gateway/internal/safety"
)

const (
	// figuresGap is between two figures.
	figuresGap = time.Second
	// limitNamesMax bounds the names of limits that are told of.
	limitNamesMax = 64
)

// live is what screens are shown: one sampler for all of them, which runs while there is one.
type live struct {
	table   figures.Table
	limits  limitHits
	outputs outputs
	report  atomic.Pointer[report] // nil without a link

	mu       sync.Mutex
	watchers map[chan []byte]bool
	end      context.CancelFunc // of the sampler
}

// report is the last that the sidecar said of its supervision, and when.
type report struct {
	supervision *linkv1.Supervision
	came        time.Time
}

// limitHits counts limits that were reached, by name.
type limitHits struct {
	mu     sync.Mutex
	counts map[string]uint64
}

func (l *limitHits) hit(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.counts == nil {
		l.counts = map[string]uint64{}
	}
	if _, known := l.counts[name]; known || len(l.counts) < limitNamesMax {
		l.counts[name]++
	}
}

func (l *limitHits) take() []*livev1.LimitHits {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*livev1.LimitHits
	for name, n := range l.counts {
		out = append(out, &livev1.LimitHits{Limit: name, Count: n})
	}
	clear(l.counts)
	sort.Slice(out, func(i, j int) bool { return out[i].Limit < out[j].Limit })
	return out
}

// counted tells the figures of a call of a model that is over.
func (s *Service) counted(model string, code codes.Code, quality string, c *call) {
	outcome := figures.Answered
	switch {
	case code != codes.OK:
		outcome = figures.Failed
	case quality != "normal":
		outcome = figures.Degraded
	}
	s.live.table.Call(model, outcome, time.Since(c.start), c.rows)
}

// followFigures gives a screen the figures; end must be called.
func (s *Service) followFigures() (taken chan []byte, end func()) {
	l := &s.live
	taken = make(chan []byte, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.watchers == nil {
		l.watchers = map[chan []byte]bool{}
	}
	l.watchers[taken] = true
	if len(l.watchers) == 1 {
		ctx, cancel := context.WithCancel(s.drained)
		l.end = cancel
		l.limits.take()
		l.table.Watch(true)
		go s.sample(ctx)
	}
	return taken, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.watchers, taken)
		if len(l.watchers) == 0 {
			l.end()
			l.table.Watch(false)
		}
	}
}

// sample makes figures once for all screens; one that is slow gets the latest.
func (s *Service) sample(ctx context.Context) {
	tick := time.NewTicker(figuresGap)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		s.live.mu.Lock()
		if ctx.Err() != nil { // another sampler may have begun
			s.live.mu.Unlock()
			return
		}
		data, err := proto.Marshal(&livev1.WatchResponse{Of: &livev1.WatchResponse_Figures{Figures: s.figures(now, now.Sub(last))}})
		if err == nil {
			for ch := range s.live.watchers {
				select {
				case <-ch: // what was not taken is old
				default:
				}
				ch <- data
			}
		}
		s.live.mu.Unlock()
		last = now
	}
}

func (s *Service) figures(now time.Time, over time.Duration) *livev1.Figures {
	out := &livev1.Figures{
		TimeUs: now.UnixMicro(), IntervalMs: uint32(over.Milliseconds()), CallsInFlight: uint64(s.calls.Load()), BytesInFlight: uint64(s.bytes.Load()),
		Waiting: uint64(s.link.Waiting()), Streams: uint64(s.watchers.Load()), Limits: s.live.limits.take(), HeartbeatAgeMs: -1, State: s.system(),
	}
	for _, f := range s.live.table.Take() {
		out.Models = append(out.Models, &livev1.ModelFigures{
			Model: f.Model, Answers: f.Answers, Degraded: f.Degraded, Errors: f.Errors,
			P50Us: f.P50, P90Us: f.P90, P99Us: f.P99, MaxUs: f.Max, BatchRows: f.BatchRows,
		})
	}
	if parts := s.parts.Load(); parts != nil {
		for _, p := range parts.Parts() {
			out.Parts = append(out.Parts, &livev1.Part{Process: gatewaySubject, Name: p.Part, Status: p.Status, Reason: p.Reason})
		}
	}
	last := s.live.report.Load()
	if last != nil {
		out.HeartbeatAgeMs = now.Sub(last.came).Milliseconds()
	}
	out.Parts = append(out.Parts, sidecarParts(last)...)
	return out
}

// sidecarParts is how the sidecar's parts are, by its last heartbeat.
func sidecarParts(last *report) []*livev1.Part {
	names, err := safety.SidecarParts()
	if err != nil {
		return nil
	}
	out := make([]*livev1.Part, 0, len(names))
	for _, name := range names {
		part := &livev1.Part{Process: sidecarSubject, Name: name, Status: "UNKNOWN"}
		if last != nil && last.supervision != nil {
			part.Status = safety.SupervisionOK
			for _, text := range last.supervision.Expired { // "worker/m: why" is of the part worker
				if what, why, _ := strings.Cut(text, ": "); what == name || strings.HasPrefix(what, name+"/") {
					part.Status, part.Reason = safety.SupervisionExpired, text
					if what == name {
						part.Reason = why
					}
				}
			}
		}
		out = append(out, part)
	}
	return out
}

// watchAll is LiveService.Watch.
func (s *Service) watchAll(c *streamCall) error {
	request := c.request.(*livev1.WatchRequest)
	f, err := s.hub.subscribe(s.limits.WatchQueueMax, request.Resume)
	if err != nil {
		return err
	}
	defer s.hub.unsubscribe(f.came)
	taken, end := s.followFigures()
	defer end()
	shown := s.live.outputs.follow(s, c.caller.Tenant, request.Sources)
	defer shown.end()
	hello := &livev1.Hello{
		ServerVersion: contract.Version, ContractDigest: contract.Digest, State: s.system(), Resume: f.resume, TimeUs: time.Now().UnixMicro(),
		Control: c.caller.Control, Reads: c.caller.Reads, Frames: c.caller.Frames,
	}
	if err := c.tell(&livev1.WatchResponse{Of: &livev1.WatchResponse_Hello{Hello: hello}}); err != nil {
		return err
	}
	for _, e := range f.missed {
		if err := s.tellEvent(c, e); err != nil {
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
			if err := s.tellEvent(c, e); err != nil {
				return err
			}
		case data := <-taken:
			if err := c.send(data); err != nil {
				return err
			}
		case <-shown.news:
			if data := shown.next(); data != nil {
				if err := c.send(data); err != nil {
					return err
				}
			}
		}
	}
}

func (c *streamCall) tell(m proto.Message) error {
	data, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	return c.send(data)
}

// tellEvent sends an event, a change of state with what the whole is now.
func (s *Service) tellEvent(c *streamCall, e *livev1.Event) error {
	told := &livev1.Event{Resume: e.Resume, Of: e.Of}
	if e.GetTransition() != nil {
		told.State = s.system()
	}
	return c.tell(&livev1.WatchResponse{Of: &livev1.WatchResponse_Event{Event: told}})
}
