"""Threads, descriptors and memory of all processes are the same after many swaps and many restarts."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.harness import graphs
from tests.harness.calls import Stub, infer_request
from tests.harness.product import Product, wait_for

X = np.array([[1, 2, 3, 4]], np.float32)
WARM = 10
"""Swaps, or restarts, until pools are full and caches are there."""
LAYERS, WIDTH = 4, 512
"""4 MiB of weights: a session that stayed would be seen."""
MEMORY_KIB = 24 << 10


def counts(pid: int) -> tuple[int, int]:
    """Threads and open descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/task").iterdir())), len(list(Path(f"/proc/{pid}/fd").iterdir()))


def gateway_counts(product: Product) -> tuple[int, int]:
    """Goroutines and open descriptors of the gateway; its operating system threads come and go as Go likes."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{product.ports['metrics']}/metrics", timeout=10).read().decode()
    found = re.search(r"^go_goroutines (\d+)", text, re.MULTILINE)
    assert found is not None
    return int(found.group(1)), counts(product.pids()["gateway_pid"])[1]


def resident_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 10


def at_rest(now: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """The most that was seen in two seconds: right after a restart a link's last parts may still be on their way.

    A leak shows once for every swap or restart, so it stands out above this."""
    seen = []
    for _ in range(20):
        seen.append(now())
        time.sleep(0.1)
    return max(a for a, _ in seen), max(b for _, b in seen)


def settled(now: Callable[[], tuple[int, int]], before: tuple[int, int], what: str) -> None:
    """Wait until a process has no more threads (or goroutines) and descriptors than before."""
    try:
        wait_for(lambda: all(a <= b for a, b in zip(now(), before, strict=True)), 40, what, every_s=0.2)
    except AssertionError:
        raise AssertionError(f"{what}: threads and descriptors were {before}, and are {now()}") from None


def fill_pools(stub: Stub) -> None:
    """Let every pooled thread come to be: control calls and reads have some each."""
    for _ in range(12):
        stub.models()
        stub.state()


SWAPS = [30, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(2400)])]


@pytest.mark.parametrize("swaps", SWAPS)
def test_swaps_leave_nothing_behind(tmp_path: Path, swaps: int) -> None:
    product = Product(tmp_path)
    file = product.models / "m" / "1" / "model.onnx"
    data = [graphs.gemm(LAYERS, WIDTH, seed=s) for s in (1, 2)]
    file.parent.mkdir(parents=True)
    file.write_bytes(data[0])
    with product:
        stub = Stub(product.channel())
        sidecar = product.pids()["sidecar_pid"]
        request = infer_request("m", {"x": np.ones((1, WIDTH), np.float32)})

        def swap(number: int) -> None:
            content = data[number % 2]
            file.with_suffix(".new").write_bytes(content)
            file.with_suffix(".new").rename(file)
            wanted = hashlib.sha256(content).hexdigest()
            wait_for(lambda: stub.models()["m"].serving_digest == wanted, 30, f"swap {number}")
            stub.infer(request)

        for i in range(1, WARM + 1):
            swap(i)
        fill_pools(stub)
        before, gateway, resident = at_rest(lambda: counts(sidecar)), at_rest(lambda: gateway_counts(product)), resident_kib(sidecar)
        for i in range(WARM + 1, WARM + swaps + 1):
            swap(i)
        settled(lambda: counts(sidecar), before, "sidecar")
        settled(lambda: gateway_counts(product), gateway, "gateway")
        wait_for(lambda: resident_kib(sidecar) - resident < MEMORY_KIB, 20, f"memory: {resident} KiB, now {resident_kib(sidecar)}")


RESTARTS = [5, pytest.param(50, marks=[pytest.mark.long, pytest.mark.timeout(1200)])]


@pytest.mark.parametrize("restarts", RESTARTS)
def test_restarts_leave_nothing_behind(tmp_path: Path, restarts: int) -> None:
    """Of the sidecar, seen from the gateway and the supervisor, which live on."""
    product = Product(tmp_path, {"supervisor.restart_count_max": 10_000, "supervisor.backoff_ms": 0, "safety.rounds_max": 10_000})
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        stub = Stub(product.channel())

        def restart(number: int) -> None:
            old = product.pids()["sidecar_pid"]
            os.kill(old, signal.SIGKILL)
            wait_for(lambda: product.pids()["sidecar_pid"] != old, 60, f"restart {number}")
            wait_for(lambda: np.array_equal(np.frombuffer(stub.infer(request).raw_output_contents[0], "<f4"), X[0] * 2), 60, "served again")

        request = infer_request("m", {"x": X})
        for i in range(3):
            restart(i)
        fill_pools(stub)
        supervisor = product.pids()["supervisor_pid"]
        gateway, before = at_rest(lambda: gateway_counts(product)), at_rest(lambda: counts(supervisor))
        for i in range(restarts):
            restart(i)
        settled(lambda: counts(supervisor), before, "supervisor")
        settled(lambda: gateway_counts(product), gateway, "gateway")
