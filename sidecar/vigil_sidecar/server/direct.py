"""The sidecar's own gRPC server: the same services without the gateway."""

from __future__ import annotations

import ipaddress
import itertools
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vigil_sidecar.errors import Unavailable
from vigil_sidecar.server.call import Call, CallContext, Reply
from vigil_sidecar.server.dispatch import Dispatcher
from vigil_sidecar.server.status import error_reply

__all__ = ["DirectServer"]

_TRACEPARENT = re.compile(r"(?:00|(?!00|ff)[0-9a-f]{2}(?=-.{52}(?:-|$)))-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_STREAM_QUEUE_MAX = 1024
_LOST_S = 0.1
_CODES = {c.value[0]: c for c in grpc.StatusCode}


def _is_loopback(peer: str) -> bool:
    if peer.startswith("unix:"):
        return True
    address = peer.removeprefix("ipv4:").removeprefix("ipv6:").rsplit(":", 1)[0]
    try:
        return ipaddress.ip_address(address.replace("%5B", "").replace("%5D", "").strip("[]")).is_loopback
    except ValueError:
        return False


class DirectServer(grpc.GenericRpcHandler):
    """Serves every method of the dispatcher with raw messages. Reflection and health are beside it."""

    def __init__(
        self, dispatcher: Dispatcher, message_bytes_max: int, allow_remote_control: bool, threads: int,
        observe: Callable[[Call, Reply], None], whole: Callable[[], str], lost: Callable[[], str],
        unlogged: str,
    ) -> None:  # fmt: skip
        """``lost`` says why a call must not wait for its record any longer; ``unlogged`` is the position of what has none."""
        self._dispatcher, self._allow_remote = dispatcher, allow_remote_control
        self._observe, self._whole, self._lost, self._unlogged = observe, whole, lost, unlogged
        self._streams = threading.BoundedSemaphore(threads // 2)
        self._ids = itertools.count(1)
        self._methods = set(dispatcher.methods)
        options = [
            ("grpc.max_receive_message_length", message_bytes_max),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ]
        self._server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="grpc"), options=options, maximum_concurrent_rpcs=threads * 4
        )
        self.health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        services = sorted({m.split("/")[1] for m in self._methods})
        reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)
        self._server.add_generic_rpc_handlers((self,))

    def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises ``OSError`` when it is taken."""
        try:
            bound = self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError:
            bound = 0
        if bound == 0:
            raise OSError(f"port {port} on {host} cannot be used")
        self._server.start()
        return int(bound)

    def set_ready(self, ready: bool) -> None:
        """What health tells."""
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        self.health.set("", status)

    def stop(self, grace_s: float) -> None:
        """Let running calls end, at most this long."""
        self._server.stop(grace_s).wait(grace_s + 1)

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
        """grpcio asks for the handler of a method."""
        method = handler_call_details.method
        if method not in self._methods:
            return grpc.stream_stream_rpc_method_handler(lambda messages, context: self._unary(method, b"", context))
        if method == "/inference.GRPCInferenceService/ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(lambda messages, context: self._unary(method, b"", context))
        if self._dispatcher.is_stream(method):
            return grpc.unary_stream_rpc_method_handler(lambda message, context: self._stream(method, message, context))
        return grpc.unary_unary_rpc_method_handler(lambda message, context: self._unary(method, message, context))

    def _context(self, context: Any) -> CallContext:
        metadata = dict(context.invocation_metadata())
        found = _TRACEPARENT.fullmatch(str(metadata.get("traceparent", "")))
        if found and (not int(found[1], 16) or not int(found[2], 16)):  # all zeros are invalid (W3C Trace Context, 3.2.2)
            found = None
        trace = bytes.fromhex(found[1]) if found else os.urandom(16)
        remaining = context.time_remaining()
        now_ns = time.monotonic_ns()
        deadline_ns = now_ns + int(remaining * 1e9) if remaining is not None and remaining < 1e6 else 0
        local = _is_loopback(context.peer())
        control = self._allow_remote or local
        sampled = bool(found and int(found[3], 16) & 1)
        return CallContext(
            trace, os.urandom(8), sampled, deadline_ns, str(metadata.get("vigil-tenant", "")), control, now_ns, False, local=local
        )

    def _call(self, method: str, message: bytes, context: Any, reply: Callable[[Call, Reply], None]) -> Call:
        call = Call(next(self._ids), method, message, self._context(context), reply)
        context.send_initial_metadata((("vigil-trace-id", call.context.trace_id.hex()),))
        if not context.add_callback(call.cancel):
            call.cancel()
        return call

    def _finish(self, context: Any, call: Call, reply: Reply) -> None:
        trailers: list[tuple[str, str | bytes]] = [("vigil-safety-state", reply.safety_state or self._whole())]
        if reply.audit_position:
            trailers.append(("vigil-audit-position", reply.audit_position))
        if reply.status:
            trailers.append(("grpc-status-details-bin", reply.status))
        context.set_trailing_metadata(tuple(trailers))
        self._observe(call, reply)
        if reply.code:
            context.abort(_CODES.get(reply.code, grpc.StatusCode.INTERNAL), reply.text)

    def _unary(self, method: str, message: bytes, context: Any) -> bytes:
        answers: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        call = self._call(method, message, context, lambda _, reply: answers.put(reply))
        self._dispatcher.submit(call)
        reply = self._wait(call, answers)
        self._finish(context, call, reply)
        return reply.message

    def _wait(self, call: Call, answers: queue.SimpleQueue[Reply]) -> Reply:
        """The answer, or, while the disk under the log hangs, the refusal in its place."""
        while True:
            try:
                return answers.get(timeout=_LOST_S)
            except queue.Empty:
                if why := self._lost():
                    call.cancel()
                    reply = error_reply(Unavailable(f"{why}; no answer leaves without its record"), call.context)
                    reply.audit_position = self._unlogged
                    return reply

    def _stream(self, method: str, message: bytes, context: Any) -> Iterator[bytes]:
        answers: queue.Queue[Reply] = queue.Queue(_STREAM_QUEUE_MAX)

        def put(call: Call, reply: Reply) -> None:
            while not call.cancelled:
                try:
                    answers.put(reply, timeout=0.25)
                    return
                except queue.Full:
                    continue

        if not self._streams.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams on the sidecar's own listener; use the gateway")
        if not context.add_callback(self._streams.release):  # the caller has gone already
            self._streams.release()
            return
        call = self._call(method, message, context, put)
        self._dispatcher.submit(call)
        while not call.cancelled:
            try:
                reply = answers.get(timeout=0.5)
            except queue.Empty:
                continue
            if not reply.more:
                self._finish(context, call, reply)
                return
            yield reply.message
