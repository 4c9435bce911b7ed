package flow

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
	perceptionv1 "vigil/gateway/gen/vigil/perception/v1"
	safetyv1 "vigil/gateway/gen/vigil/safety/v1"

	auditv1 "vigil/gateway/gen/vigil/audit/v1"

	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/auditlog"
	"vigil/gateway/internal/events"
	"vigil/gateway/internal/ladder"
	"vigil/gateway/internal/link"
	"vigil/gateway/internal/rules"
)

// standIns is what answers in place of models, and which models rest now.
type standIns struct {
	cache   *ladder.Cache
	ladders atomic.Pointer[map[string]ladder.Ladder]
	// resting: models that have a ladder and are not Normal, with the error that their
	// calls would get. A stop, which nothing stands in for, outlives the sidecar here.
	resting atomic.Pointer[map[string]*CallError]
	// stopped: something else of the sidecar than a model is stopped safely, and so is
	// every model; it outlives the sidecar likewise.
	stopped atomic.Pointer[CallError]
}

func newStandIns(limits Limits) *standIns {
	out := &standIns{cache: ladder.NewCache(int(limits.LadderAnswersMax), limits.LadderBytesMax)}
	out.ladders.Store(&map[string]ladder.Ladder{})
	out.resting.Store(&map[string]*CallError{})
	return out
}

// LinkLadders implements link.Observer.
func (s *Service) LinkLadders(l *linkv1.Ladders) {
	known, before := make(map[string]ladder.Ladder, len(l.Ladders)), *s.standIns.ladders.Load()
	for _, model := range l.Waiting {
		if one, ok := before[model]; ok {
			known[model] = one
		}
	}
	for _, one := range l.Ladders {
		known[one.Model] = ladder.Ladder{Ladder: one}
	}
	s.standIns.ladders.Store(&known)
}

// rest notes which models with a ladder do not answer now, and ends their calls under way.
func (s *Service) rest(states []*safetyv1.SubjectState) {
	known, before := *s.standIns.ladders.Load(), *s.standIns.resting.Load()
	if len(known) == 0 {
		return
	}
	resting := map[string]*CallError{}
	var stopped *CallError
	for _, x := range states {
		model, is := modelOfSubject(x.Subject)
		if !is && x.State == safetyv1.State_STATE_SAFE_STOP {
			stopped = &CallError{Code: codes.Unavailable, Event: events.Unavailable, Reason: "SAFE_STOP", Text: fmt.Sprintf(
				"%s is stopped safely (%s); a person has to reset it: vigil safety reset", x.Subject, clip(x.Reason, 512))}
		}
		if !is || x.State == safetyv1.State_STATE_NORMAL || x.State == safetyv1.State_STATE_STARTING {
			continue
		}
		e := before[model]
		if text := restText(model, x); e == nil || e.Text != text {
			e = &CallError{Code: codes.Unavailable, Event: events.Unavailable, Reason: "MODEL_DEGRADED", Text: text,
				// SR-027
				standIn: x.State != safetyv1.State_STATE_SAFE_STOP}
		}
		resting[model] = e
	}
	s.standIns.resting.Store(&resting)
	s.standIns.stopped.Store(stopped)
	for model, e := range resting { // each time: a call may have been sent just before it was known
		s.link.Rest(model, e)
	}
}

// onlyStops is what still holds of resting models when the sidecar is gone.
func (s *Service) onlyStops() {
	stops := map[string]*CallError{}
	for model, e := range *s.standIns.resting.Load() {
		if !e.standIn {
			stops[model] = e
		}
	}
	s.standIns.resting.Store(&stops)
}

func modelOfSubject(subject string) (string, bool) {
	const prefix = "model/"
	if len(subject) <= len(prefix) || subject[:len(prefix)] != prefix {
		return "", false
	}
	return subject[len(prefix):], true
}

func restText(model string, x *safetyv1.SubjectState) string {
	state := x.State.String()[len("STATE_"):]
	if x.State == safetyv1.State_STATE_SAFE_STOP {
		return fmt.Sprintf("model '%s' is stopped safely (%s); a person has to reset it: vigil safety reset", model, clip(x.Reason, 512))
	}
	return fmt.Sprintf("model '%s' is %s (%s); its ladder answers until it is NORMAL", model, state, clip(x.Reason, 512))
}

