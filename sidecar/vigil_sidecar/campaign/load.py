"""The campaign's load: callers that note what they got and when; and the faults that callers themselves bring about."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
from inference import grpc_service_pb2 as oip
from vigil.safety.v1 import safety_pb2 as safety

from vigil_sidecar.campaign.judge import Called
from vigil_sidecar.engine.datatypes import NUMPY, encode_bytes

__all__ = ["CALLER_FAULTS", "Load", "open_channel", "request_for"]

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_METADATA = "/inference.GRPCInferenceService/ModelMetadata"
_WATCH = "/vigil.safety.v1.SafetyService/Watch"
_TIMEOUT_S = 20.0
_PAUSE_S, _AFTER_REFUSAL_S = 0.004, 0.02
_KEPT_MAX = 2_000_000
_LARGE_BYTES = 80 << 20


def open_channel(target: str, own: str = "") -> grpc.Channel:
    """A channel that connects again quickly; ``own`` keeps it from sharing a connection."""
    options: list[tuple[str, Any]] = [
        ("grpc.initial_reconnect_backoff_ms", 50), ("grpc.min_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200),
        ("grpc.max_send_message_length", -1), ("vigil.own", own), ("grpc.use_local_subchannel_pool", 1),
    ]  # fmt: skip
    return grpc.insecure_channel(target, options=options)


def request_for(channel: grpc.Channel, model: str) -> oip.ModelInferRequest:
    """A request of one row of ones that fits the model. Raises ``grpc.RpcError``."""
    ask = channel.unary_unary(
        _METADATA, request_serializer=oip.ModelMetadataRequest.SerializeToString, response_deserializer=oip.ModelMetadataResponse.FromString
    )
    found = ask(oip.ModelMetadataRequest(name=model), timeout=_TIMEOUT_S)
    request = oip.ModelInferRequest(model_name=model)
    for tensor in found.inputs:
        shape = [1 if d < 0 else d for d in tensor.shape]
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
        count = int(np.prod(shape, dtype=np.int64))
        raw = encode_bytes(["x"] * count) if tensor.datatype == "BYTES" else np.ones(count, NUMPY[tensor.datatype]).tobytes()
        request.raw_input_contents.append(raw)
    return request


class Load:
    """Callers of one model, each with a source of its own, from ``start`` to ``stop``."""

    def __init__(self, target: str, request: oip.ModelInferRequest, callers: int) -> None:
        self._target, self._request = target, request
        self._calls: list[Called] = []
        self._lock, self._over = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(i,), daemon=True) for i in range(callers)]

    def start(self) -> None:
        """Start calling."""
        for t in self._threads:
            t.start()

    def stop(self) -> None:
        """End it."""
        self._over.set()
        for t in self._threads:
            t.join(_TIMEOUT_S + 1)

    def between(self, from_ns: int, to_ns: int) -> tuple[Called, ...]:
        """The calls that were under way in a time; those that ended before are forgotten."""
        with self._lock:
            self._calls = [c for c in self._calls if c.came_ns >= from_ns]
            return tuple(c for c in self._calls if c.sent_ns <= to_ns)

    def _call(self, number: int) -> None:
        request = oip.ModelInferRequest()
        request.CopyFrom(self._request)
        request.parameters["vigil_source"].string_param = f"campaign-{number}"
        message = request.SerializeToString()
        send = open_channel(self._target, str(number)).unary_unary(_INFER)
        while not self._over.is_set():
            sent_ns, code, quality = time.monotonic_ns(), "OK", ""
            try:
                _, done = send.with_call(message, timeout=_TIMEOUT_S)
                quality = dict(done.trailing_metadata()).get("vigil-quality", "")
            except grpc.RpcError as error:
                code = error.code().name
            came_ns = time.monotonic_ns()
            with self._lock:
                if len(self._calls) < _KEPT_MAX:
                    self._calls.append(Called(sent_ns, came_ns, code, quality))
            self._over.wait(_PAUSE_S if code == "OK" else _AFTER_REFUSAL_S)


def _burst(target: str, request: oip.ModelInferRequest, magnitude: float) -> None:
    """So many calls at once, over a few connections."""
    channels = [open_channel(target, f"burst-{i}") for i in range(4)]
    senders = [c.unary_unary(_INFER) for c in channels]
    message = request.SerializeToString()
    futures = [senders[i % 4].future(message, timeout=_TIMEOUT_S) for i in range(int(magnitude))]
    for f in futures:
        f.exception()
    _close(channels)


def _large(target: str, request: oip.ModelInferRequest, magnitude: float) -> None:
    """A message larger than any that is taken."""
    channel = open_channel(target, "large")
    request = oip.ModelInferRequest(model_name=request.model_name, raw_input_contents=[bytes(_LARGE_BYTES)])
    channel.unary_unary(_INFER).future(request.SerializeToString(), timeout=_TIMEOUT_S).exception()
    _close([channel])


def _slow_reader(target: str, request: oip.ModelInferRequest, magnitude: float) -> None:
    """A watcher that takes nothing."""
    channel = open_channel(target, "reader")
    watch = channel.unary_stream(_WATCH, request_serializer=safety.WatchRequest.SerializeToString)(
        safety.WatchRequest(), timeout=_TIMEOUT_S
    )
    time.sleep(0.5)
    watch.cancel()
    _close([channel])


def _close(channels: Sequence[grpc.Channel]) -> None:
    for c in channels:
        c.close()


CALLER_FAULTS = {"load_burst": _burst, "load_large": _large, "load_slow_reader": _slow_reader}
"""The kinds that callers bring about."""
