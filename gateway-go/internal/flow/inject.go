package flow

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	auditv1 "vigil/gateway/gen/vigil/audit/v1"
	safetyv1 "vigil/gateway/gen/vigil/safety/v1"

	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/auditlog"
	"vigil/gateway/internal/events"
)

const (
	// injectDelay is between the reply to a caller and the fault: the reply must have left.
	injectDelay = 50 * time.Millisecond
	stopDefault = 600 * time.Millisecond
	doorDefault = 6500 * time.Millisecond
	stopMost    = 10 * time.Minute
)

// injected are the faults that the gateway brings about, of its sidecar's process and
// its own (vigil_safety/kinds.py).
var injected = map[string]func(*Service, time.Duration){
	"sidecar_kill": func(s *Service, _ time.Duration) { _ = s.link.Signal(unix.SIGKILL) },
	"sidecar_stop": func(s *Service, d time.Duration) {
		_ = s.link.Signal(unix.SIGSTOP)
		time.Sleep(d)
		_ = s.link.Signal(unix.SIGCONT)
	},
	"gateway_edge": func(s *Service, d time.Duration) { s.standStill(d) },
	"gateway_kill": func(*Service, time.Duration) { _ = unix.Kill(os.Getpid(), unix.SIGKILL) },
}

// inject has a fault begin in injectDelay. The sidecar answers for its own kinds.
func inject(_ context.Context, s *Service, m proto.Message) (proto.Message, error) {
	r := m.(*safetyv1.InjectRequest)
	// SR-030
	if !s.limits.Injection {
		return nil, &CallError{Code: codes.Unimplemented, Event: events.Unimplemented, Reason: "UNIMPLEMENTED",
			Text: "faults are injected only where safety.injection is on"}
	}
	act := injected[r.Kind]
	if act == nil {
		return nil, errNotHere
	}
	magnitude, lasts := map[string]time.Duration{"sidecar_stop": stopDefault, "gateway_edge": doorDefault}[r.Kind]
	if lasts && r.Magnitude > 0 {
		magnitude = min(stopMost, time.Duration(r.Magnitude*float64(time.Millisecond)))
	}
	time.AfterFunc(injectDelay, func() {
		s.recordInjection(r.Kind, magnitude)
		act(s, magnitude)
	})
	return &safetyv1.InjectResponse{
		InjectDelayMs: uint32(injectDelay.Milliseconds()), Magnitude: float64(magnitude.Milliseconds()),
		BeginsUs: time.Now().Add(injectDelay).UnixMicro(),
	}, nil
}

func (s *Service) recordInjection(kind string, magnitude time.Duration) {
	words := &auditv1.SystemPayload{Text: kind, Fields: map[string]string{"magnitude": strconv.FormatInt(magnitude.Milliseconds(), 10)}}
	payload, err := proto.Marshal(words)
	if err != nil {
		payload = nil
	}
	s.record(&auditlog.Entry{Kind: layout.KindSystem, EventID: events.FaultInjected, Payload: payload})
	s.log.Warn(fmt.Sprintf("fault injected: %s", kind))
}

// AttachDoor gives the service what makes the native listener stand still, for
// injection.
func (s *Service) AttachDoor(standStill func(time.Duration)) { s.standStill = standStill }

// AnnounceInjection records, and says, that faults can be injected here.
func (s *Service) AnnounceInjection() {
	if s.limits.Injection {
		s.systemEvent(events.InjectionEnabled, "safety.injection is on")
		s.log.Warn("faults can be injected here (safety.injection); rely on no answer")
	}
}
