"""What keeps the sidecar busy for long is not called a hang."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.harness import graphs
from tests.harness.calls import Stub, infer_request
from tests.harness.product import Product
from vigil_safety import events_gen as events
from vigil_sidecar.audit.reader import read_records

_SILENT = (events.HEARTBEAT_EXPIRED, events.HEARTBEAT_LATE)


@pytest.mark.parametrize(("form", "mib", "calls", "at_once"), [("raw", 40, 9, 3), ("typed", 12, 3, 1)])
def test_large_messages_are_no_hang(tmp_path: Path, form: str, mib: int, calls: int, at_once: int) -> None:
    """Each is copied, hashed and encoded under the interpreter's lock, typed numbers one by one: heartbeats go on between."""
    width = mib << 18
    graphs.scale(2.0, tmp_path / "models" / "scale" / "1" / "model.onnx", width, rows=1)
    x = np.ones((1, width), np.float32)
    with Product(tmp_path) as product:
        request = infer_request("scale", {"x": x})
        if form == "typed":
            request.ClearField("raw_input_contents")
            request.inputs[0].contents.fp32_contents.extend(x.ravel().tolist())
        stubs = [Stub(product.channel()) for _ in range(at_once)]
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda i: stubs[i % at_once].infer(request, timeout_s=60), range(calls)))
    assert [r.payload for r in read_records(product.data / "audit" / "gateway") if r.header.event_id in _SILENT] == []
