package edge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	connectcors "connectrpc.com/cors"
	"connectrpc.com/grpcreflect"
	"github.com/rs/cors"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"vigil/gateway/internal/events"
	"vigil/gateway/internal/flow"
	"vigil/gateway/internal/telemetry"
)

// WebConfig of the web listener.
type WebConfig struct {
	Limits         Limits
	AllowedOrigins []string
	AllowedHosts   []string
	Host           string
}

// raw is a message in its binary form, with the type that JSON needs.
type raw struct {
	desc protoreflect.MessageDescriptor
	data []byte
}

func (r *raw) typed() (proto.Message, error) {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(r.desc.FullName())
	if err != nil {
		return nil, err
	}
	return kind.New().Interface(), nil
}

// binaryCodec hands messages through; it replaces connect's codec "proto".
type binaryCodec struct{}

func (binaryCodec) Name() string { return "proto" }

func (binaryCodec) Marshal(v any) ([]byte, error) {
	switch m := v.(type) {
	case *raw:
		return m.data, nil
	case proto.Message: // the status that connect puts into gRPC's trailers
		return proto.Marshal(m)
	}
	return nil, fmt.Errorf("cannot encode %T", v)
}

func (binaryCodec) Unmarshal(data []byte, v any) error {
	switch m := v.(type) {
	case *raw:
		m.data = slices.Clone(data)
		return nil
	case proto.Message:
		return proto.Unmarshal(data, m)
	}
	return fmt.Errorf("cannot decode %T", v)
}

// jsonCodec translates between JSON and the binary form.
type jsonCodec struct{ name string }

func (c jsonCodec) Name() string { return c.name }

func (jsonCodec) Marshal(v any) ([]byte, error) {
	r, ok := v.(*raw)
	if !ok {
		return nil, fmt.Errorf("cannot encode %T", v)
	}
	m, err := r.typed()
	if err == nil {
		err = proto.Unmarshal(r.data, m)
	}
	if err != nil {
		return nil, err
	}
	return protojson.Marshal(m)
}

func (jsonCodec) Unmarshal(data []byte, v any) error {
	r, ok := v.(*raw)
	if !ok {
		return fmt.Errorf("cannot decode %T", v)
	}
	m, err := r.typed()
	if err != nil {
		return err
	}
	if err := (protojson.UnmarshalOptions{RecursionLimit: 64}).Unmarshal(data, m); err != nil {
		return err
	}
	r.data, err = proto.Marshal(m)
	return err
}

type web struct {
	service *flow.Service
	tracer  *telemetry.Tracer
	config  WebConfig
}

// NewWeb makes the handler of the web listener: gRPC-Web, Connect and gRPC for
// every method, health, reflection, and the pages given.
func NewWeb(service *flow.Service, tracer *telemetry.Tracer, config WebConfig, pages http.Handler) http.Handler {
	w := &web{service, tracer, config}
	mux := http.NewServeMux()
	names := []string{"grpc.health.v1.Health"}
	for _, m := range flow.Methods() {
		if m.ServerStream() {
			mux.Handle(m.Name, connect.NewServerStreamHandler(m.Name, w.serverStream(m), w.options(m)...))
		} else if m.Bidi() {
			mux.Handle(m.Name, connect.NewBidiStreamHandler(m.Name, w.bidi(m), w.options(m)...))
		} else {
			mux.Handle(m.Name, connect.NewUnaryHandler(m.Name, w.unary(m), w.options(m)...))
		}
		if !slices.Contains(names, m.Service) {
			names = append(names, m.Service)
		}
	}
	small := connect.WithReadMaxBytes(64 << 10) // health and reflection need no more
	reflector := grpcreflect.NewStaticReflector(names...)
	for _, make := range []func(*grpcreflect.Reflector, ...connect.HandlerOption) (string, http.Handler){
		grpcreflect.NewHandlerV1, grpcreflect.NewHandlerV1Alpha,
	} {
		path, handler := make(reflector, small)
		mux.Handle(path, handler)
	}
	mux.Handle("/grpc.health.v1.Health/Check", connect.NewUnaryHandler("/grpc.health.v1.Health/Check", w.health, small))
	mux.Handle("/grpc.health.v1.Health/Watch", connect.NewServerStreamHandler("/grpc.health.v1.Health/Watch", w.watchHealth, small))
	w.routes(mux)
	mux.Handle("/", pages)
	allowed := cors.New(cors.Options{
		AllowedOrigins: config.AllowedOrigins, AllowedMethods: connectcors.AllowedMethods(),
		AllowedHeaders: append(connectcors.AllowedHeaders(), "traceparent", "tracestate", TenantHeader, HeaderLength, "Content-Encoding"),
		ExposedHeaders: append(connectcors.ExposedHeaders(), HeaderLength, TraceHeader, PositionHeader, StateHeader, QualityHeader, AgeHeader, StandInHeader,
			"Trailer-"+PositionHeader, "Trailer-"+StateHeader, "Trailer-"+QualityHeader, "Trailer-"+AgeHeader,
			"Trailer-"+StandInHeader), MaxAge: 600, // Connect's unary answers have trailers as headers
	})
	var handler http.Handler = mux
	if len(config.AllowedOrigins) > 0 {
		handler = allowed.Handler(handler)
	}
	return w.guard(handler)
}

