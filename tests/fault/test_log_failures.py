"""The whole product while a log's disk hangs, is full, read-only or limited: what callers get, and the account afterwards."""

from __future__ import annotations

import errno
import hashlib
import json
import resource
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as oip
from vigil.models.v1 import models_pb2 as models

from tests.harness import graphs
from tests.harness.account import Account, account
from tests.harness.calls import Stub, infer_request
from tests.harness.load import Load
from tests.harness.product import Product, wait_for
from tests.harness.syscalls import SystemCalls

X = np.array([[1, 2, 3, 4]], np.float32)
RELOAD = "/vigil.models.v1.ModelsService/ReloadModel"
UNKNOWN = models.ReloadModelRequest(name="unknown", reason="a test")
IN_FLIGHT = 8
CALLER_LIMIT_S = 5.0
"""Far above ``audit.write_timeout_ms`` (0.9 s), far below the callers' own deadline (20 s): a blocked caller, not a slow machine."""


class Trial:
    """One product under a load of good and of bad calls."""

    def __init__(self, folder: Path, calls: SystemCalls | None, **settings: Any) -> None:
        named = {"audit." + k: v for k, v in settings.items()}
        self.product = Product(folder, named, calls=calls)
        model = graphs.scale(2.0, self.product.models / "m" / "1" / "model.onnx")
        self._digest = hashlib.sha256(model).hexdigest()
        self.replies: list[tuple[str, str]] = []
        self.slowest_s = 0.0

    def bad_calls(self, stub: Stub, seconds: float) -> Counter[str]:
        """Calls that the gateway refuses, and some control calls that the sidecar refuses; the statuses of the first."""
        end, codes = time.monotonic() + seconds, Counter[str]()
        while time.monotonic() < end:
            codes[self._refused(lambda: stub.infer(oip.ModelInferRequest()))] += 1
            if codes.total() % 20 == 1:
                self._refused(lambda: stub.unary(RELOAD, UNKNOWN, models.ReloadModelResponse))
            time.sleep(0.005)
        return codes

    def _refused(self, call: Any) -> str:
        start = time.monotonic()
        with pytest.raises(grpc.RpcError) as refused:
            call()
        self.slowest_s = max(self.slowest_s, time.monotonic() - start)
        code = str(refused.value.code().name)
        self.replies.append((dict(refused.value.trailing_metadata()).get("vigil-audit-position", ""), code))
        return code

    def run(self, failing: Any, mended: Any, seconds: float = 2.5) -> Account:
        """Load before, while and after the log fails."""
        with self.product as product:
            stub = Stub(product.channel())
            with Load(product, "m", IN_FLIGHT, {"x": X}, {self._digest: X * 2}) as load:
                assert set(self.bad_calls(stub, 0.5)) == {"INVALID_ARGUMENT"}
                failing(product)
                self.meanwhile = self.bad_calls(stub, seconds)
                mended(product)
                self.again = wait_for(lambda: self._serves(stub), 20, "calls are served again")
                self.result = load.stop()
            assert product.stop() == 0
            self.replies += [(position, code) for position, code in self.result["replies"]]
            self.slowest_s = max(self.slowest_s, self.result["error_slowest_s"], self.result["max_ms"] / 1000)
            found = account(product.data / "audit", self.replies)
            for report in (*product.auditverify(), *self._verified_in_python()):
                assert report["verdict"] == "verified", report
                assert report["unlogged"] == found.stated[report["log"].split("/")[1]], report
            return found

    def _verified_in_python(self) -> list[dict[str, Any]]:
        keys = [x for log in ("gateway", "sidecar") for x in ("--key", str(self.product.data / "keys" / f"audit-{log}.pub"))]
        reports: list[dict[str, Any]] = json.loads(self.product.vigil("audit", "verify", "--json", *keys).stdout)
        return reports

    def _serves(self, stub: Stub) -> bool:
        good = set(self.bad_calls(stub, 0.3)) == {"INVALID_ARGUMENT"}
        return good and self.product.vigil("safety", "status", check=False).stdout.startswith("whole: NORMAL")


def judge(trial: Trial, found: Account, log: str, policy: str) -> None:
    """What holds for every cause."""
    assert found.wrong == [] and found.without_position == 0
    assert trial.result["wrong_count"] == 0 and trial.slowest_s < CALLER_LIMIT_S
    # Each reply has its record or is counted; a record that came late, after its caller heard "unlogged", is in no count.
    # While the sidecar's log hangs, its count may hold calls under way that the gateway had ended, and recorded, before.
    surplus = found.final + found.stated_calls.total() - found.recorded - found.unlogged.total()
    assert 0 <= surplus <= (IN_FLIGHT + 1 if log == "sidecar" and policy == "refuse" else 0)
    assert found.aggregated == found.stated_aggregated
    failed = set(trial.result["error_codes"])
    if policy == "refuse":
        assert failed == {"UNAVAILABLE"}
        assert all("no answer leaves without its record" in e["text"] for e in trial.result["errors"])
    else:
        assert failed == set() and set(trial.meanwhile) == {"INVALID_ARGUMENT"}
        assert found.unlogged[log] > 10 and found.stated_calls[log] > 10


