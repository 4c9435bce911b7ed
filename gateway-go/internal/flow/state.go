package flow

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"vigil/gateway/gen/inference"
	auditv1 "vigil/gateway/gen/vigil/audit/v1"
	linkv1 "vigil/gateway/gen/vigil/link/v1"
	safetyv1 "vigil/gateway/gen/vigil/safety/v1"

	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/auditlog"
	"vigil/gateway/internal/events"
	"vigil/gateway/internal/rules"
	"vigil/gateway/internal/safety"
)

const (
	sidecarSubject = "sidecar"
	// logSubject is the gateway's own log.
	logSubject = "log/gateway"
	logGap     = 200 * time.Millisecond
)

// subjects is what the sidecar last told of its own machines.
type subjects struct {
	states []*safetyv1.SubjectState
	models map[string]bool
	ready  bool
}

var localAnswers = map[string]func(context.Context, *Service, proto.Message) (proto.Message, error){
	"/inference.GRPCInferenceService/ServerLive": func(context.Context, *Service, proto.Message) (proto.Message, error) {
		return &inference.ServerLiveResponse{Live: true}, nil
	},
	"/inference.GRPCInferenceService/ServerReady": func(_ context.Context, s *Service, _ proto.Message) (proto.Message, error) {
		return &inference.ServerReadyResponse{Ready: s.Ready()}, nil
	},
	"/vigil.safety.v1.SafetyService/Get": func(_ context.Context, s *Service, _ proto.Message) (proto.Message, error) {
		return &safetyv1.GetResponse{State: s.system()}, nil
	},
	"/inference.GRPCInferenceService/TraceSetting": traceSetting,
	"/inference.GRPCInferenceService/LogSettings":  logSettings,
	"/vigil.safety.v1.SafetyService/History":       history,
	"/vigil.safety.v1.SafetyService/Reset":         reset,
	"/vigil.safety.v1.SafetyService/Inject":        inject,
	"/vigil.audit.v1.AuditService/Checkpoint": func(_ context.Context, s *Service, m proto.Message) (proto.Message, error) {
		if err := s.ownLog(m.(*auditv1.CheckpointRequest).Log); err != nil {
			return nil, err
		}
		return &auditv1.CheckpointResponse{Note: string(s.audit.Checkpoint())}, nil
	},
	"/vigil.audit.v1.AuditService/RotateKey": func(_ context.Context, s *Service, m proto.Message) (proto.Message, error) {
		if err := s.ownLog(m.(*auditv1.RotateKeyRequest).Log); err != nil {
			return nil, err
		}
		key, err := s.audit.RotateKey()
		return &auditv1.RotateKeyResponse{VerifierKey: key}, err
	},
	"/inference.GRPCInferenceService/SystemSharedMemoryRegister":   registerRegion,
	"/inference.GRPCInferenceService/SystemSharedMemoryUnregister": unregisterRegion,
	"/inference.GRPCInferenceService/SystemSharedMemoryStatus":     regionStatus,
	// There are none of CUDA's; clients forget them before they begin.
	"/inference.GRPCInferenceService/CudaSharedMemoryUnregister": func(context.Context, *Service, proto.Message) (proto.Message, error) {
		return &inference.CudaSharedMemoryUnregisterResponse{}, nil
	},
	"/inference.GRPCInferenceService/CudaSharedMemoryStatus": func(context.Context, *Service, proto.Message) (proto.Message, error) {
		return &inference.CudaSharedMemoryStatusResponse{}, nil
	},
	auditService + "Search": search,
	auditService + "Get":    get,
	auditService + "Prove":  prove,
}

// errNotHere says that a local method is the sidecar's for this request.
var errNotHere = errors.New("the sidecar answers this")

// ownLog says whether a request is about the gateway's own log.
func (s *Service) ownLog(log auditv1.Log) error {
	switch {
	case log == auditv1.Log_LOG_SIDECAR:
		return errNotHere
	case log != auditv1.Log_LOG_GATEWAY:
		return &CallError{Code: codes.InvalidArgument, Event: events.SemanticViolation, Reason: "SEMANTIC_VIOLATION",
			Text: "log is not set; allowed are LOG_GATEWAY and LOG_SIDECAR", Violations: []rules.Violation{{Field: "log", Description: "not set"}}}
	case s.audit == nil:
		return &CallError{Code: codes.FailedPrecondition, Event: events.Unavailable, Reason: "AUDIT_OFF", Text: "the audit log is switched off (audit.enabled)"}
	}
	return nil
}

var localStreams = map[string]func(*Service, *streamCall) error{
	"/vigil.safety.v1.SafetyService/Watch": (*Service).watchState,
	liveMethod:                             (*Service).watchAll,
	auditService + "VerifyRange":           (*Service).verifyRange,
}