// GuardHost refuses requests whose Host is not ours (DNS rebinding).
func GuardHost(config WebConfig, next http.Handler) http.Handler {
	return (&web{config: config}).guard(next)
}

type connKey struct{}

// untimed takes the time limit for reading headers off an HTTP/2 connection: it is
// meant for the first request, but net/http leaves it on the whole connection when
// HTTP/2 is spoken without TLS, and cuts it with every call that is under way.
func untimed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(net.Conn); ok && r.ProtoMajor == 2 {
			_ = c.SetReadDeadline(time.Time{})
		}
		next.ServeHTTP(rw, r)
	})
}

// NewWebServer wraps a handler with the listener's limits. HTTP/2 without TLS
// is served as well, for gRPC clients on this port.
func NewWebServer(handler http.Handler, limits Limits) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler: untimed(handler), Protocols: protocols, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: limits.ConnectionIdle,
		ConnContext:    func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		HTTP2:          &http.HTTP2Config{MaxConcurrentStreams: int(limits.StreamsPerConnectionMax)},
		MaxHeaderBytes: int(limits.HeaderBytesMax),
	}
}

func (w *web) options(m *flow.Method) []connect.HandlerOption {
	return []connect.HandlerOption{
		connect.WithCodec(binaryCodec{}), connect.WithCodec(jsonCodec{"json"}), connect.WithCodec(jsonCodec{"json; charset=utf-8"}),
		connect.WithSchema(m.Desc), connect.WithReadMaxBytes(2 * w.config.Limits.MessageBytesMax),
		connect.WithRequestInitializer(func(_ connect.Spec, v any) error {
			if r, ok := v.(*raw); ok {
				r.desc = m.Desc.Input()
			}
			return nil
		}),
	}
}

// guard refuses requests whose Host is not ours (DNS rebinding) or whose page
// comes from an origin that is not allowed.
func (w *web) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !w.hostAllowed(r.Host) {
			w.forbid(rw, r, fmt.Sprintf("host %q is not served here (setting web.allowed_hosts)", r.Host))
			return
		}
		if origin := r.Header.Get("Origin"); origin != "" && !w.originAllowed(origin, r.Host) {
			w.forbid(rw, r, fmt.Sprintf("origin %q is not allowed (setting web.allowed_origins)", origin))
			return
		}
		if w.service != nil && r.Body != nil {
			body := &countedBody{ReadCloser: r.Body, service: w.service}
			defer body.close()
			r.Body = body
			r = r.WithContext(context.WithValue(r.Context(), bodyKey{}, body))
		}
		w.watched(rw, r, next)
	})
}

