package flow

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/time/rate"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	linkv1 "vigil/gateway/gen/vigil/link/v1"

	"vigil/gateway/internal/auditlog"
	"vigil/gateway/internal/events"
	"vigil/gateway/internal/fair"
	"vigil/gateway/internal/link"
	"vigil/gateway/internal/review"
	"vigil/gateway/internal/rules"
	"vigil/gateway/internal/safety"
	"vigil/gateway/internal/sharedmemory"
	"vigil/gateway/internal/telemetry"
)

// deadlineSlack is how early a client's own clock may end a call.
const deadlineSlack = 20 * time.Millisecond

// Limits of the service, each named in the settings.
type Limits struct {
	MessageBytesMax  int64
	CallsInFlightMax int64
	BytesInFlightMax int64
	WatchersMax      int64
	WatchQueueMax    int64
	// WatchFrames bounds the pictures that watchers of a source get.
	WatchFrames FrameLimits
	// SupervisionTimeout is how long the sidecar's supervision may stand still,
	// RestartAfter how much longer until the sidecar is replaced; 0: never.
	SupervisionTimeout, RestartAfter time.Duration
	// LadderAnswersMax and LadderBytesMax bound the last good answers that are kept.
	LadderAnswersMax, LadderBytesMax int64
	// LadderFallback is how long a fallback model may take.
	LadderFallback time.Duration
	// Regions of shared memory.
	Regions sharedmemory.Options
	// Fairness says which flows calls belong to.
	Fairness Fairness
	// Injection offers SafetyService.Inject.
	Injection bool
}

// Caller is what an edge knows of who calls.
type Caller struct {
	Trace telemetry.Trace
	// Control and Reads say whether the listener takes such calls, Frames whether it gives pictures.
	Control, Reads, Frames bool
	// Tenant is what the caller says of itself; nothing vouches for it. Class is that of the trace.
	Tenant, Class string
}

// Answer is a reply with what travels beside it.
type Answer struct {
	Message       []byte
	AuditPosition string
	SafetyState   string
	// Quality is empty for the model's own answer, else "cache" or "rule"; then Source
	// says what stood in, and AgeMs how old a last good answer is.
	Quality, Source string
	AgeMs           int64
}

// Service is the one service layer under both edges. All methods may be called
// at the same time.
type Service struct {
	limits  Limits
	link    *link.Client
	audit   *auditlog.Recorder
	reader  *review.Reader
	monitor *safety.Monitor
	latch   *safety.LatchFile
	tally   *safety.Tally
	boot    string // the sidecar's last run; of the link's goroutine, as is seen
	seen    supervised
	metrics *telemetry.Metrics
	tracer  *telemetry.Tracer
	log     *slog.Logger
	hub     hub
	regions *sharedmemory.Regions
	flows   *fair.Table

	refusalLog             *rate.Limiter // lines in the log; records and counts are complete
	calls, bytes, watchers atomic.Int64
	// memoryFree is what the sidecar may still take by its last heartbeat; nil: not known.
	memoryFree atomic.Pointer[int64]
	unread     atomic.Int64
	standIns   *standIns
	draining   atomic.Bool
	drained    context.Context // done once draining begins
	drain      context.CancelFunc
	running    sync.WaitGroup

	standStill func(time.Duration) // injects a fault into the native listener

	live     live
	subjects atomic.Pointer[subjects]
	parts    atomic.Pointer[safety.Supervision]
	ownWorst atomic.Pointer[string]
}