@pytest.fixture
def calls() -> Iterator[SystemCalls]:
    with SystemCalls() as found:
        yield found


HANGS = [(d, log, p) for d in ("interval", "power") for log in ("sidecar", "gateway") for p in ("refuse", "degrade", "continue")]
HANGS_SHORT = [h for i, h in enumerate(HANGS) if i in (0, 2, 4, 7, 9, 11)]
"""Each value beside each value of the others; the rest are part of the long runs."""


@pytest.mark.parametrize(
    ("durability", "log", "policy"), [pytest.param(*h, marks=() if h in HANGS_SHORT else pytest.mark.long) for h in HANGS]
)
def test_hanging_disk(tmp_path: Path, calls: SystemCalls, log: str, durability: str, policy: str) -> None:
    """A write, or a force to disk, is held by the kernel for seconds: no caller waits for it."""
    names = ("fdatasync", "fsync") if durability == "power" else ("pwrite64",)
    trial = Trial(tmp_path, calls, on_failure=policy, durability=durability)
    found = trial.run(lambda _: calls.hold(f"audit/{log}", *names), lambda _: calls.release())
    assert calls.touched > 0
    judge(trial, found, log, policy)


def test_the_sidecars_own_listener_while_the_disk_hangs(tmp_path: Path, calls: SystemCalls) -> None:
    """Calls past the gateway do not wait for the disk either; each is in the count of what was left out, or named as superseded."""
    product = Product(tmp_path, calls=calls)
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        stub = Stub(product.channel("sidecar_grpc"))
        stub.infer(infer_request("m", {"x": X}))
        calls.hold("audit/sidecar", "pwrite64")
        positions = []
        for _ in range(4):
            start = time.monotonic()
            with pytest.raises(grpc.RpcError, match="no answer leaves without its record") as refused:
                stub.infer(infer_request("m", {"x": X}))
            assert time.monotonic() - start < CALLER_LIMIT_S
            positions.append(dict(refused.value.trailing_metadata())["vigil-audit-position"])
        calls.release()
        wait_for(lambda: product.vigil("safety", "status", check=False).stdout.startswith("whole: NORMAL"), 20, "normal again")
        stub.infer(infer_request("m", {"x": X}))
        assert product.stop() == 0
    assert all(p.startswith("sidecar/") and p.endswith("/unlogged") for p in positions)
    found = account(product.data / "audit", [(p, "UNAVAILABLE") for p in positions])
    assert found.wrong == [] and found.stated_calls["sidecar"] + found.superseded >= 4


FAILURES = [(e, log, p) for e in (errno.EIO, errno.EROFS) for log in ("sidecar", "gateway") for p in ("refuse", "continue")]


@pytest.mark.parametrize(
    ("error", "log", "policy"), [pytest.param(*f, marks=() if i in (0, 3, 5, 6) else pytest.mark.long) for i, f in enumerate(FAILURES)]
)
def test_failing_writes(tmp_path: Path, calls: SystemCalls, log: str, error: int, policy: str) -> None:
    """Every write to a log fails, as on a broken disk or a file system that the kernel made read-only."""
    trial = Trial(tmp_path, calls, on_failure=policy)
    found = trial.run(lambda _: calls.fail(f"audit/{log}", error, "pwrite64"), lambda _: calls.release())
    assert calls.touched > 0
    judge(trial, found, log, policy)


@pytest.mark.parametrize("log", ["sidecar", "gateway"])
def test_file_size_limit(tmp_path: Path, log: str) -> None:
    """A process that may not write beyond a size (RLIMIT_FSIZE) refuses, and serves when the limit is lifted."""

    def limit(product: Product, size: int) -> None:
        resource.prlimit(product.pids()[f"{log}_pid"], resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    trial = Trial(tmp_path, None, on_failure="refuse")
    found = trial.run(lambda product: limit(product, 4096), lambda product: limit(product, resource.RLIM_INFINITY))
    judge(trial, found, log, "refuse")


def test_full_file_system(tmp_path: Path) -> None:
    """The file system is full when a log needs its next segment; it serves again when there is room."""
    (tmp_path / "var").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(tmp_path / "var")], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        trial = Trial(tmp_path, None, on_failure="refuse", segment_bytes=1 << 20)
        stuffing = tmp_path / "var" / "stuffing"

        def fill(_: Product) -> None:
            with stuffing.open("wb", buffering=0) as out, pytest.raises(OSError, match="No space left"):
                while True:
                    out.write(bytes(4096))

        found = trial.run(fill, lambda _: stuffing.unlink(), 6.0)
        judge(trial, found, "sidecar", "refuse")
    finally:
        subprocess.run(["umount", str(tmp_path / "var")], check=True)