// forbid refuses a request before it is a call; the refusal is recorded like one.
func (w *web) forbid(rw http.ResponseWriter, r *http.Request, text string) {
	if w.service != nil {
		w.turnAway(rw, r, events.WebForbidden, codes.PermissionDenied, text)
	}
	if strings.HasPrefix(r.URL.Path, "/v2") {
		writeError(rw, http.StatusForbidden, text)
		return
	}
	http.Error(rw, text, http.StatusForbidden)
}

var errTooManyBytes = connect.NewError(connect.CodeResourceExhausted,
	errors.New("too many bytes of unfinished requests are in flight (limits.bytes_in_flight_max)"))

func (w *web) hostAllowed(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if host == "localhost" || host == strings.ToLower(w.config.Host) || slices.Contains(w.config.AllowedHosts, host) {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.IsLoopback()
}

func (w *web) originAllowed(origin, host string) bool {
	if slices.Contains(w.config.AllowedOrigins, origin) {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && u.Host == host
}

func (w *web) caller(ctx context.Context, h http.Header) *flow.Caller {
	c := &flow.Caller{Trace: w.tracer.Continue(h.Get("traceparent")), Tenant: h.Get(TenantHeader), Control: w.config.Limits.AllowRemoteControl, Reads: w.config.Limits.AllowRemoteReading,
		Frames: w.config.Limits.AllowRemoteFrames}
	c.Class = w.service.Class(&c.Trace, h.Get)
	if local, ok := ctx.Value(http.LocalAddrContextKey).(net.Addr); ok && loopback(local) {
		c.Control, c.Reads, c.Frames = true, true, true
	}
	return c
}

func setMeta(h http.Header, a *flow.Answer) {
	h.Set(StateHeader, a.SafetyState)
	if a.AuditPosition != "" {
		h.Set(PositionHeader, a.AuditPosition)
	}
	if a.Quality != "" {
		h.Set(QualityHeader, a.Quality)
		h.Set(AgeHeader, strconv.FormatInt(a.AgeMs, 10))
		h.Set(StandInHeader, a.Source)
	}
}

// connectError gives a call's error the form that connect sends, with details.
func connectError(s *statuspb.Status, traceID string, a *flow.Answer) *connect.Error {
	out := connect.NewError(connect.Code(s.Code), errors.New(s.Message))
	for _, packed := range s.Details {
		if m, err := packed.UnmarshalNew(); err == nil {
			if detail, err := connect.NewErrorDetail(m); err == nil {
				out.AddDetail(detail)
			}
		}
	}
	out.Meta().Set(TraceHeader, traceID)
	setMeta(out.Meta(), a)
	return out
}

func (w *web) unary(m *flow.Method) func(context.Context, *connect.Request[raw]) (*connect.Response[raw], error) {
	return func(ctx context.Context, req *connect.Request[raw]) (*connect.Response[raw], error) {
		reached(ctx)
		caller := w.caller(ctx, req.Header())
		answer, callErr := w.service.Unary(ctx, m, caller, req.Msg.data)
		if callErr != nil {
			return nil, connectError(callErr.Status(caller.Trace.ID()), caller.Trace.ID(), answer)
		}
		res := connect.NewResponse(&raw{m.Desc.Output(), answer.Message})
		res.Header().Set(TraceHeader, caller.Trace.ID())
		setMeta(res.Trailer(), answer)
		return res, nil
	}
}

func (w *web) serverStream(m *flow.Method) func(context.Context, *connect.Request[raw], *connect.ServerStream[raw]) error {
	return func(ctx context.Context, req *connect.Request[raw], stream *connect.ServerStream[raw]) error {
		reached(ctx)
		caller := w.caller(ctx, req.Header())
		stream.ResponseHeader().Set(TraceHeader, caller.Trace.ID())
		send := func(data []byte) error { return stream.Send(&raw{m.Desc.Output(), data}) }
		answer, callErr := w.service.Stream(ctx, m, caller, req.Msg.data, send)
		if callErr != nil {
			return connectError(callErr.Status(caller.Trace.ID()), caller.Trace.ID(), answer)
		}
		setMeta(stream.ResponseTrailer(), answer)
		return nil
	}
}
