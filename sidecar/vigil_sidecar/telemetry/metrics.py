"""Prometheus metrics of the sidecar, updated per batch and per event."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

__all__ = ["BatchStatistics", "Metrics"]

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class _Distribution:
    """A histogram whose observation costs a microsecond: plain integers, read when scraped."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        edges = [*map(float, self.bounds), float("inf")]
        return [("+Inf" if e == float("inf") else str(e), n) for e, n in zip(edges, accumulate(self.counts), strict=True)]


class BatchStatistics(Collector):
    """Sizes and run times of batches by model. Any thread may observe; scraping may be off by the batch under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sizes: dict[str, _Distribution] = {}
        self._runs: dict[str, _Distribution] = {}

    def observe(self, model: str, rows: int, seconds: float) -> None:
        """One batch was run."""
        with self._lock:
            if model not in self._sizes:
                self._runs[model] = _Distribution(_SECONDS)
                self._sizes[model] = _Distribution((1, 2, 4, 8, 16, 32, 64, 128))
            self._sizes[model].observe(rows)
            self._runs[model].observe(seconds)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """For the registry."""
        for name, text, by_model in (
            ("vigil_batch_size", "Rows of a batch", self._sizes),
            ("vigil_run_duration_seconds", "ONNX Runtime run of a batch", self._runs),
        ):
            family = HistogramMetricFamily(name, text, labels=["model"])
            for model, distribution in list(by_model.items()):
                family.add_metric([model], buckets=distribution.buckets(), sum_value=distribution.total)
            yield family


class Metrics:
    """Names are those of the gateway where both have one."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.batches = BatchStatistics()
        r.register(self.batches)
        self.swaps = Counter("vigil_swaps_total", "Candidates by result", ["model", "result"], registry=r)
        self.model_info = Gauge("vigil_model_info", "Serving version", ["model", "version", "digest"], registry=r)
        self.safety_state = Gauge("vigil_safety_state", "1 for the present state", ["subject", "state"], registry=r)
        self._records = Gauge("vigil_audit_records_total", "Records written", ["log"], registry=r)
        self.limit_hits = Counter("vigil_limit_hits_total", "Limits reached", ["limit"], registry=r)
        self.direct_requests = Counter(
            "vigil_requests_total", "Calls over the sidecar's own listener", ["model", "version", "method", "code", "quality"], registry=r
        )
        self.faults = Counter("vigil_internal_errors_total", "Faults of Vigil itself", registry=r)

    def count_records(self, read: Callable[[], float]) -> None:
        """Where the number of written records is read when scraped."""
        self._records.labels("sidecar").set_function(read)

    def count_unlogged(self, read: Callable[[], float]) -> None:
        """Where the number of calls and events without a record is read when scraped."""
        gauge = Gauge("vigil_audit_unlogged_total", "Calls and events without a record.", ["log"], registry=self.registry)
        gauge.labels("sidecar").set_function(read)

    def checkpoint_age(self, read: Callable[[], float]) -> None:
        """Where the age of the latest signed checkpoint is read when scraped."""
        gauge = Gauge("vigil_audit_checkpoint_age_seconds", "Since the latest signed checkpoint.", registry=self.registry)
        gauge.set_function(read)

    def serve(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises ``OSError`` when it is taken."""
        server, _ = start_http_server(port, addr=host, registry=self.registry)
        return int(server.server_port)
