"""OpenTelemetry spans per batch, exported by OTLP. Imported where an endpoint is configured only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, TraceFlags

__all__ = ["Tracing"]


class Tracing:
    """Spans ``batch`` and, below, ``onnxruntime.run``. A batch belongs to its first sampled call and links to the rest."""

    def __init__(self, endpoint: str) -> None:
        self._provider: Any = TracerProvider(resource=Resource.create({"service.name": "vigil-sidecar"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=True)))
        self._tracer: Any = self._provider.get_tracer("vigil")

    def batch(
        self, parents: Sequence[tuple[bytes, bytes]], model: str, version: str, rows: int, start_monotonic_ns: int,
        end_monotonic_ns: int, utc_minus_monotonic_ns: int,
    ) -> None:  # fmt: skip
        """Make the spans of one batch that was run between the two times, for at least one parent."""
        contexts = [
            SpanContext(int.from_bytes(t, "big"), int.from_bytes(s, "big"), True, TraceFlags(TraceFlags.SAMPLED)) for t, s in parents
        ]
        parent = trace.set_span_in_context(NonRecordingSpan(contexts[0]))
        attributes = {"vigil.model": model, "vigil.version": version, "vigil.batch_size": rows}
        start, end = start_monotonic_ns + utc_minus_monotonic_ns, end_monotonic_ns + utc_minus_monotonic_ns
        span = self._tracer.start_span("batch", parent, attributes=attributes, links=[Link(c) for c in contexts[1:]], start_time=start)
        inner = self._tracer.start_span("onnxruntime.run", trace.set_span_in_context(span), attributes=attributes, start_time=start)
        inner.end(end)
        span.end(end)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