func stateValue(name string) safetyv1.State {
	return safetyv1.State(safetyv1.State_value["STATE_"+name])
}

// system is the state of the whole: the gateway's subjects and the sidecar's.
func (s *Service) system() *safetyv1.SystemState {
	own := s.monitor.Status(sidecarSubject)
	out := &safetyv1.SystemState{TableDigest: s.monitor.Table().Digest, Injection: s.limits.Injection}
	out.Subjects = append(out.Subjects, s.subject(sidecarSubject, own))
	if log := s.monitor.Status(logSubject); s.audit != nil && s.audit.Policy != auditlog.Continue {
		out.Subjects = append(out.Subjects, s.subject(logSubject, log))
	}
	if s.parts.Load() != nil {
		out.Subjects = append(out.Subjects, s.subject(gatewaySubject, s.monitor.Status(gatewaySubject)))
	}
	out.Subjects = append(out.Subjects, s.subjects.Load().states...)
	out.State = stateValue(s.Whole())
	return out
}

// subject is one of the gateway's own, with what was counted of it.
func (s *Service) subject(name string, status safety.Status) *safetyv1.SubjectState {
	return &safetyv1.SubjectState{
		Subject: name, State: stateValue(status.State), Reason: status.Reason, SinceUs: status.SinceUs,
		Degraded: s.tally.Of(safety.CountDegraded, name), Stopped: s.tally.Of(safety.CountStopped, name),
		Restarted: s.tally.Of(safety.CountRestarted, name), Expired: s.tally.Of(safety.CountExpired, name),
	}
}

// count counts what has to outlive restarts. It waits for no disk: one that hangs must
// not hold up states, or supervision.
func (s *Service) count(what, subject string) {
	s.tally.Add(what, subject)
	go s.SaveCounts()
}

// SaveCounts writes what was counted.
func (s *Service) SaveCounts() {
	if err := s.tally.Save(); err != nil {
		s.log.Error("counts are not kept over restarts", "error", err.Error())
	}
}

// Whole is the state with the highest rank among all subjects.
func (s *Service) Whole() string {
	known := s.subjects.Load()
	states := make([]string, 1, 1+len(known.states))
	states[0] = s.own()
	for _, x := range known.states {
		states = append(states, x.State.String()[len("STATE_"):])
	}
	return s.monitor.Table().Worst(states)
}

// own is the worst state of the gateway's own machines.
func (s *Service) own() string { return *s.ownWorst.Load() }

// refreshOwn works that out anew, since a state changed or another machine counts.
func (s *Service) refreshOwn() {
	states := []string{s.monitor.Status(sidecarSubject).State}
	if s.audit != nil && s.audit.Policy != auditlog.Continue {
		states = append(states, s.monitor.Status(logSubject).State)
	}
	if s.parts.Load() != nil {
		states = append(states, s.monitor.Status(gatewaySubject).State)
	}
	worst := s.monitor.Table().Worst(states)
	s.ownWorst.Store(&worst)
}

// Ready says whether calls can be answered now.
func (s *Service) Ready() bool {
	return !s.draining.Load() && s.link.Connected() && s.subjects.Load().ready && s.unrecordable() == nil && s.PartsStopped() == ""
}

func (s *Service) known(model string) bool { return s.subjects.Load().models[model] }

// stateChanged records and tells a change of one of the gateway's machines.
func (s *Service) stateChanged(c safety.Change) {
	s.refreshOwn()
	words := &auditv1.StatePayload{
		Subject: c.Subject, From: c.From, To: c.To, Event: c.Event, Reason: clip(c.Reason, 1024), TableDigest: s.monitor.Table().Digest,
		NowMs: c.NowMs, Parameters: s.monitor.Table().Parameters, Actions: c.Actions, By: c.By, Counters: map[string]*auditv1.CountedTimes{},
	}
	for name, times := range c.Counters {
		words.Counters[name] = &auditv1.CountedTimes{TimesMs: times}
	}
	payload, err := proto.Marshal(words)
	if err != nil {
		payload = nil
	}
	s.record(&auditlog.Entry{
		Kind: layout.KindState, EventID: events.StateChanged, SafetyState: auditlog.SafetyCode(c.To), Payload: payload,
	})
	switch c.To {
	case "DEGRADED":
		s.count(safety.CountDegraded, c.Subject)
	case s.monitor.Table().Latched:
		s.count(safety.CountStopped, c.Subject)
	}
	for state := range s.monitor.Table().Ranks {
		value := 0.0
		if state == c.To {
			value = 1
		}
		s.metrics.SafetyState.WithLabelValues(c.Subject, state).Set(value)
	}
	s.log.Warn("safety state changed", "subject", c.Subject, "before", c.From, "after", c.To, "cause", c.Event, "reason", c.Reason)
	s.hub.changed(&safetyv1.Transition{
		Subject: c.Subject, From: stateValue(c.From), To: stateValue(c.To), Event: c.Event, Reason: c.Reason, TimeUs: c.TimeUs,
	})
}

