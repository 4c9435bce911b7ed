package flow

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"vigil/gateway/audit/layout"
	"vigil/gateway/gen/inference"
	auditv1 "vigil/gateway/gen/vigil/audit/v1"
	"vigil/gateway/internal/auditlog"
	"vigil/gateway/internal/events"
	"vigil/gateway/internal/rules"
	"vigil/gateway/internal/safety"
)

// gatewaySubject is the gateway itself, as its own supervision finds it.
const gatewaySubject = "gateway"

// ownSubjects are the machines that the gateway keeps.
var ownSubjects = []string{sidecarSubject, logSubject, gatewaySubject}

// Supervise makes the supervision of the gateway's own parts, which judges until ctx is
// done. A part that is expired for stoppedAfter makes health checks fail, so that the
// supervisor of the process replaces it; 0: never.
func (s *Service) Supervise(ctx context.Context, stoppedAfter time.Duration) (*safety.Supervision, error) {
	parts, err := safety.NewSupervision(stoppedAfter, func(part, reason string) { go s.partExpired(part, reason) }, func() []safety.Work {
		return []safety.Work{{Part: "link_reader", Since: s.link.ReadingSince()}, {Part: "link_watch", Since: s.link.LookedAt()}}
	})
	if err != nil {
		return nil, err
	}
	s.parts.Store(parts)
	s.refreshOwn()
	go parts.Run(ctx)
	go s.watchParts(ctx, parts)
	return parts, nil
}

// partExpired records and counts that a part stands still.
func (s *Service) partExpired(part, reason string) {
	what := gatewaySubject + "/" + part
	payload, err := proto.Marshal(&auditv1.SystemPayload{Text: clip(reason, 1024), Fields: map[string]string{"what": what}})
	if err != nil {
		payload = nil
	}
	s.record(&auditlog.Entry{Kind: layout.KindSystem, EventID: events.SupervisionExpired, Payload: payload})
	s.count(safety.CountExpired, what)
	s.log.Error("supervision expired", "what", what, "reason", reason)
}

// PartsStopped says why the gateway is to be replaced; empty when it is not.
func (s *Service) PartsStopped() string {
	if parts := s.parts.Load(); parts != nil {
		return parts.Stopped()
	}
	return ""
}

// watchParts feeds the gateway's machine.
func (s *Service) watchParts(ctx context.Context, parts *safety.Supervision) {
	tick := time.NewTicker(logGap)
	defer tick.Stop()
	for {
		s.follow(gatewaySubject, parts.Expired(), "its parts are well")
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// follow feeds one of the gateway's machines with what is wrong now, or that nothing is.
func (s *Service) follow(subject, wrong, well string) {
	switch state := s.monitor.Status(subject).State; {
	case wrong != "":
		s.monitor.Event(subject, "fault", wrong)
	case state == "STARTING" || state == "DEGRADED":
		s.monitor.Event(subject, "ready", well)
	case state == "RECOVERING":
		s.monitor.Event(subject, "probe_good", well)
	}
}

// Canary goes the way of a call through what is shared by all, without effect, and
// passes checkpoints on it.
func (s *Service) Canary(passed func(checkpoint string)) {
	passed("asked")
	_, _ = rules.Decode((&inference.ServerLiveRequest{}).ProtoReflect().Type(), nil)
	passed("decoded")
	_ = s.stopped()
	_ = s.unrecordable()
	_ = s.Ready()
	_ = s.system()
	s.hub.transitions()
	passed("judged")
	passed("answered")
}
