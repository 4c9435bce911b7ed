"""Prometheus metrics of the sidecar, updated per batch and per event."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

__all__ = ["Metrics"]

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Names are those of the gateway where both have one."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.batch_size = Histogram("vigil_batch_size", "Rows of a batch", ["model"], buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=r)
        self.run_seconds = Histogram("vigil_run_duration_seconds", "ONNX Runtime run of a batch", ["model"], buckets=_SECONDS, registry=r)
        self.swaps = Counter("vigil_swaps_total", "Candidates by result", ["model", "result"], registry=r)
        self.model_info = Gauge("vigil_model_info", "Serving version", ["model", "version", "digest"], registry=r)
        self.safety_state = Gauge("vigil_safety_state", "1 for the present state", ["subject", "state"], registry=r)
        self.audit_records = Counter("vigil_audit_records_total", "Records written", ["log"], registry=r)
        self.limit_hits = Counter("vigil_limit_hits_total", "Limits reached", ["limit"], registry=r)
        self.direct_requests = Counter(
            "vigil_requests_total", "Calls over the sidecar's own listener", ["model", "version", "method", "code", "quality"], registry=r
        )
        self.faults = Counter("vigil_internal_errors_total", "Faults of Vigil itself", registry=r)

    def serve(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises ``OSError`` when it is taken."""
        server, _ = start_http_server(port, addr=host, registry=self.registry)
        return int(server.server_port)
