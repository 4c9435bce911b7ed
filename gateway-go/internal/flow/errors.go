// Package flow takes a call from an edge to its answer: limits, rules, routing,
// and the one table that maps internal errors to what a caller sees.
package flow

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"vigil/gateway/internal/auditlog"
	"vigil/gateway/internal/events"
	"vigil/gateway/internal/link"
	"vigil/gateway/internal/rules"
)

const (
	domain = "vigil"
	// violationsShown are listed; fit cuts what is too long for a client.
	violationsShown = 32
	retryAfter      = 50 * time.Millisecond
)

// CallError is what a caller gets instead of an answer. Text never holds a
// path, a stack or an internal address.
type CallError struct {
	Code       codes.Code
	Event      uint32
	Reason     string
	Text       string
	Violations []rules.Violation
	Metadata   map[string]string
	// RetryAfter is when another try makes sense; 0: retryAfter.
	RetryAfter time.Duration
	// FromSidecar: the sidecar has made the record and the details already.
	FromSidecar bool
	status      *statuspb.Status
	// standIn: the service failed, not the caller, so that a stand-in may answer.
	standIn bool
}

func (e *CallError) Error() string { return e.Text }

// errDraining is what callers get while the gateway shuts down.
var errDraining = &CallError{Code: codes.Unavailable, Event: events.Unavailable, Reason: "DRAINING",
	Text: "the gateway is shutting down; try another"}

// limitError says that a named limit was hit.
func limitError(limit string, format string, args ...any) *CallError {
	return &CallError{
		Code: codes.ResourceExhausted, Event: events.LimitHit, Reason: "LIMIT_HIT",
		Text: fmt.Sprintf(format, args...) + " (" + limit + ")", Metadata: map[string]string{"limit": limit},
	}
}

// mapError is the table from internal errors to what the caller gets.
func mapError(err error) *CallError {
	var call *CallError
	var broken *rules.Error
	var unwritten *link.LogError
	var late *link.LateError
	switch {
	case errors.As(err, &call):
		return call
	case errors.As(err, &broken):
		return &CallError{Code: codes.InvalidArgument, Event: events.ContractViolation, Reason: "CONTRACT_VIOLATION",
			Text: broken.Error(), Violations: broken.Violations}
	case errors.Is(err, context.DeadlineExceeded):
		return &CallError{Code: codes.DeadlineExceeded, Event: events.DeadlineExceeded, Reason: "DEADLINE_EXCEEDED",
			Text: "the deadline passed before the answer came"}
	case errors.Is(err, context.Canceled):
		return &CallError{Code: codes.Canceled, Event: events.Cancelled, Reason: "CANCELLED", Text: "the caller went away"}
	case errors.Is(err, link.ErrSilent):
		return &CallError{Code: codes.Unavailable, Event: events.Unavailable, Reason: "SIDECAR_SILENT",
			Text: "the sidecar does not answer; it is being supervised, try again"}
	case errors.Is(err, link.ErrDown):
		return &CallError{Code: codes.Unavailable, Event: events.Unavailable, Reason: "SIDECAR_DOWN",
			Text: "no sidecar can take the call; it is being restarted, try again"}
	case errors.As(err, &unwritten):
		return &CallError{Code: codes.Unavailable, Event: events.Unavailable, Reason: "AUDIT_FAILED",
			Text: unwritten.Reason + "; no answer leaves without its record"}
	case errors.As(err, &late):
		limit, what := "flow.wait_max_ms", "the call would not get its turn in time"
		if late.Needed != 0 {
			limit, what = "deadline", "the call would not be answered in time"
		}
		e := limitError(limit, "%s: %v", what, late)
		e.Reason, e.RetryAfter = "WOULD_BE_LATE", late.Wait
		return e
	case errors.Is(err, link.ErrCrowded):
		return limitError("limits.calls_in_flight_max", "%v", link.ErrCrowded)
	case errors.Is(err, link.ErrSlowReader):
		return limitError("stream_queue", "the reader of the stream is too slow")
	case errors.Is(err, auditlog.ErrFailed):
		return &CallError{Code: codes.Unavailable, Event: events.Unavailable, Reason: "AUDIT_FAILED",
			Text: "the audit log cannot be written; no answer leaves without its record"}
	}
	return &CallError{Code: codes.Internal, Event: events.InternalError, Reason: "INTERNAL",
		Text: "internal error; the log has the detail"}
}

// valid is a text that a message can hold.
func valid(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }

// Status is the error in the form of google.rpc, with BadRequest, ErrorInfo
// and RetryInfo as they apply.
func (e *CallError) Status(traceID string) *statuspb.Status {
	if e.status != nil {
		return fit(e.status)
	}
	s := &statuspb.Status{Code: int32(e.Code), Message: valid(e.Text)}
	add := func(m proto.Message) {
		if packed, err := anypb.New(m); err == nil {
			s.Details = append(s.Details, packed)
		}
	}
	if len(e.Violations) > 0 {
		bad := &errdetails.BadRequest{}
		for _, v := range e.Violations[:min(len(e.Violations), violationsShown)] {
			bad.FieldViolations = append(bad.FieldViolations,
				&errdetails.BadRequest_FieldViolation{Field: valid(v.Field), Description: valid(v.Description)})
		}
		if more := len(e.Violations) - violationsShown; more > 0 {
			bad.FieldViolations = append(bad.FieldViolations,
				&errdetails.BadRequest_FieldViolation{Description: fmt.Sprintf("%d more fields are violated", more)})
		}
		add(bad)
	}
	metadata := map[string]string{"event": fmt.Sprintf("DIA-%d", e.Event), "trace_id": traceID}
	for k, v := range e.Metadata {
		metadata[k] = valid(v)
	}
	add(&errdetails.ErrorInfo{Reason: e.Reason, Domain: domain, Metadata: metadata})
	if e.Code == codes.ResourceExhausted || e.Code == codes.Unavailable {
		add(&errdetails.RetryInfo{RetryDelay: durationpb.New(cmp.Or(e.RetryAfter, retryAfter))})
	}
	return fit(s)
}