// New wires a service; parameters are those of the safety table, latch keeps its
// stops. AttachLink must follow before it is used.
func New(
	limits Limits, parameters map[string]int64, latch *safety.LatchFile, tally *safety.Tally, audit *auditlog.Recorder, metrics *telemetry.Metrics,
	tracer *telemetry.Tracer, log *slog.Logger,
) (*Service, error) {
	table, err := safety.Machine(parameters)
	if err != nil {
		return nil, err
	}
	s := &Service{limits: limits, latch: latch, tally: tally, audit: audit, metrics: metrics, tracer: tracer, log: log, standIns: newStandIns(limits),
		regions: sharedmemory.New(limits.Regions), flows: limits.Fairness.table(), refusalLog: rate.NewLimiter(refusalLines, refusalLines)}
	s.drained, s.drain = context.WithCancel(context.Background())
	s.monitor = safety.NewMonitor(table, s.stateChanged, map[string]func(safety.Change) error{
		"latch": func(c safety.Change) error {
			return latch.Keep(c.Subject, safety.Stop{Reason: c.Reason, SinceUs: c.TimeUs})
		},
		"unlatch": func(c safety.Change) error { return latch.Drop(c.Subject) },
	}, s.actionFailed)
	s.restoreStops()
	if problem := tally.Problem(); problem != "" {
		s.systemEvent(events.ActionFailed, problem)
	}
	s.subjects.Store(&subjects{})
	s.refreshOwn()
	return s, nil
}

// AttachReader gives the service what reads the logs for callers.
func (s *Service) AttachReader(r *review.Reader) { s.reader = r }

// AttachLink gives the service its link to the sidecar.
func (s *Service) AttachLink(l *link.Client) { s.link = l }

// call is one call on its way.
type call struct {
	method    *Method
	caller    *Caller
	start     time.Time
	model     string
	version   string
	requestID string
	rows      uint32 // of the batch that it was in; 0: unknown
	// handedOver: the sidecar had the call, and may have a record of it that did not reach the caller.
	handedOver bool
}

// Unary carries one call to its answer. The error is what the caller gets; the
// answer then carries only what travels beside it.
func (s *Service) Unary(ctx context.Context, m *Method, caller *Caller, message []byte) (*Answer, *CallError) {
	c := &call{method: m, caller: caller, start: time.Now()}
	size := int64(len(message))
	flow := s.flowOf(c)
	if err := s.enter(c, flow, size); err != nil {
		return s.turnDown(c, err), err
	}
	defer s.leave(flow, size)
	ctx = link.WithFlow(ctx, flow)
	span := s.tracer.Start(&caller.Trace, m.Name)
	answer, err := s.unary(ctx, c, message)
	if err != nil {
		e := mapError(deadlineOf(ctx, err))
		if e.Code == codes.Internal && !e.FromSidecar {
			s.log.Error("internal error", "method", m.Name, "trace_id", caller.Trace.ID(), "error", err.Error())
		}
		if answer == nil {
			answer = s.refuse(c, e)
		}
		s.finish(c, e.Code, answer)
		span.End(e.Code.String(), c.model, c.version)
		return answer, e
	}
	s.finish(c, codes.OK, answer)
	span.End("OK", c.model, c.version)
	return answer, nil
}

func (s *Service) unary(ctx context.Context, c *call, message []byte) (*Answer, error) {
	if err := c.forbidden(); err != nil {
		return nil, err
	}
	request, err := rules.Decode(c.method.Input, message)
	if err != nil {
		return nil, err
	}
	if c.method.local != nil {
		reply, err := c.method.local(ctx, s, request)
		if err == nil {
			return s.local(c, request, reply)
		}
		if !errors.Is(err, errNotHere) {
			return nil, err
		}
	}
	if c.method.model != nil {
		c.model, c.requestID = c.method.model(request)
	}
	if err := s.stopped(); err != nil {
		return nil, err
	}
	if c.method.Control || c.method.model != nil {
		if err := s.unrecordable(); err != nil {
			return nil, err
		}
	}
	request, message, regions, err := s.fromRegions(c, request, message)
	if err != nil {
		return nil, err
	}
	defer regions.done()
	answer, err := s.answered(ctx, c, request, message)
	if err == nil && c.method.applied != nil {
		c.method.applied(s, request)
	}
	return regions.toRegions(c, answer, err)
}

// answered has a call answered by the sidecar, or by what stands in for its model.
func (s *Service) answered(ctx context.Context, c *call, request proto.Message, message []byte) (*Answer, error) {
	if l, ok := (*s.standIns.ladders.Load())[c.model]; ok && c.method.model != nil {
		return s.withLadder(ctx, c, l, request, message)
	}
	reply, err := s.link.Call(ctx, c.model, c.method.Name, message, c.context(ctx))
	if err != nil {
		c.handedOver = !errors.Is(err, link.ErrNotSent)
		return nil, err
	}
	c.served(reply)
	return s.fromReply(reply)
}