// withLadder carries a call of a model that something stands in for.
func (s *Service) withLadder(ctx context.Context, c *call, l ladder.Ladder, request proto.Message, message []byte) (*Answer, error) {
	if e := (*s.standIns.resting.Load())[c.model]; e != nil && l.Serves(request) {
		return s.climb(ctx, c, l, request, nil, e)
	}
	reply, err := s.link.CallOrStandIn(ctx, c.model, c.method.Name, message, c.context(ctx))
	if err != nil {
		c.handedOver = !errors.Is(err, link.ErrNotSent)
		return s.climb(ctx, c, l, request, nil, err)
	}
	c.served(reply)
	answer, err := s.fromReply(reply)
	if err != nil {
		c.handedOver = true
		return s.climb(ctx, c, l, request, answer, err)
	}
	if l.LastGoodMs > 0 && reply.ModelVersion == l.Version { // else a swap was under way
		if key, ok := l.KeyOf(c.caller.Tenant, request); ok {
			s.standIns.cache.Keep(key, &ladder.Good{Message: answer.Message, Position: answer.AuditPosition, Version: reply.ModelVersion, Given: c.start})
		}
	}
	return answer, nil
}

// mayStandIn says whether an error is the service's own, so that something may answer
// in its place.
func mayStandIn(err error) bool {
	var call *CallError
	var unwritten *link.LogError
	switch {
	case errors.As(err, &call):
		return call.standIn
	case errors.As(err, &unwritten):
		return true // the sidecar's log; what stands in has its record in this one
	}
	return errors.Is(err, link.ErrDown) || errors.Is(err, link.ErrSilent)
}

