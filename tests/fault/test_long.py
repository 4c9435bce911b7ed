"""Long runs: part of ``make test-full`` only."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.harness import graphs
from tests.harness.calls import Stub
from tests.harness.load import Load
from tests.harness.product import Product, wait_for
from vigil_sidecar.audit.notes import Verifier
from vigil_sidecar.audit.verify import verify_folders

X = np.array([[1, 2, 3, 4]], np.float32)


def counts(pid: int) -> tuple[int, int]:
    """Threads and open descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/task").iterdir())), len(list(Path(f"/proc/{pid}/fd").iterdir()))


KILLS = 200


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_hundred_swaps_leak_nothing(tmp_path: Path) -> None:
    """After 200 swaps under load no call has failed, every number was right, and threads and descriptors are as before."""
    product = Product(tmp_path)
    data = [graphs.scale(2.0), graphs.scale(3.0)]
    expected = {hashlib.sha256(d).hexdigest(): X * np.float32(2 + i) for i, d in enumerate(data)}
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        stub = Stub(product.channel())
        pid = product.pids()["sidecar_pid"]
        with Load(product, "m", 32, {"x": X}, expected, seconds_max=1500) as load:
            time.sleep(2)
            before = counts(pid)
            for i in range(1, 201):
                file = product.models / "m" / "1" / "model.onnx"
                file.with_suffix(".new").write_bytes(data[i % 2])
                file.with_suffix(".new").rename(file)
                wanted = hashlib.sha256(data[i % 2]).hexdigest()
                wait_for(lambda w=wanted: stub.models()["m"].serving_digest == w, 30, f"swap {i}")
            time.sleep(2)
            after = counts(pid)
        assert load.result["error_count"] == 0 and load.result["wrong_count"] == 0
        # Pools of control and read calls may still have filled up meanwhile; a leak would be a multiple of 200.
        assert after[0] <= before[0] + 8 and after[1] <= before[1] + 8, (before, after)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_hundred_kills(tmp_path: Path) -> None:
    """200 kills of sidecar and gateway under load: every answer received has its record, and both logs verify with their first keys."""
    product = Product(tmp_path, {"supervisor.restart_count_max": 1000, "supervisor.backoff_ms": 0})
    data = graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    expected = {hashlib.sha256(data).hexdigest(): X * 2}
    total = 0
    with product:
        for i in range(KILLS):
            name = "gateway_pid" if i % 3 == 0 else "sidecar_pid"
            with Load(product, "m", 32, {"x": X}, expected) as load:
                time.sleep(0.5)
                before = product.pids()
                os.kill(before[name], signal.SIGKILL)
                wait_for(lambda n=name, b=before: product.pids()[n] != b[n], 60, f"{name} is restarted")
                result = load.stop()
            assert result["wrong_count"] == 0
            total += result["total"]
        assert product.stop() == 0
    keys = [Verifier((product.data / "keys" / f"audit-{n}.pub").read_text().split()[0]) for n in ("gateway", "sidecar")]
    reports = verify_folders([product.data / "audit" / n for n in ("gateway", "sidecar")], keys)
    assert [r.exit_code for r in reports] == [0, 0], reports
    assert [r["exit_code"] for r in product.auditverify()] == [0, 0]
    assert total <= reports[1].kinds["answer"] <= total + KILLS * 32
