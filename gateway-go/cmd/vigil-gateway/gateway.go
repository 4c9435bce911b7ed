package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"net/http"
	_ "net/http/pprof" // served on the metrics listener only
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	auditv1 "vigil/gateway/gen/vigil/audit/v1"

	"vigil/gateway/internal/auditlog"
	"vigil/gateway/internal/edge"
	"vigil/gateway/internal/events"
	"vigil/gateway/internal/fair"
	"vigil/gateway/internal/flow"
	"vigil/gateway/internal/link"
	"vigil/gateway/internal/review"
	"vigil/gateway/internal/safety"
	"vigil/gateway/internal/settings"
	"vigil/gateway/internal/sharedmemory"
	"vigil/gateway/internal/telemetry"
	"vigil/gateway/web"
)

func describe(text string, fields map[string]string) []byte {
	data, err := proto.Marshal(&auditv1.SystemPayload{Text: text, Fields: fields})
	if err != nil {
		return nil
	}
	return data
}

// listeners are the gateway's three doors.
type listeners struct{ grpc, web, metrics net.Listener }

func listen(s *settings.Settings) (*listeners, error) {
	l := &listeners{}
	var err error
	for _, one := range []struct {
		into *net.Listener
		port int64
		key  string
	}{{&l.grpc, s.ListenGRPCPort, "listen.grpc_port"}, {&l.web, s.ListenHTTPPort, "listen.http_port"}, {&l.metrics, s.ListenMetricsPort, "listen.metrics_port"}} {
		if *one.into, err = edge.Listen(s.ListenHost, one.port, one.key, s.LimitsConnectionsMax+edge.SelfPlaces); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// gateway is everything that runs, wired.
type gateway struct {
	settings *settings.Settings
	log      *slog.Logger
	doors    *listeners
	audit    *auditlog.Recorder
	clock    *auditlog.Clock
	tracer   *telemetry.Tracer
	service  *flow.Service
	client   *link.Client
	native   *edge.Native
	ledger   *edge.Ledger
	web      *http.Server
	admin    *http.Server
}

func newGateway(ctx context.Context, s *settings.Settings) (*gateway, error) {
	g := &gateway{settings: s, log: telemetry.NewLog(os.Stderr, s.LogLevel)}
	var err error
	if g.doors, err = listen(s); err != nil {
		return nil, err
	}
	hashKey, err := g.openAudit()
	if err != nil {
		return nil, err
	}
	instance := ""
	if g.audit != nil {
		instance = g.audit.Instance()
	}
	if g.tracer, err = telemetry.NewTracer(ctx, s.TraceOTLPEndpoint, s.TraceSampleRatio); err != nil {
		return nil, err
	}
	metrics := telemetry.NewMetrics()
	fairly, err := fairness(s)
	if err != nil {
		return nil, err
	}
	g.service, err = flow.New(flow.Limits{
		Fairness:        fairly,
		MessageBytesMax: s.LimitsMessageBytesMax, CallsInFlightMax: s.LimitsCallsInFlightMax,
		BytesInFlightMax: s.LimitsBytesInFlightMax, WatchersMax: s.LimitsWatchersMax, WatchQueueMax: s.LimitsWatchQueueMax,
		WatchFrames:        flow.FrameLimits{Bytes: s.LimitsWatchFrameBytesMax, Side: s.LimitsFrameSideMax, Pixels: s.LimitsFramePixelsMax},
		SupervisionTimeout: time.Duration(s.LinkHeartbeatTimeoutMs) * time.Millisecond,
		Regions: sharedmemory.Options{
			Folder: sharedmemory.Folder, Most: int(s.LimitsSharedMemoryRegionsMax), AnyOwner: s.SharedMemoryAnyOwner, KeyPrefix: s.SharedMemoryKeyPrefix,
		},
		Injection: s.SafetyInjection, LadderFallback: time.Duration(s.LadderFallbackMs) * time.Millisecond,
		LadderAnswersMax: s.LadderAnswersMax, LadderBytesMax: s.LadderBytesMax,
		RestartAfter: time.Duration(s.SupervisorRestartAfterMs) * time.Millisecond,
	}, safetyParameters(s), safety.OpenLatch(filepath.Join(s.DataDir, "safety", "gateway.json")),
		safety.OpenTally(filepath.Join(s.DataDir, "safety", "gateway-counts.json")), g.audit, metrics, g.tracer, g.log)
	if err != nil {
		return nil, err
	}
	g.client = link.New(linkConfig(s, instance), g.service)
	g.service.AttachLink(g.client)
	g.service.AnnounceInjection()
	if s.SafetyInjection {
		g.service.AttachDoor(edge.Injectable(g.doors.grpc))
	}
	if err := g.attachReader(hashKey); err != nil {
		return nil, err
	}
	metrics.Gauge("vigil_queue_depth", "Calls in flight.", func() float64 { return float64(g.service.InFlight()) })
	if g.audit != nil {
		metrics.Gauge("vigil_audit_unlogged_total", "Calls and events without a record.", func() float64 { return float64(g.audit.UnloggedTotal()) })
		metrics.Gauge("vigil_audit_checkpoint_age_seconds", "Since the latest signed checkpoint.", func() float64 { return g.audit.CheckpointAge().Seconds() })
	}
	metrics.Limits(map[string]float64{
		"limits.message_bytes_max": float64(s.LimitsMessageBytesMax), "limits.calls_in_flight_max": float64(s.LimitsCallsInFlightMax),
		"limits.bytes_in_flight_max": float64(s.LimitsBytesInFlightMax), "limits.watchers_max": float64(s.LimitsWatchersMax),
		"limits.streams_per_connection_max": float64(s.LimitsStreamsPerConnectionMax), "limits.header_bytes_max": float64(s.LimitsHeaderBytesMax),
		"limits.keepalive_min_s": float64(s.LimitsKeepaliveMinS), "limits.connection_idle_s": float64(s.LimitsConnectionIdleS),
		"limits.connections_max": float64(s.LimitsConnectionsMax), "limits.control_frames_per_s": float64(s.LimitsControlFramesPerS),
		"ladder.answers_max": float64(s.LadderAnswersMax), "ladder.bytes_max": float64(s.LadderBytesMax), "limits.lane_calls_max": float64(s.LimitsLaneCallsMax),
		"limits.shared_memory_regions_max": float64(s.LimitsSharedMemoryRegionsMax),
	})
	g.listenWith(metrics)
	return g, nil
}

// openAudit opens the gateway's log, when there is to be one, and gives the key of keyed hashes.
func (g *gateway) openAudit() (hashKey []byte, err error) {
	s := g.settings
	if s.AuditHashes == "keyed" {
		if hashKey, err = auditlog.HashKey(filepath.Join(s.DataDir, "keys")); err != nil {
			return nil, err
		}
	}
	if !s.AuditEnabled {
		return hashKey, nil
	}
	g.clock = auditlog.NewClock(auditlog.ClockOptions{Source: s.ClockSource, ChronyAt: s.ClockChronyAt, Ptp4lSocket: s.ClockPtp4lSocket})
	writer, err := auditlog.Open(auditlog.Options{
		HashKey: hashKey, Clock: g.clock.Status,
		Folder: filepath.Join(s.DataDir, "audit", "gateway"), Log: "gateway", Durability: s.AuditDurability,
		SyncInterval: time.Duration(s.AuditSyncIntervalMs) * time.Millisecond, SegmentBytes: s.AuditSegmentBytes, Describe: describe,
		Report:    func(err error) { g.log.Error("audit", "reason", err.Error()) },
		KeyFolder: filepath.Join(s.DataDir, "keys"), CheckpointRecords: uint64(s.AuditCheckpointRecords),
		CheckpointInterval: time.Duration(s.AuditCheckpointIntervalS * float64(time.Second)),
		Retention: auditlog.Retention{
			BytesMax: s.AuditRetentionBytes, Age: time.Duration(s.AuditRetentionS * float64(time.Second)),
			KeptBytesMax: s.AuditKeptBytesMax, Archive: s.AuditArchiveDir,
		},
	})
	if err != nil {
		return nil, err
	}
	g.audit = auditlog.NewRecorder(writer, auditlog.Policy(s.AuditOnFailure), time.Duration(s.AuditWriteTimeoutMs)*time.Millisecond, s.AuditRefusalsPerS)
	return hashKey, nil
}

// attachReader lets callers read both logs, by processes of this very program,
// whatever its file is replaced by meanwhile.
func (g *gateway) attachReader(hashKey []byte) error {
	folders := map[string]string{}
	var err error
	for _, name := range []string{"gateway", "sidecar"} {
		if folders[name], err = filepath.Abs(filepath.Join(g.settings.DataDir, "audit", name)); err != nil {
			return err
		}
	}
	g.service.AttachReader(review.NewReader(review.Options{
		Command: []string{"/proc/self/exe", readLog}, Folders: folders, HashKey: hashKey,
		Timeout: time.Duration(g.settings.AuditReadTimeoutS * float64(time.Second)), Most: g.settings.AuditReadersMax,
	}))
	return nil
}

// fairness is what the settings say of flows; the error names setting, value and limit.
func fairness(s *settings.Settings) (flow.Fairness, error) {
	rules, err := fair.ParseRules(s.FlowRules)
	if err != nil {
		return flow.Fairness{}, fmt.Errorf("flow.rules: %w", err)
	}
	f := flow.Fairness{Rules: rules, FlowsMax: int(s.FlowFlowsMax), ClassFrom: s.FlowClassFrom, ClassKey: s.FlowClassKey}
	return f, f.Check()
}

func linkConfig(s *settings.Settings, instance string) link.Config {
	return link.Config{
		Socket: filepath.Join(s.DataDir, "run", "sidecar.sock"), Instance: instance, FrameBytesMax: int(2*s.LimitsMessageBytesMax) + 16<<20,
		HeartbeatInterval: time.Duration(s.LinkHeartbeatIntervalMs) * time.Millisecond,
		HeartbeatTimeout:  time.Duration(s.LinkHeartbeatTimeoutMs) * time.Millisecond,
		HangAfter:         time.Duration(s.LinkHangMs) * time.Millisecond,
		StandInAfter:      time.Duration(s.LadderWaitMs) * time.Millisecond,
		CallGrace:         time.Duration(s.LinkCallGraceMs) * time.Millisecond, LaneCallsMax: int(s.LimitsLaneCallsMax),
		RestartAfter: time.Duration(s.SupervisorRestartAfterMs) * time.Millisecond,
		WaitMax:      time.Duration(s.FlowWaitMaxMs) * time.Millisecond,
	}
}

// safetyParameters are those of the safety table as the settings give them.
func safetyParameters(s *settings.Settings) map[string]int64 {
	parameters := s.SafetyParameters()
	parameters["restarts_max"] = s.SupervisorRestartCountMax
	parameters["restarts_window_ms"] = int64(math.Round(s.SupervisorRestartWindowS * 1000))
	return parameters
}

// listenWith makes the servers of the three doors.
func (g *gateway) listenWith(metrics *telemetry.Metrics) {
	s := g.settings
	limits := edge.Limits{
		MessageBytesMax: int(s.LimitsMessageBytesMax), StreamsPerConnectionMax: uint32(s.LimitsStreamsPerConnectionMax),
		HeaderBytesMax: uint32(s.LimitsHeaderBytesMax), ConnectionIdle: time.Duration(s.LimitsConnectionIdleS) * time.Second,
		KeepaliveMin: time.Duration(s.LimitsKeepaliveMinS) * time.Second, AllowRemoteControl: s.ControlAllowRemote, AllowRemoteReading: s.AuditReadRemote,
		AllowRemoteFrames: s.PerceptionFramesRemote,
	}
	g.limitConnections(metrics)
	g.native = edge.NewNative(g.service, g.tracer, limits)
	config := edge.WebConfig{
		Limits: limits, AllowedOrigins: s.WebAllowedOrigins, AllowedHosts: s.WebAllowedHosts, Host: s.ListenHost,
	}
	var pages fs.FS
	if s.WebPage {
		pages = web.Page()
	}
	g.web = edge.NewWebServer(edge.NewWeb(g.service, g.tracer, config, edge.Pages(pages)), limits)
	admin := http.NewServeMux()
	admin.Handle("/metrics", metrics.Handler())
	admin.Handle("/debug/pprof/", http.DefaultServeMux)
	g.admin = &http.Server{Handler: edge.GuardHost(config, admin), ReadHeaderTimeout: 5 * time.Second}
}

// limitConnections bounds what connections may bring and hold, before their calls are any.
func (g *gateway) limitConnections(metrics *telemetry.Metrics) {
	ended := func(text string) {
		g.service.TurnAway("", events.LimitHit, codes.ResourceExhausted, text, &telemetry.Trace{})
		g.log.Warn("a connection was ended", "reason", text)
	}
	for _, door := range []net.Listener{g.doors.grpc, g.doors.web} {
		edge.LimitFrames(door, g.settings.LimitsControlFramesPerS, metrics.LimitHits.WithLabelValues("limits.control_frames_per_s").Inc, ended)
	}
	g.ledger = edge.NewLedger(g.settings.LimitsBytesInFlightMax, func(text string) {
		metrics.LimitHits.WithLabelValues("limits.bytes_in_flight_max").Inc()
		ended(text)
	})
	g.ledger.LimitMemory(g.doors.grpc)
}

// serve runs the gateway until a signal, then drains.
func serve(s *settings.Settings) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	g, err := newGateway(ctx, s)
	if err != nil {
		return err
	}
	linkCtx, stopLink := context.WithCancel(context.Background())
	defer stopLink()
	linkDone := make(chan struct{})
	go func() { g.client.Run(linkCtx); close(linkDone) }()
	go g.service.WatchLog(ctx)
	parts, err := g.service.Supervise(ctx, time.Duration(s.SupervisorGatewayTimeoutS*float64(time.Second)))
	if err != nil {
		return err
	}
	go g.ledger.Watch(ctx)
	go followHealth(ctx, g.service, g.native)
	failed := make(chan error, 3)
	go func() { failed <- g.native.Serve(g.doors.grpc) }()
	go func() { failed <- g.web.Serve(g.doors.web) }()
	go func() { failed <- g.admin.Serve(g.doors.metrics) }()
	if err := g.superviseItself(ctx, parts); err != nil {
		return err
	}
	if err := writePorts(s, g.doors); err != nil {
		return err
	}
	if s.LinkHangMs > 0 && !link.KernelCounts() {
		g.log.Warn("a sidecar that hangs is noticed after link.heartbeat_timeout_ms only: the kernel does not count how long threads wait (schedstat)",
			"link.heartbeat_timeout_ms", s.LinkHeartbeatTimeoutMs)
	}
	g.log.Info("gateway listens", "grpc", edge.Port(g.doors.grpc), "http", edge.Port(g.doors.web),
		"metrics", edge.Port(g.doors.metrics), "pid", os.Getpid())
	select {
	case err = <-failed:
		g.log.Error("a listener failed", "error", err.Error())
		stop() // nothing is to be supervised from here on
	case <-ctx.Done():
		g.log.Info("gateway drains", "timeout_s", s.GatewayDrainTimeoutS)
	}
	return errors.Join(err, g.stop(func() { stopLink(); <-linkDone }))
}

// stop refuses new calls, lets running ones finish, and closes everything.
func (g *gateway) stop(endLink func()) error {
	g.native.Health.Shutdown()
	if !g.service.Drain(time.Duration(g.settings.GatewayDrainTimeoutS * float64(time.Second))) {
		g.log.Warn("calls were still running after the drain timeout")
	}
	closing, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	stopNative(g.native, time.Second)
	_ = g.web.Shutdown(closing)
	_ = g.admin.Shutdown(closing)
	endLink()
	g.service.SaveCounts()
	if err := g.tracer.Close(closing); err != nil { // a receiver that is not there must not make a drained stop a failed one
		g.log.Warn("the last spans were not exported", "error", err.Error())
	}
	var err error
	if g.audit != nil {
		err = g.audit.Close()
		g.clock.Close()
	}
	g.log.Info("gateway stopped")
	return err
}

// stopNative lets connections end, then cuts them.
func stopNative(n *edge.Native, timeout time.Duration) {
	timer := time.AfterFunc(timeout, n.Stop)
	defer timer.Stop()
	n.GracefulStop()
}

// superviseItself makes the gateway its own caller, so that parts that stand still are
// noticed.
func (g *gateway) superviseItself(ctx context.Context, parts *safety.Supervision) error {
	self, err := edge.NewSelf(g.doors.grpc, g.doors.web, g.service.Canary)
	if err != nil {
		return err
	}
	for _, part := range self.Parts() {
		parts.Activate(part)
	}
	go self.Run(ctx, parts.Indicate)
	return nil
}

// followHealth keeps grpc.health.v1 equal to readiness.
func followHealth(ctx context.Context, service *flow.Service, native *edge.Native) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	last := healthpb.HealthCheckResponse_UNKNOWN
	for {
		now := healthpb.HealthCheckResponse_NOT_SERVING
		if service.Ready() {
			now = healthpb.HealthCheckResponse_SERVING
		}
		if now != last {
			native.Health.SetServingStatus("", now)
			last = now
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// writePorts tells the supervisor, atomically, where the gateway listens.
func writePorts(s *settings.Settings, doors *listeners) error {
	folder := filepath.Join(s.DataDir, "run")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("%w; give --data-dir a folder that can be written", err)
	}
	data, err := json.Marshal(map[string]int{
		"grpc": edge.Port(doors.grpc), "http": edge.Port(doors.web), "metrics": edge.Port(doors.metrics), "gateway_pid": os.Getpid(),
	})
	if err != nil {
		return err
	}
	path := filepath.Join(folder, "gateway.json")
	if err := os.WriteFile(path+".partial", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".partial", path)
}
