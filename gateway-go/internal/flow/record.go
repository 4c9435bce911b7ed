package flow

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	auditv1 "vigil/gateway/gen/vigil/audit/v1"

	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/auditlog"
	"vigil/gateway/internal/events"
	"vigil/gateway/internal/telemetry"
)

// local answers a call in the gateway itself; a control call leaves a record
// of its answer first.
func (s *Service) local(c *call, request, reply proto.Message) (*Answer, error) {
	data, err := proto.Marshal(reply)
	answer := &Answer{Message: data, SafetyState: s.Whole()}
	if err != nil || !c.method.Control || s.audit == nil {
		return answer, err
	}
	payload := &auditv1.CallPayload{Method: c.method.Name}
	if r, ok := request.(interface{ GetReason() string }); ok {
		payload.Reason = clip(r.GetReason(), 256)
	}
	words, err := proto.Marshal(payload)
	if err != nil {
		return nil, err
	}
	sequence, err := s.audit.Append(&auditlog.Entry{
		TenantHash: c.caller.tenantHash(), Kind: layout.KindAnswer, EventID: events.ControlAnswer, SafetyState: auditlog.SafetyCode(answer.SafetyState), Quality: 1,
		TraceID: c.caller.Trace.TraceID, SpanID: c.caller.Trace.SpanID, LatencyNs: uint64(time.Since(c.start)), Payload: words,
	})
	if err != nil && s.audit.Policy == auditlog.Refuse {
		return nil, err
	}
	if err == nil {
		s.metrics.AuditRecords.WithLabelValues("gateway").Inc()
	}
	answer.AuditPosition = s.audit.Position(sequence)
	return answer, nil
}

// tenantHash is how a tenant stands in a record; zeros for none.
func (c *Caller) tenantHash() (hash [32]byte) {
	if c.Tenant != "" {
		hash = sha256.Sum256([]byte(c.Tenant))
	}
	return hash
}

// refuse makes the record of a refusal that the gateway decided.
func (s *Service) refuse(c *call, e *CallError) *Answer {
	answer := &Answer{SafetyState: s.Whole()}
	if limit := e.Metadata["limit"]; limit != "" {
		s.metrics.LimitHits.WithLabelValues(limit).Inc()
		s.live.limits.hit(limit)
		if s.refusalLog.Allow() {
			s.log.Warn("call refused", "method", c.method.Name, "limit", limit, "trace_id", c.caller.Trace.ID(), "reason", clip(e.Text, 256))
		}
	}
	payload := &auditv1.CallPayload{Method: c.method.Name, Model: clip(c.model, 256), RequestId: clip(c.requestID, 256), Message: clip(e.Text, 1024), HandedOver: c.handedOver}
	for _, v := range e.Violations[:min(len(e.Violations), 64)] {
		payload.Violations = append(payload.Violations,
			&auditv1.FieldViolation{Field: clip(v.Field, 256), Description: clip(v.Description, 256)})
	}
	data, err := proto.Marshal(payload)
	if err != nil {
		data = nil
	}
	entry := &auditlog.Entry{
		Kind: layout.KindRefusal, EventID: e.Event, SafetyState: auditlog.SafetyCode(answer.SafetyState),
		StatusCode: uint32(e.Code), TraceID: c.caller.Trace.TraceID, SpanID: c.caller.Trace.SpanID,
		LatencyNs: uint64(time.Since(c.start)), Payload: data,
	}
	if c.requestID != "" {
		entry.RequestIDHash = sha256.Sum256([]byte(c.requestID))
	}
	entry.TenantHash = c.caller.tenantHash()
	answer.AuditPosition = s.record(entry)
	s.metrics.Refusals.WithLabelValues(c.method.Short, e.Code.String()).Inc()
	return answer
}

// TurnAway records a request that an edge refused before it was a call, and
// returns the record's position. Path is what was asked for.
func (s *Service) TurnAway(path string, event uint32, code codes.Code, text string, trace *telemetry.Trace) string {
	payload, err := proto.Marshal(&auditv1.CallPayload{Method: clip(path, 256), Message: clip(text, 1024)})
	if err != nil {
		payload = nil
	}
	s.metrics.Refusals.WithLabelValues("transport", code.String()).Inc()
	return s.record(&auditlog.Entry{
		Kind: layout.KindRefusal, EventID: event, SafetyState: auditlog.SafetyCode(s.Whole()),
		StatusCode: uint32(code), TraceID: trace.TraceID, SpanID: trace.SpanID, Payload: payload,
	})
}

// clip cuts a text for a record; what a caller sent may be no UTF-8, which no message can hold.
func clip(text string, size int) string {
	if text = strings.ToValidUTF8(text, "\uFFFD"); len(text) <= size {
		return text
	}
	for size > 0 && text[size]&0xC0 == 0x80 {
		size--
	}
	return text[:size]
}

// record appends to the gateway's own log; a refusal leaves even when the log
// fails, since it promises nothing.
func (s *Service) record(e *auditlog.Entry) string {
	if s.audit == nil {
		return ""
	}
	sequence, err := s.audit.Append(e)
	if err != nil {
		s.metrics.AuditFailures.Inc()
		s.log.Error("event not recorded", "dia", e.EventID, "error", err.Error())
	} else if sequence != auditlog.Aggregated {
		s.metrics.AuditRecords.WithLabelValues("gateway").Inc()
	}
	return s.audit.Position(sequence)
}

// unrecordable refuses a call while the gateway's log cannot be written, when the policy says so.
func (s *Service) unrecordable() error {
	if s.audit == nil || s.audit.Policy != auditlog.Refuse {
		return nil
	}
	if failure := s.audit.Failure(); failure != "" {
		return errors.Join(auditlog.ErrFailed, errors.New(failure))
	}
	return nil
}

// WatchLog feeds the state machine of the gateway's own log, until ctx ends. With
// audit.on_failure = continue only metrics tell.
func (s *Service) WatchLog(ctx context.Context) {
	if s.audit == nil || s.audit.Policy == auditlog.Continue {
		return
	}
	tick := time.NewTicker(logGap)
	defer tick.Stop()
	for {
		s.follow(logSubject, s.audit.Failure(), "the log is written")
		_ = s.latch.Retry() // that it failed was told
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
