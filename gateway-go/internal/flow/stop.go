package flow

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	safetyv1 "vigil/gateway/gen/vigil/safety/v1"
	"vigil/gateway/internal/events"
	"vigil/gateway/internal/safety"
)

const historyDefault = 100

// restoreStops puts subjects into the stops that were kept over a restart.
func (s *Service) restoreStops() {
	for subject, stop := range s.latch.Stops() {
		s.monitor.Restore(subject, stop)
	}
	if s.latch.Unreadable != "" {
		stop := safety.Stop{Reason: s.latch.Unreadable, SinceUs: time.Now().UnixMicro()}
		s.latch.Assume(sidecarSubject, stop)
		s.monitor.Restore(sidecarSubject, stop)
	}
}

// actionFailed tells what the table requested and could not be done. A stop that
// was not kept on disk is tried again.
func (s *Service) actionFailed(subject, text string) {
	s.systemEvent(events.ActionFailed, subject+": "+text)
	s.log.Error("a safety action failed", "subject", subject, "reason", text)
}

// stopped says why no call is answered while the sidecar, the own log or the
// gateway itself is stopped safely.
func (s *Service) stopped() error {
	for _, subject := range ownSubjects {
		if status := s.monitor.Status(subject); status.State == s.monitor.Table().Latched {
			return &CallError{
				Code: codes.Unavailable, Event: events.Unavailable, Reason: "SAFE_STOP",
				Text: fmt.Sprintf("%s is stopped safely (%s); a person has to reset it: vigil safety reset", subject, status.Reason),
			}
		}
	}
	return nil
}

// reset ends latched stops of the gateway's own subjects; where none is meant,
// the sidecar answers for its own.
func reset(_ context.Context, s *Service, m proto.Message) (proto.Message, error) {
	request := m.(*safetyv1.ResetRequest)
	var done []string
	for _, subject := range ownSubjects {
		if (request.Subject == "" || request.Subject == subject) && s.monitor.Reset(subject, request.Reason, request.By) {
			done = append(done, subject)
		}
	}
	if len(done) > 0 {
		return &safetyv1.ResetResponse{Subjects: done, State: s.system()}, nil
	}
	if slices.Contains(ownSubjects, request.Subject) {
		return nil, &CallError{
			Code: codes.FailedPrecondition, Event: events.SemanticViolation, Reason: "NOT_STOPPED",
			Text: fmt.Sprintf("subject '%s' is not stopped safely; vigil safety status shows the states", request.Subject),
		}
	}
	return nil, errNotHere
}

// history gives the latest changes of both processes, oldest first.
func history(_ context.Context, s *Service, m proto.Message) (proto.Message, error) {
	request := m.(*safetyv1.HistoryRequest)
	limit := int(request.Limit)
	if limit == 0 {
		limit = historyDefault
	}
	found := slices.DeleteFunc(s.hub.transitions(), func(t *safetyv1.Transition) bool {
		return len(request.Subjects) > 0 && !slices.Contains(request.Subjects, t.Subject)
	})
	return &safetyv1.HistoryResponse{Transitions: found[max(0, len(found)-limit):]}, nil
}