func (s *Service) systemEvent(event uint32, text string) {
	payload, err := proto.Marshal(&auditv1.SystemPayload{Text: clip(text, 1024)})
	if err != nil {
		payload = nil
	}
	s.record(&auditlog.Entry{Kind: layout.KindSystem, EventID: event, Payload: payload})
}

// LinkUp implements link.Observer.
func (s *Service) LinkUp(w *linkv1.Welcome) {
	s.systemEvent(events.LinkUp, "sidecar run "+w.BootId)
	if s.boot != "" && s.boot != w.BootId {
		s.count(safety.CountRestarted, sidecarSubject)
		s.monitor.Event(sidecarSubject, "restarted", "the sidecar was started again too often (supervisor.restart_count_max)")
	}
	s.boot = w.BootId
	s.log.Info("link up", "sidecar_pid", w.Pid, "boot", w.BootId)
}

// LinkDown implements link.Observer.
func (s *Service) LinkDown(reason string, damage bool) {
	event := events.LinkLost
	if damage {
		event = events.LinkCorruption
	}
	s.subjects.Store(&subjects{models: s.subjects.Load().models})
	s.live.report.Store(nil)
	s.onlyStops()
	if s.monitor.Status(sidecarSubject).State == "STARTING" && !damage {
		s.log.Info("waiting for the sidecar", "reason", reason)
		return
	}
	s.systemEvent(event, reason)
	s.monitor.Event(sidecarSubject, "fault", reason)
}

// LinkSilent implements link.Observer.
func (s *Service) LinkSilent(why string) {
	s.systemEvent(events.HeartbeatExpired, why)
	s.count(safety.CountExpired, sidecarSubject)
	s.monitor.Event(sidecarSubject, "fault", why)
}

// LinkLate implements link.Observer. Without a ladder nothing follows from it.
func (s *Service) LinkLate(silence time.Duration) {
	if len(*s.standIns.ladders.Load()) > 0 {
		s.systemEvent(events.HeartbeatLate, "nothing came for "+silence.Round(time.Millisecond).String())
	}
}

// LinkHung implements link.Observer.
func (s *Service) LinkHung(pid int, why string) {
	s.systemEvent(events.SidecarKilled, fmt.Sprintf("the sidecar (pid %d) is killed: %s", pid, clip(why, 512)))
	s.log.Error("sidecar killed", "pid", pid, "why", why)
}

// Checkpoint implements link.Observer.
func (s *Service) Checkpoint() []byte {
	if s.audit == nil {
		return nil
	}
	return s.audit.Checkpoint()
}

// LinkHeartbeat implements link.Observer.
func (s *Service) LinkHeartbeat(h *linkv1.Heartbeat) {
	if len(h.Checkpoint) > 0 && s.audit != nil {
		if err := s.audit.Anchor(h.Checkpoint); err != nil {
			s.log.Error("the sidecar's checkpoint was not recorded", "error", err.Error())
		}
	}
	s.link.HoldCalls(h.LogFailure)
	s.noteMemory(h)
	models := make(map[string]bool, len(h.Models))
	for _, m := range h.Models {
		models[m] = true
	}
	s.subjects.Store(&subjects{states: h.Subjects, models: models, ready: h.Ready})
	s.rest(h.Subjects)
	for _, t := range h.Transitions {
		s.hub.changed(t)
	}
	for _, e := range h.ModelEvents {
		s.hub.model(e)
	}
	s.live.report.Store(&report{h.Supervision, time.Now()})
	wrong := s.supervise(h.Supervision)
	state := s.monitor.Status(sidecarSubject).State
	switch {
	case wrong != "":
		s.monitor.Event(sidecarSubject, "fault", wrong)
	case !h.Ready && (state == "NORMAL" || state == "RECOVERING"):
		s.monitor.Event(sidecarSubject, "probe_bad", "the sidecar says that it cannot serve")
	case h.Ready && state == "RECOVERING":
		s.monitor.Event(sidecarSubject, "probe_good", "sound heartbeats")
	case h.Ready && (state == "STARTING" || state == "DEGRADED"):
		s.monitor.Event(sidecarSubject, "ready", "the sidecar serves")
	}
}
