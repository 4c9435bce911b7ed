package edge

import (
	"context"
	"fmt"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/reflection"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"

	"vigil/gateway/internal/events"
	"vigil/gateway/internal/flow"
	"vigil/gateway/internal/link"
	"vigil/gateway/internal/telemetry"
)

// Names of headers and trailers.
const (
	TraceHeader    = "vigil-trace-id"
	TenantHeader   = "vigil-tenant"
	PositionHeader = "vigil-audit-position"
	StateHeader    = "vigil-safety-state"
	// QualityHeader, AgeHeader and StandInHeader stand only where something answered in
	// place of the model.
	QualityHeader = "vigil-quality"
	AgeHeader     = "vigil-age-ms"
	StandInHeader = "vigil-stand-in"
)

// streamWorkers is how many goroutines are kept for calls: their stacks have
// grown already. Calls beyond them get a goroutine of their own.
const streamWorkers = 256

// slowReader is how long the answer to a request of a stream may wait for its reader.
const slowReader = 30 * time.Second

// Limits of the listeners.
type Limits struct {
	MessageBytesMax         int
	StreamsPerConnectionMax uint32
	HeaderBytesMax          uint32
	ConnectionIdle          time.Duration
	KeepaliveMin            time.Duration
	AllowRemoteControl      bool
	AllowRemoteReading      bool
	AllowRemoteFrames       bool
}

// Native is the native gRPC server.
type Native struct {
	*grpc.Server
	Health  *health.Server
	service *flow.Service
	tracer  *telemetry.Tracer
	limits  Limits
}

// NewNative makes the server; Serve starts it.
func NewNative(service *flow.Service, tracer *telemetry.Tracer, limits Limits) *Native {
	n := &Native{service: service, tracer: tracer, limits: limits, Health: health.NewServer()}
	n.Server = grpc.NewServer(
		grpc.ForceServerCodecV2(newRelayCodec()),
		// Twice the limit is read, so that a refusal of the service, with its record, tells who was over.
		grpc.MaxRecvMsgSize(2*limits.MessageBytesMax),
		grpc.MaxSendMsgSize(1<<31-1),
		grpc.MaxConcurrentStreams(limits.StreamsPerConnectionMax),
		grpc.MaxHeaderListSize(limits.HeaderBytesMax),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: limits.ConnectionIdle, Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: limits.KeepaliveMin, PermitWithoutStream: true}),
		grpc.UnknownServiceHandler(n.unknown),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.InitialWindowSize(1<<20), grpc.InitialConnWindowSize(4<<20),
	)
	services := serviceInfo{}
	for _, m := range flow.Methods() {
		services.add(m)
	}
	for _, desc := range n.descriptions() {
		n.RegisterService(desc, nil)
	}
	healthpb.RegisterHealthServer(n.Server, n.Health)
	services["grpc.health.v1.Health"] = grpc.ServiceInfo{}
	options := reflection.ServerOptions{Services: services}
	reflectionv1.RegisterServerReflectionServer(n.Server, reflection.NewServerV1(options))
	reflectionv1alpha.RegisterServerReflectionServer(n.Server, reflection.NewServer(options))
	return n
}

// serviceInfo tells reflection which services there are.
type serviceInfo map[string]grpc.ServiceInfo

func (s serviceInfo) GetServiceInfo() map[string]grpc.ServiceInfo { return s }

func (s serviceInfo) add(m *flow.Method) { s[m.Service] = grpc.ServiceInfo{} }

// descriptions registers every method by hand, with raw messages.
func (n *Native) descriptions() []*grpc.ServiceDesc {
	byService := map[string]*grpc.ServiceDesc{}
	var out []*grpc.ServiceDesc
	for _, m := range flow.Methods() {
		desc := byService[m.Service]
		if desc == nil {
			desc = &grpc.ServiceDesc{ServiceName: m.Service, HandlerType: (*any)(nil)}
			byService[m.Service] = desc
			out = append(out, desc)
		}
		if m.ServerStream() || m.Bidi() {
			desc.Streams = append(desc.Streams, grpc.StreamDesc{
				StreamName: m.Short, ServerStreams: true, ClientStreams: m.Bidi(), Handler: n.streamHandler(m),
			})
			continue
		}
		desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: m.Short, Handler: n.unaryHandler(m)})
	}
	return out
}

// caller reads trace context and peer of a call, and answers with the trace id.
func (n *Native) caller(ctx context.Context) *flow.Caller {
	first := func(key string) string {
		if values := metadata.ValueFromIncomingContext(ctx, key); len(values) > 0 {
			return values[0]
		}
		return ""
	}
	c := &flow.Caller{Trace: n.tracer.Continue(first("traceparent")), Tenant: first(TenantHeader), Control: n.limits.AllowRemoteControl, Reads: n.limits.AllowRemoteReading,
		Frames: n.limits.AllowRemoteFrames}
	c.Class = n.service.Class(&c.Trace, first)
	if p, ok := peer.FromContext(ctx); ok && loopback(p.LocalAddr) {
		c.Control, c.Reads, c.Frames = true, true, true
	}
	return c
}

