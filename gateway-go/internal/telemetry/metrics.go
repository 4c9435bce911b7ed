package telemetry

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics of the gateway. Names are those of the sidecar where both have one.
type Metrics struct {
	registry      *prometheus.Registry
	requests      *prometheus.CounterVec
	duration      *prometheus.HistogramVec
	LimitHits     *prometheus.CounterVec
	Refusals      *prometheus.CounterVec
	AuditRecords  *prometheus.CounterVec
	AuditFailures prometheus.Counter
	SafetyState   *prometheus.GaugeVec
}

// NewMetrics registers everything.
func NewMetrics() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "vigil_requests_total", Help: "Calls by outcome."},
			[]string{"model", "version", "method", "code", "quality"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "vigil_request_duration_seconds", Help: "From the message to the answer.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"model", "method"}),
		LimitHits:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "vigil_limit_hits_total", Help: "Limits reached."}, []string{"limit"}),
		Refusals:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "vigil_refusals_total", Help: "Calls that the gateway refused."}, []string{"method", "code"}),
		AuditRecords:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "vigil_audit_records_total", Help: "Records written."}, []string{"log"}),
		AuditFailures: prometheus.NewCounter(prometheus.CounterOpts{Name: "vigil_audit_failures_total", Help: "Records that could not be written."}),
		SafetyState:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "vigil_safety_state", Help: "1 for the present state."}, []string{"subject", "state"}),
	}
	m.registry.MustRegister(m.requests, m.duration, m.LimitHits, m.Refusals, m.AuditRecords, m.AuditFailures, m.SafetyState,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Gauge registers a value that is read when scraped.
func (m *Metrics) Gauge(name, help string, read func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read))
}

// Limits shows the limits that are set, by the same names as their hits. Those
// of the transports (header size, keepalive, streams of a connection) are
// enforced where no hit can be counted.
func (m *Metrics) Limits(limits map[string]float64) {
	gauge := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "vigil_limit", Help: "Limits that are set."}, []string{"limit"})
	for name, value := range limits {
		gauge.WithLabelValues(name).Set(value)
	}
	m.registry.MustRegister(gauge)
}

// Request counts a finished call, with its trace as exemplar.
func (m *Metrics) Request(model, version, method, code, quality string, took time.Duration, trace *Trace) {
	m.requests.WithLabelValues(model, version, method, code, quality).Inc()
	h := m.duration.WithLabelValues(model, method)
	if e, ok := h.(prometheus.ExemplarObserver); ok && trace.Sampled {
		e.ObserveWithExemplar(took.Seconds(), prometheus.Labels{"trace_id": trace.ID()})
		return
	}
	h.Observe(took.Seconds())
}

// Handler serves /metrics in both text formats (exemplars need OpenMetrics).
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
}