// climb answers in place of the model: rung by rung, or with the error that the model
// gave (given: what travels beside it).
func (s *Service) climb(ctx context.Context, c *call, l ladder.Ladder, request proto.Message, given *Answer, cause error) (*Answer, error) {
	if !mayStandIn(cause) || ctx.Err() != nil || !l.Serves(request) {
		return given, cause
	}
	if err := s.nothingStandsIn(c.model); err != nil {
		return nil, err
	}
	if key, ok := l.KeyOf(c.caller.Tenant, request); ok && l.LastGoodMs > 0 {
		now := time.Now()
		if good := s.standIns.cache.Get(key, l.LastGoodMax(), now); good != nil {
			if a, err := l.Repeat(request, good, now); err == nil {
				return s.standIn(c, request, a, cause)
			} else if e := invalid(err); e != nil {
				return nil, e
			}
		}
	}
	answer, asked := s.fallback(ctx, c, l, request)
	if err := s.nothingStandsIn(c.model); err != nil { // it took its time
		return nil, err
	}
	if answer != nil {
		return answer, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	a, err := l.Constant(request)
	if err == nil {
		return s.standIn(c, request, a, cause)
	}
	if e := invalid(err); e != nil {
		return nil, e
	}
	if asked && given != nil { // the sidecar has two refusals of this call now: this one counts
		e := *mapError(cause)
		e.FromSidecar, e.Event = false, events.Unavailable
		return nil, &e
	}
	return given, cause
}

// nothingStandsIn says why nothing may for a model: what is stopped safely needs a person.
func (s *Service) nothingStandsIn(model string) error {
	if e := (*s.standIns.resting.Load())[model]; e != nil && !e.standIn {
		return e
	}
	if e := s.standIns.stopped.Load(); e != nil {
		return e
	}
	return s.stopped()
}

// invalid is the refusal of a request that nothing could answer; nil for other errors.
func invalid(err error) error {
	var e *ladder.InvalidError
	if !errors.As(err, &e) {
		return nil
	}
	return &CallError{Code: codes.InvalidArgument, Event: events.SemanticViolation, Reason: "SEMANTIC_VIOLATION", Text: e.Error(),
		Violations: []rules.Violation{{Field: e.Field, Description: e.Text}}}
}

// fallback asks the model that stands in; nil when there is none, or it does not answer
// within its time. Asked says whether the sidecar may have a record of it.
func (s *Service) fallback(ctx context.Context, c *call, l ladder.Ladder, request proto.Message) (out *Answer, asked bool) {
	if (*s.standIns.resting.Load())[l.FallbackModel] != nil {
		return nil, false
	}
	message := l.Fallback(request)
	if message == nil {
		return nil, false
	}
	ctx, cancel := context.WithTimeout(ctx, s.limits.LadderFallback)
	defer cancel()
	beside := c.context(ctx)
	beside.StandsFor, beside.AskedBefore = c.model, c.handedOver
	reply, err := s.link.CallOrStandIn(ctx, l.FallbackModel, c.method.Name, message, beside)
	if err != nil {
		asked = !errors.Is(err, link.ErrNotSent)
		c.handedOver = c.handedOver || asked
		return nil, asked
	}
	c.handedOver = true
	answer, err := s.fromReply(reply)
	if err != nil {
		return nil, true
	}
	c.served(reply)
	answer.Quality, answer.Source, answer.SafetyState = "rule", ladder.Model(l.FallbackModel), s.degraded()
	if c.method.Service == openInference {
		answer.Message = ladder.Mark(answer.Message, answer.Quality, answer.Source, 0)
	}
	return answer, true
}

// degraded is the state that the answer of a stand-in says: that of the whole, which may
// not have been told yet why the model does not answer.
func (s *Service) degraded() string {
	if state := s.Whole(); state != "NORMAL" && state != "STARTING" {
		return state
	}
	return "DEGRADED"
}

const openInference = "inference.GRPCInferenceService"

// standIn records what answers in place of the model, and makes the answer.
func (s *Service) standIn(c *call, request proto.Message, a *ladder.Answer, cause error) (*Answer, error) {
	answer := &Answer{SafetyState: s.degraded(), Quality: a.Quality, Source: a.Source, AgeMs: a.Age.Milliseconds()}
	payload := &auditv1.CallPayload{
		Method: c.method.Name, Model: clip(c.model, 256), RequestId: clip(c.requestID, 256), HandedOver: c.handedOver,
		StandIn: a.Source, AgeMs: a.Age.Milliseconds(), Cause: clip(mapError(cause).Text, 1024),
	}
	if r, ok := request.(interface{ GetSourceId() string }); ok {
		payload.SourceId = clip(r.GetSourceId(), 128)
	}
	if a.First != nil {
		payload.FirstGiven = a.First.Position
	}
	words, err := proto.Marshal(payload)
	if err != nil {
		return nil, err
	}
	if s.audit != nil {
		sequence, err := s.audit.Append(s.standInEntry(c, a, answer, words))
		if err != nil && s.audit.Policy == auditlog.Refuse {
			return nil, err
		}
		if err == nil {
			s.metrics.AuditRecords.WithLabelValues("gateway").Inc()
		}
		answer.AuditPosition = s.audit.Position(sequence)
	}
	c.version = a.ModelVersion
	answer.Message, err = a.Encode(answer.AuditPosition, c.caller.Trace.ID())
	if r, ok := request.(*perceptionv1.DetectRequest); ok && err == nil {
		s.live.outputs.stoodIn(c.caller.Tenant, r, answer.Message, s.limits.WatchFrames)
	}
	return answer, err
}

func (s *Service) standInEntry(c *call, a *ladder.Answer, answer *Answer, words []byte) *auditlog.Entry {
	entry := &auditlog.Entry{
		Kind: layout.KindAnswer, EventID: events.StandInAnswer, SafetyState: auditlog.SafetyCode(answer.SafetyState),
		Quality: qualityCodes[a.Quality], TraceID: c.caller.Trace.TraceID, SpanID: c.caller.Trace.SpanID,
		LatencyNs: uint64(time.Since(c.start)), TenantHash: c.caller.tenantHash(), ModelDigest: a.ModelDigest,
		InputHash: a.InputHash, OutputHash: a.OutHash, Payload: words,
	}
	if c.requestID != "" {
		entry.RequestIDHash = sha256.Sum256([]byte(c.requestID))
	}
	if _, err := fmt.Sscanf(a.ModelVersion, "%d", &entry.ModelVersion); err != nil {
		entry.ModelVersion = 0 // constants have none
	}
	return entry
}

// qualityCodes are the qualities of answers as records have them (proto/audit_record.yaml).
var qualityCodes = map[string]uint8{"normal": 1, "cache": 2, "rule": 3}
