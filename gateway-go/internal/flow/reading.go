package flow

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	auditv1 "vigil/gateway/gen/vigil/audit/v1"

	"vigil/gateway/internal/events"
	"vigil/gateway/internal/review"
	"vigil/gateway/internal/rules"
)

var logNames = map[auditv1.Log]string{auditv1.Log_LOG_GATEWAY: "gateway", auditv1.Log_LOG_SIDECAR: "sidecar"}

func violation(field, description string) *CallError {
	return &CallError{Code: codes.InvalidArgument, Event: events.ContractViolation, Reason: "CONTRACT_VIOLATION",
		Text: fmt.Sprintf("contract violation: %s %s", field, description), Violations: []rules.Violation{{Field: field, Description: description}}}
}

func nameOf(log auditv1.Log) (string, error) {
	if name := logNames[log]; name != "" {
		return name, nil
	}
	return "", violation("log", "is not set; allowed are LOG_GATEWAY and LOG_SIDECAR")
}

// readingError is what a caller gets when a log could not be read.
func readingError(err error) error {
	var fault *review.Fault
	switch {
	case errors.Is(err, review.ErrBusy):
		return limitError("audit.readers_max", "other calls are reading logs")
	case errors.As(err, &fault) && fault.Code == codes.InvalidArgument:
		return &CallError{Code: fault.Code, Event: events.ContractViolation, Reason: "CONTRACT_VIOLATION", Text: fault.Text,
			Violations: []rules.Violation{{Field: fault.Field, Description: fault.Text}}}
	case errors.As(err, &fault):
		return &CallError{Code: fault.Code, Event: events.RecordUnavailable, Reason: "RECORD_UNAVAILABLE", Text: fault.Text}
	}
	return err
}

// read runs a task of one reply.
func (s *Service) read(ctx context.Context, log string, task *auditv1.ReadingTask, reply proto.Message) (proto.Message, error) {
	err := s.reader.Read(ctx, log, task, func(data []byte) error { return proto.Unmarshal(data, reply) })
	return reply, readingError(err)
}

func search(ctx context.Context, s *Service, m proto.Message) (proto.Message, error) {
	request := m.(*auditv1.SearchRequest)
	log, err := nameOf(request.Log)
	if err != nil {
		return nil, err
	}
	if request.ToNs > 0 && request.FromNs >= request.ToNs {
		return nil, violation("from_ns", "is not before to_ns")
	}
	for i, id := range request.EventIds {
		if events.Names[id] == "" {
			return nil, violation(fmt.Sprintf("event_ids[%d]", i), "is not in the catalogue of events")
		}
	}
	task := &auditv1.ReadingTask{Of: &auditv1.ReadingTask_Search{Search: request}, TenantHashes: s.reader.Tenants(request.Tenant)}
	return s.read(ctx, log, task, &auditv1.SearchResponse{})
}

func get(ctx context.Context, s *Service, m proto.Message) (proto.Message, error) {
	request := m.(*auditv1.GetRequest)
	log, err := s.reader.LogOf(request.Position)
	if err != nil {
		return nil, readingError(err)
	}
	return s.read(ctx, log, &auditv1.ReadingTask{Of: &auditv1.ReadingTask_Get{Get: request}}, &auditv1.GetResponse{})
}

func prove(ctx context.Context, s *Service, m proto.Message) (proto.Message, error) {
	request := m.(*auditv1.ProveRequest)
	log, err := s.reader.LogOf(request.Position)
	if err != nil {
		return nil, readingError(err)
	}
	return s.read(ctx, log, &auditv1.ReadingTask{Of: &auditv1.ReadingTask_Prove{Prove: request}}, &auditv1.ProveResponse{})
}

func (s *Service) verifyRange(c *streamCall) error {
	request := c.request.(*auditv1.VerifyRangeRequest)
	log, err := nameOf(request.Log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	stop := context.AfterFunc(s.drained, cancel)
	defer stop()
	err = s.reader.Read(ctx, log, &auditv1.ReadingTask{Of: &auditv1.ReadingTask_VerifyRange{VerifyRange: request}}, c.send)
	if err != nil && s.drained.Err() != nil {
		return errDraining
	}
	return readingError(err)
}
