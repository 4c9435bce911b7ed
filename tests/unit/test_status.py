"""Errors fit into the trailers that clients take."""

from __future__ import annotations

import base64
import urllib.parse

import pytest
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status

from vigil_sidecar.errors import ContractViolation
from vigil_sidecar.server.call import CallContext
from vigil_sidecar.server.status import error_reply


@pytest.mark.parametrize("letter", ["a", "\u00e9", "\U0001f600", "\udcff"])
@pytest.mark.parametrize("size", [1, 100, 2048, 60000])
@pytest.mark.parametrize("count", [0, 1, 40, 500])
def test_any_error_fits(letter: str, size: int, count: int) -> None:
    """Whatever it quotes, it has less than 7,000 bytes, names the first field and counts what it leaves out."""
    text = letter * size
    reply = error_reply(ContractViolation(text, [(f"f{i}" + text, text) for i in range(count)]), CallContext())
    assert len(urllib.parse.quote(reply.text)) + len(base64.b64encode(reply.status)) < 7000
    if count == 0:
        return
    bad = BadRequest()
    assert Status.FromString(reply.status).details[0].Unpack(bad)
    told = [v for v in bad.field_violations if v.field]
    more = [int(v.description.split()[0]) for v in bad.field_violations if not v.field]
    assert told[0].field.startswith("f0") and len(told) + sum(more) == count
