"""What callers of a product received: each reply's position and status, noted on the way through a channel."""

from __future__ import annotations

import threading
from typing import Any

import grpc

from tests.harness.calls import DETECT, INFER

__all__ = ["Replies"]

RECORDED = {
    INFER, DETECT, "/vigil.models.v1.ModelsService/ActivateVersion", "/vigil.models.v1.ModelsService/ReloadModel",
    "/vigil.audit.v1.AuditService/RotateKey",
}  # fmt: skip
"""Methods whose every answer has a record; other answers are reads. A refusal has one whatever was asked for."""
HEALTH = "/grpc.health."
STATE, POSITION = "vigil-safety-state", "vigil-audit-position"


class Replies(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[misc]
    """Notes every reply. What a client's own library made up (connection lost, deadline) came from nobody."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.positions: list[tuple[str, str]] = []
        self.missing: list[str] = []
        """Replies of the service that should have a position and have none."""

    def through(self, channel: grpc.Channel) -> grpc.Channel:
        """The channel, watched."""
        return grpc.intercept_channel(channel, self)

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        """Note the reply when it is there."""
        call = continuation(details, request)
        call.add_done_callback(lambda done: self._note(details.method, done))
        return call

    intercept_unary_stream = intercept_unary_unary

    def _note(self, method: str, call: Any) -> None:
        beside = dict(call.trailing_metadata() or ())
        code = call.code().name
        method = method if isinstance(method, str) else method.decode()
        with self._lock:
            if POSITION in beside:
                self.positions.append((beside[POSITION], code))
            elif (STATE in beside and code != "OK" and not method.startswith(HEALTH)) or (code == "OK" and method in RECORDED):
                self.missing.append(f"{method}: {code}")