// connOf is the connection that a call came by; nil for one that is not ours.
func connOf(ctx context.Context) *placed {
	if p, ok := peer.FromContext(ctx); ok {
		if a, ok := p.Addr.(address); ok {
			return a.conn
		}
	}
	return nil
}

// loopback says whether a listener's address can be reached from this host only.
func loopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

func trailer(a *flow.Answer) metadata.MD {
	md := metadata.MD{StateHeader: {a.SafetyState}}
	if a.AuditPosition != "" {
		md[PositionHeader] = []string{a.AuditPosition}
	}
	if a.Quality != "" {
		md[QualityHeader], md[AgeHeader], md[StandInHeader] = []string{a.Quality}, []string{strconv.FormatInt(a.AgeMs, 10)}, []string{a.Source}
	}
	return md
}

func (n *Native) unaryHandler(m *flow.Method) func(any, context.Context, func(any) error, grpc.UnaryServerInterceptor) (any, error) {
	return func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := &frame{}
		caller := n.caller(ctx)
		_ = grpc.SetHeader(ctx, metadata.MD{TraceHeader: {caller.Trace.ID()}})
		if err := decode(in); err != nil { // grpc-go has answered already: the caller finds the record by its trace id
			n.turnAway(m.Name, caller, err)
			return nil, err
		}
		answer, callErr := n.service.Unary(ctx, m, caller, in.data)
		_ = grpc.SetTrailer(ctx, trailer(answer))
		if callErr != nil {
			return nil, status.FromProto(callErr.Status(caller.Trace.ID())).Err()
		}
		return &frame{answer.Message, connOf(ctx)}, nil
	}
}

// turnAway records a call that could not be read, and gives its trailers.
func (n *Native) turnAway(method string, caller *flow.Caller, err error) metadata.MD {
	answer := status.Convert(err)
	md := metadata.MD{TraceHeader: {caller.Trace.ID()}}
	if position := n.service.TurnAway(method, events.TransportRefused, answer.Code(), answer.Message(), &caller.Trace); position != "" {
		md[PositionHeader] = []string{position}
	}
	return md
}

// unknown answers for methods that are not in the contract.
func (n *Native) unknown(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.Method(stream.Context())
	service, name := path.Split(method)
	service, name = fmt.Sprintf("%.600s", service), fmt.Sprintf("%.600s", name) // more would not fit into trailers
	text := "unknown method " + name + " for service " + strings.Trim(service, "/")
	if !slices.ContainsFunc(flow.Methods(), func(m *flow.Method) bool { return "/"+m.Service+"/" == service }) {
		text = "unknown service " + strings.Trim(service, "/")
	}
	err := status.Error(codes.Unimplemented, text)
	stream.SetTrailer(n.turnAway(method, n.caller(stream.Context()), err))
	return err
}

func (n *Native) streamHandler(m *flow.Method) grpc.StreamHandler {
	if m.Bidi() {
		return n.streamInfer(m)
	}
	return func(_ any, stream grpc.ServerStream) error {
		caller := n.caller(stream.Context())
		_ = stream.SetHeader(metadata.MD{TraceHeader: {caller.Trace.ID()}})
		in := &frame{}
		if err := stream.RecvMsg(in); err != nil {
			n.turnAway(m.Name, caller, err)
			return err
		}
		conn := connOf(stream.Context())
		send := func(data []byte) error { return stream.SendMsg(&frame{data, conn}) }
		answer, callErr := n.service.Stream(stream.Context(), m, caller, in.data, send)
		stream.SetTrailer(trailer(answer))
		if callErr != nil {
			return status.FromProto(callErr.Status(caller.Trace.ID())).Err()
		}
		return nil
	}
}

// streamInfer is the handler of the stream that takes many requests.
func (n *Native) streamInfer(m *flow.Method) grpc.StreamHandler {
	return func(_ any, stream grpc.ServerStream) error {
		caller := n.caller(stream.Context())
		_ = stream.SetHeader(metadata.MD{TraceHeader: {caller.Trace.ID()}})
		ended := make(chan error, 1)
		receive := func() ([]byte, error) {
			in := &frame{}
			err := stream.RecvMsg(in)
			if err != nil {
				ended <- err
			}
			return in.data, err
		}
		conn := connOf(stream.Context())
		send := func(data []byte) error {
			sent := make(chan error, 1)
			go func() { sent <- stream.SendMsg(&frame{data, conn}) }()
			select {
			case err := <-sent:
				return err
			case <-time.After(slowReader): // the stream ends with this handler, and the sending with it
				return link.ErrSlowReader
			}
		}
		answer, callErr := n.service.StreamInfer(stream.Context(), m, caller, receive, send)
		stream.SetTrailer(trailer(answer))
		if callErr != nil {
			return status.FromProto(callErr.Status(caller.Trace.ID())).Err()
		}
		select {
		case err := <-ended:
			if code := status.Code(err); !flow.Ended(err) && code != codes.Canceled && code != codes.DeadlineExceeded { // a message that could not be read
				stream.SetTrailer(n.turnAway(m.Name, caller, err))
				return err
			}
		default:
		}
		return nil
	}
}
