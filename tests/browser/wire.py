"""Answers that are altered on their way to a page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message
from playwright.sync_api import Route

ALONE = "delete window.SharedWorker"
"""A browser without shared workers: then a page's requests can be altered on their way."""


def framed(message: Message) -> bytes:
    """A message as gRPC-Web frames it."""
    data = message.SerializeToString()
    return bytes(1) + len(data).to_bytes(4, "big") + data


def unframed(body: bytes, kind: type[Any]) -> tuple[Any, bytes]:
    """The first message of a gRPC-Web body, and what follows it."""
    end = 5 + int.from_bytes(body[1:5], "big")
    return kind.FromString(body[5:end]), body[end:]


def altering(kind: type[Any], alter: Callable[[Any], None]) -> Callable[[Route], None]:
    """A handler that changes an answer on its way to the page."""

    def handle(route: Route) -> None:
        answer = route.fetch()
        message, rest = unframed(answer.body(), kind)
        alter(message)
        route.fulfill(response=answer, body=framed(message) + rest)

    return handle
