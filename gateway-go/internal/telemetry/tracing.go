package telemetry

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"math"
	"math/rand/v2"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Trace is a W3C trace context: this call's ids, and its parent's span.
type Trace struct {
	TraceID [16]byte
	SpanID  [8]byte
	Parent  [8]byte
	Sampled bool
}

// ID is the trace id, hex.
func (t *Trace) ID() string { return hex.EncodeToString(t.TraceID[:]) }

func fresh(b []byte) {
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rand.Uint64())
	}
}

// Continue reads a traceparent header, or starts a trace when it is missing or
// malformed (W3C Trace Context, section 4.3).
func (t *Tracer) Continue(traceparent string) Trace {
	var out Trace
	fresh(out.SpanID[:])
	if parse(traceparent, &out) {
		return out
	}
	fresh(out.TraceID[:])
	out.Parent = [8]byte{}
	if now := t.now.Load(); now != nil && now.On {
		out.Sampled = now.ratio >= 1 || rand.Float64() < now.ratio
	}
	return out
}

func parse(s string, out *Trace) bool {
	if len(s) < 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' || s[:2] == "ff" || (s[:2] == "00" && len(s) != 55) {
		return false
	}
	var version, flags [1]byte
	for _, part := range []struct {
		dst []byte
		src string
	}{{version[:], s[:2]}, {out.TraceID[:], s[3:35]}, {out.Parent[:], s[36:52]}, {flags[:], s[53:55]}} {
		for _, c := range []byte(part.src) {
			if c >= 'A' && c <= 'F' {
				return false
			}
		}
		if _, err := hex.Decode(part.dst, []byte(part.src)); err != nil {
			return false
		}
	}
	out.Sampled = flags[0]&1 == 1
	return out.TraceID != [16]byte{} && out.Parent != [8]byte{}
}

// Tracer makes spans when an OTLP receiver is configured; otherwise nothing.
type Tracer struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	atStart  Sampling
	now      atomic.Pointer[Sampling] // nil without a receiver
}

// Sampling says which calls that bring no trace of their own are traced: one in Rate.
type Sampling struct {
	On       bool
	Rate     uint64
	Endpoint string
	ratio    float64
}

func sampling(endpoint string, ratio float64) Sampling {
	out := Sampling{On: endpoint != "" && ratio > 0, Rate: 1, Endpoint: endpoint, ratio: ratio}
	if ratio > 0 {
		out.Rate = uint64(math.Round(1 / ratio))
	}
	return out
}

// AtRate is this with one call in rate traced.
func (s Sampling) AtRate(rate uint64) Sampling {
	s.Rate, s.ratio = rate, 1/float64(rate)
	return s
}

// AtRateOf is this with the rate of another, also one that is not one in a whole number.
func (s Sampling) AtRateOf(other Sampling) Sampling {
	s.Rate, s.ratio = other.Rate, other.ratio
	return s
}

// Sampling is how calls are sampled now.
func (t *Tracer) Sampling() Sampling {
	if now := t.now.Load(); now != nil {
		return *now
	}
	return t.atStart
}

// AtStart is what the settings say.
func (t *Tracer) AtStart() Sampling { return t.atStart }

// Sample changes how calls are sampled; without a receiver nothing is.
func (t *Tracer) Sample(s Sampling) {
	if t.provider == nil {
		return
	}
	if s.ratio == 0 { // the settings trace nothing: what is switched on traces as its rate says
		s.ratio = 1 / float64(s.Rate)
	}
	t.now.Store(&s)
}

// ids hands the ids that a Trace already has to the SDK.
type ids struct{}

type idKey struct{}

func (ids) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	if t, ok := ctx.Value(idKey{}).(*Trace); ok {
		return t.TraceID, t.SpanID
	}
	var t Trace
	_, _ = crand.Read(t.TraceID[:])
	fresh(t.SpanID[:])
	return t.TraceID, t.SpanID
}

func (ids) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	_, span := ids{}.NewIDs(ctx)
	return span
}

// NewTracer connects to endpoint (host:port); empty makes no spans at no cost.
func NewTracer(ctx context.Context, endpoint string, ratio float64) (*Tracer, error) {
	if endpoint == "" {
		return &Tracer{atStart: sampling("", ratio)}, nil
	}
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpoint(endpoint), otlptracegrpc.WithInsecure())
	if err != nil {
		return nil, err
	}
	p := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithIDGenerator(ids{}),
		sdktrace.WithSampler(sdktrace.AlwaysSample()),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "vigil-gateway"))))
	t := &Tracer{provider: p, tracer: p.Tracer("vigil"), atStart: sampling(endpoint, ratio)}
	start := t.atStart
	t.now.Store(&start)
	return t, nil
}

// Span is a running span, or nothing.
type Span struct{ span trace.Span }

// Start begins the gateway's span of a call.
func (t *Tracer) Start(tr *Trace, name string) Span {
	if t.tracer == nil || !tr.Sampled {
		return Span{}
	}
	ctx := context.WithValue(context.Background(), idKey{}, tr)
	if tr.Parent != [8]byte{} {
		ctx = trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: tr.TraceID, SpanID: tr.Parent, TraceFlags: trace.FlagsSampled, Remote: true,
		}))
	}
	_, span := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer))
	return Span{span}
}

// End finishes a span.
func (s Span) End(code, model, version string) {
	if s.span == nil {
		return
	}
	s.span.SetAttributes(attribute.String("rpc.grpc.status", code), attribute.String("vigil.model", model),
		attribute.String("vigil.version", version))
	s.span.End()
}

// Close sends what is left.
func (t *Tracer) Close(ctx context.Context) error {
	if t.provider == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}
