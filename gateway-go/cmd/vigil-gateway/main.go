// Command vigil-gateway is Vigil's only door: native gRPC, gRPC-Web and
// Connect in front of a sidecar.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	_ "net/http/pprof" // served on the metrics listener only
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	auditv1 "vigil/gateway/gen/vigil/audit/v1"
	"vigil/gateway/internal/auditlog"
	"vigil/gateway/internal/edge"
	"vigil/gateway/internal/flow"
	"vigil/gateway/internal/link"
	"vigil/gateway/internal/settings"
	"vigil/gateway/internal/telemetry"
)

func main() { os.Exit(run(os.Args[1:])) }

// overrides collects --set KEY=VALUE.
type overrides map[string]string

func (o overrides) String() string { return "" }

func (o overrides) Set(text string) error {
	key, value, ok := strings.Cut(text, "=")
	if !ok {
		return errors.New("needs KEY=VALUE")
	}
	o[key] = value
	return nil
}

func run(args []string) int {
	flags := flag.NewFlagSet("vigil-gateway", flag.ContinueOnError)
	config := flags.String("config", "", "settings `FILE` (vigil.toml)")
	set := overrides{}
	flags.Var(set, "set", "set one key: `KEY=VALUE`")
	host := flags.String("host", "", "address of all listeners (listen.host)")
	named := map[string]*string{"listen.host": host}
	for _, s := range settings.Table() {
		if s.Flag != "" {
			named[s.Key] = flags.String(s.Flag, "", s.Doc+" ("+s.Key+")")
		}
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "vigil-gateway: unexpected argument %q; see --help\n", flags.Arg(0))
		return 2
	}
	for key, value := range named {
		if *value != "" {
			set[key] = *value
		}
	}
	if *config == "" {
		if _, err := os.Stat("vigil.toml"); err == nil {
			*config = "vigil.toml"
		}
	}
	s, err := settings.Load(*config, os.Environ(), set)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vigil-gateway:", err)
		return 2
	}
	if err := serve(s); err != nil {
		fmt.Fprintln(os.Stderr, "vigil-gateway:", err)
		return 1
	}
	return 0
}

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
		if *one.into, err = edge.Listen(s.ListenHost, one.port, one.key, s.LimitsConnectionsMax); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func serve(s *settings.Settings) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log := telemetry.NewLog(os.Stderr, s.LogLevel)
	doors, err := listen(s)
	if err != nil {
		return err
	}
	var audit *auditlog.Writer
	if s.AuditEnabled {
		audit, err = auditlog.Open(auditlog.Options{
			Folder: filepath.Join(s.DataDir, "audit", "gateway"), Log: "gateway", Durability: s.AuditDurability,
			SyncInterval: time.Duration(s.AuditSyncIntervalMs) * time.Millisecond, SegmentBytes: s.AuditSegmentBytes, Describe: describe,
		})
		if err != nil {
			return err
		}
	}
	tracer, err := telemetry.NewTracer(ctx, s.TraceOTLPEndpoint, s.TraceSampleRatio)
	if err != nil {
		return err
	}
	metrics := telemetry.NewMetrics()
	service, err := flow.New(flow.Limits{
		MessageBytesMax: s.LimitsMessageBytesMax, CallsInFlightMax: s.LimitsCallsInFlightMax,
		BytesInFlightMax: s.LimitsBytesInFlightMax, WatchersMax: s.LimitsWatchersMax,
	}, audit, metrics, tracer, log)
	if err != nil {
		return err
	}
	instance := ""
	if audit != nil {
		instance = audit.Instance()
	}
	client := link.New(link.Config{
		Socket: filepath.Join(s.DataDir, "run", "sidecar.sock"), Instance: instance, FrameBytesMax: int(2*s.LimitsMessageBytesMax) + 16<<20,
		HeartbeatInterval: time.Duration(s.LinkHeartbeatIntervalMs) * time.Millisecond,
		HeartbeatTimeout:  time.Duration(s.LinkHeartbeatTimeoutMs) * time.Millisecond, LaneCallsMax: int(s.LimitsLaneCallsMax),
		CallGrace: time.Duration(s.LinkCallGraceMs) * time.Millisecond,
	}, service)
	service.AttachLink(client)
	metrics.Gauge("vigil_queue_depth", "Calls in flight.", func() float64 { return float64(service.InFlight()) })

	limits := edge.Limits{
		MessageBytesMax: int(s.LimitsMessageBytesMax), StreamsPerConnectionMax: uint32(s.LimitsStreamsPerConnectionMax),
		HeaderBytesMax: uint32(s.LimitsHeaderBytesMax), ConnectionIdle: time.Duration(s.LimitsConnectionIdleS) * time.Second,
		KeepaliveMin: time.Duration(s.LimitsKeepaliveMinS) * time.Second, AllowRemoteControl: s.ControlAllowRemote,
	}
	native := edge.NewNative(service, tracer, limits)
	web := edge.NewWebServer(edge.NewWeb(service, tracer, edge.WebConfig{
		Limits: limits, AllowedOrigins: s.WebAllowedOrigins, AllowedHosts: s.WebAllowedHosts, Host: s.ListenHost,
	}, edge.Pages()), limits)
	admin := http.NewServeMux()
	admin.Handle("/metrics", metrics.Handler())
	admin.Handle("/debug/pprof/", http.DefaultServeMux)
	adminServer := &http.Server{Handler: admin, ReadHeaderTimeout: 5 * time.Second}

	linkCtx, stopLink := context.WithCancel(context.Background())
	defer stopLink()
	linkDone := make(chan struct{})
	go func() { client.Run(linkCtx); close(linkDone) }()
	go followHealth(ctx, service, native)
	failed := make(chan error, 3)
	go func() { failed <- native.Serve(doors.grpc) }()
	go func() { failed <- web.Serve(doors.web) }()
	go func() { failed <- adminServer.Serve(doors.metrics) }()
	if err := writePorts(s, doors); err != nil {
		return err
	}
	log.Info("gateway listens", "grpc", edge.Port(doors.grpc), "http", edge.Port(doors.web), "metrics", edge.Port(doors.metrics), "pid", os.Getpid())

	select {
	case err = <-failed:
		log.Error("a listener failed", "error", err.Error())
	case <-ctx.Done():
		log.Info("gateway drains", "timeout_s", s.GatewayDrainTimeoutS)
	}
	native.Health.Shutdown()
	drained := service.Drain(time.Duration(s.GatewayDrainTimeoutS * float64(time.Second)))
	if !drained {
		log.Warn("calls were still running after the drain timeout")
	}
	closing, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	stopNative(native, time.Second)
	_ = web.Shutdown(closing)
	_ = adminServer.Shutdown(closing)
	stopLink()
	<-linkDone
	err = errors.Join(err, tracer.Close(closing))
	if audit != nil {
		err = errors.Join(err, audit.Close())
	}
	log.Info("gateway stopped")
	return err
}

// stopNative lets connections end, then cuts them.
func stopNative(n *edge.Native, timeout time.Duration) {
	timer := time.AfterFunc(timeout, n.Stop)
	defer timer.Stop()
	n.GracefulStop()
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