// served notes what served a call, which is not always what was asked for.
func (c *call) served(r *linkv1.Reply) { c.version, c.rows = r.ModelVersion, r.BatchSize }

// tenantBytesMax is the longest name of a tenant.
const tenantBytesMax = 256

// forbidden says why a call is not answered on the listener that it came by, or
// for whom it says it comes.
func (c *call) forbidden() error {
	switch n := len(c.caller.Tenant); {
	case n > tenantBytesMax:
		c.caller.Tenant = ""
		return violation("vigil-tenant", fmt.Sprintf("has %d bytes, the limit is %d", n, tenantBytesMax))
	case !utf8.ValidString(c.caller.Tenant):
		c.caller.Tenant = ""
		return violation("vigil-tenant", "is not UTF-8")
	}
	text := ""
	switch {
	// SR-037
	case c.method.Control && !c.caller.Control:
		text = "control calls are answered on loopback listeners only (setting control.allow_remote)"
	case c.method.Reads && !c.caller.Reads:
		text = "logs are read on loopback listeners only (setting audit.read_remote)"
	default:
		return nil
	}
	return &CallError{Code: codes.PermissionDenied, Event: events.ControlForbidden, Reason: "CONTROL_FORBIDDEN", Text: text}
}

// deadlineOf tells a caller whose time was over from one that went away: clients
// withdraw a call when its deadline passes, often a moment before we see that.
func deadlineOf(ctx context.Context, err error) error {
	if deadline, ok := ctx.Deadline(); ok && errors.Is(err, context.Canceled) && time.Until(deadline) < deadlineSlack {
		return context.DeadlineExceeded
	}
	return err
}

// context is what travels with a call over the link.
func (c *call) context(ctx context.Context) *linkv1.Context {
	out := &linkv1.Context{
		TraceId: c.caller.Trace.TraceID[:], SpanId: c.caller.Trace.SpanID[:], Sampled: c.caller.Trace.Sampled,
		Tenant: c.caller.Tenant, Control: c.caller.Control,
	}
	if deadline, ok := ctx.Deadline(); ok {
		out.TimeoutUs = uint64(max(1, time.Until(deadline).Microseconds()))
	}
	return out
}

func (s *Service) fromReply(r *linkv1.Reply) (*Answer, error) {
	state := s.own()
	if r.SafetyState == "" {
		state = s.Whole()
	} else if ranks := s.monitor.Table().Ranks; ranks[r.SafetyState] > ranks[state] {
		state = r.SafetyState
	}
	answer := &Answer{Message: r.Message, AuditPosition: r.AuditPosition, SafetyState: state}
	if r.Code == 0 {
		return answer, nil
	}
	detailed := &statuspb.Status{}
	if len(r.Status) == 0 || proto.Unmarshal(r.Status, detailed) != nil {
		detailed = &statuspb.Status{Code: int32(r.Code), Message: r.Text}
	}
	return answer, &CallError{Code: codes.Code(r.Code), Text: r.Text, FromSidecar: true, status: detailed, standIn: r.StandIn}
}

func (s *Service) finish(c *call, code codes.Code, answer *Answer) {
	quality := ""
	if code == codes.OK {
		quality = cmp.Or(answer.Quality, "normal")
	}
	model, version := c.model, c.version
	if code != codes.OK && !s.known(model) {
		model, version = "", "" // names that clients invent must not become metric labels
	}
	if c.method.model != nil {
		s.counted(model, code, quality, c)
	}
	s.metrics.Request(model, version, c.method.Short, code.String(), quality, time.Since(c.start), &c.caller.Trace)
}

// Drain refuses new calls and waits for the running ones, at most this long.
func (s *Service) Drain(timeout time.Duration) bool {
	s.draining.Store(true)
	s.drain()
	done := make(chan struct{})
	go func() { s.running.Wait(); close(done) }()
	select {
	case <-done:
		return true
	case <-time.After(timeout):
		return false
	}
}

// TraceHex is a trace id as text.
func TraceHex(id [16]byte) string { return hex.EncodeToString(id[:]) }
