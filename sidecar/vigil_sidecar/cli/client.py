"""Calls to a running gateway for the verbs of the command line."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from vigil_sidecar.cli.options import read_settings
from vigil_sidecar.errors import CommandFailed

__all__ = ["Client", "connect"]

Reply = TypeVar("Reply", bound=Message)
_MESSAGE_BYTES_MAX = 1 << 30


class Client:
    """One channel to the gateway."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._channel = grpc.insecure_channel(
            target, options=[("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX), ("grpc.max_send_message_length", -1)]
        )

    def call(self, method: str, request: Message, reply: type[Reply], timeout_s: float = 70.0) -> tuple[Reply, dict[str, str]]:
        """One unary call; returns the reply and what travelled beside it. Raises ``CommandFailed``."""
        unary = self._channel.unary_unary(
            method, request_serializer=type(request).SerializeToString, response_deserializer=reply.FromString
        )
        try:
            message, call = unary.with_call(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._failed(error) from None
        beside = {k: str(v) for k, v in (*call.initial_metadata(), *call.trailing_metadata()) if k.startswith("vigil-")}
        return message, beside

    def stream(self, method: str, request: Message, reply: type[Reply]) -> Any:
        """One server stream."""
        return self._channel.unary_stream(
            method, request_serializer=type(request).SerializeToString, response_deserializer=reply.FromString
        )(request)

    def _failed(self, error: Any) -> CommandFailed:
        text = f"{error.code().name}: {error.details()}"
        trailing = dict(error.trailing_metadata() or ())
        details = trailing.get("grpc-status-details-bin")
        if details:
            for packed in Status.FromString(details).details:
                info = ErrorInfo()
                if packed.Unpack(info):
                    text += f" [{info.metadata['event']}, trace {info.metadata['trace_id']}]"
        elif error.code() == grpc.StatusCode.UNAVAILABLE:
            text = f"no gateway answers at {self.target}; start one with `vigil up`, or give --target HOST:PORT"
        return CommandFailed(text)


def connect(args: argparse.Namespace) -> Client:
    """A client for --target, else for the gateway that the data folder names, else for the configured port."""
    if args.target:
        return Client(args.target)
    settings, _ = read_settings(args)
    ports = Path(settings.data_dir) / "run" / "gateway.json"
    port = settings.listen_grpc_port
    try:
        port = int(json.loads(ports.read_text())["grpc"])
    except FileNotFoundError:
        pass  # nothing runs in this folder as far as it says
    except (OSError, ValueError, KeyError, TypeError):
        raise CommandFailed(f"{ports} cannot be understood; remove it, or give --target HOST:PORT") from None
    host = settings.listen_host
    return Client(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
