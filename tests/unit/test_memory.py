"""How much memory there is, what is refused for it, and the fence: with made-up machines, and with this one."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.harness import graphs
from tests.harness.product import ROOT, wait_for
from vigil_sidecar.engine import arena
from vigil_sidecar.engine.memory import MemoryBudget, Room, is_out_of_memory, lacking, room
from vigil_sidecar.errors import CandidateRefused
from vigil_sidecar.registry.loader import Loader
from vigil_sidecar.settings_gen import Settings

CASES = json.loads((ROOT / "tests" / "vectors" / "memory.json").read_text())
"""Made-up machines, which the gateway's reading is held against too (gateway-go/internal/memory)."""


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_the_tightest_counts(case: dict[str, Any], tmp_path: Path) -> None:
    """The machine, or a control group of either version, also where a container sees its own as the root."""
    for place, text in case["files"].items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text)
    found = room(tmp_path / "proc", tmp_path / "fs")
    assert ((found.available, found.of) if found else (0, "")) == (case["available"], case["of"])


def test_what_cannot_be_read_refuses_nothing(tmp_path: Path) -> None:
    """Without figures nothing can be said, so nothing is refused."""
    assert room(tmp_path, tmp_path) is None
    budget = MemoryBudget(100, look=lambda: None)
    assert (budget.refusal(1 << 60), budget.exceeded()) == ("", "") and "cannot be read" in budget.figures()


def test_figures_of_a_model_that_does_not_fit() -> None:
    """Its size, what it needs, what there is, what stays free and by which setting."""
    budget = MemoryBudget(100, look=lambda: Room(1000, 4000, "the machine"))
    assert budget.refusal(400) == ""
    text = budget.refusal(401)
    assert all(f in text for f in ("401 bytes", "at least 902", "900 bytes may be taken", "1000 of 4000", "the machine", "100 stay free"))
    assert "limits.memory_reserve_bytes" in text
    assert budget.exceeded() == ""
    assert "with it 1 bytes too many" in MemoryBudget(100, look=lambda: Room(99, 4000, "the machine")).exceeded()


def test_what_this_process_may_take_is_a_limit_of_its_own() -> None:
    """limits.memory_bytes_max counts what the process has; the tighter of both is told."""
    free = lambda: Room(1 << 40, 1 << 41, "the machine")  # noqa: E731
    assert "are taken (limits.memory_bytes_max)" in MemoryBudget(0, 1 << 20, free).exceeded()
    assert MemoryBudget(0, 1 << 39, free).exceeded() == ""
    assert "limits.memory_bytes_max" in MemoryBudget(0, 1 << 39, free).refusal(1 << 39)
    assert "limits.memory_reserve_bytes" in MemoryBudget(1 << 40, 1 << 39, free).refusal(1 << 38)


def test_what_says_that_memory_is_short() -> None:
    """Of Python, NumPy and ONNX Runtime; and nothing else."""
    native = RuntimeError("bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 1600000000\n")
    assert is_out_of_memory(native) and lacking(native) == "1600000000 bytes"
    assert is_out_of_memory(MemoryError()) and lacking(MemoryError()) == "more"
    assert is_out_of_memory(RuntimeError("std::bad_alloc"))
    assert not is_out_of_memory(RuntimeError("Got invalid dimensions for input"))


def test_loader_reads_no_file_that_cannot_fit(tmp_path: Path) -> None:
    """It is refused before a byte of it is copied: the file here has a size, and nothing that could be read."""
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 33)
    loader = Loader(Settings(), lambda event: None, lambda version: None)
    loader.memory = MemoryBudget(0, look=lambda: Room(1 << 30, 1 << 34, "the machine"))
    with pytest.raises(CandidateRefused, match=r"a model of 8589934592 bytes needs at least .* may be taken"):
        loader.stage("m", 1, path)


_FENCED = """
import numpy as np
from vigil_sidecar.engine.memory import MemoryBudget, Room, room
real = room()
MemoryBudget(real.available - (300 << 20)).fence()
np.ones(100 << 20, np.uint8)
try:
    np.ones(1 << 30, np.uint8)
except MemoryError:
    print("refused")
np.ones(100 << 20, np.uint8)
print("goes on")
"""


def test_fence_fails_an_allocation_and_not_the_process() -> None:
    """The kernel itself refuses what goes beyond; what fits is given before and after."""
    done = subprocess.run([sys.executable, "-c", _FENCED], capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n")[:2] == ["refused", "goes on"], done.stderr
    assert np.ones(1 << 20).size  # this process has no fence


_CREEPING = """
import threading, time
import numpy as np
from vigil_sidecar.engine.memory import MemoryBudget, Room, room
trims = []
budget = MemoryBudget(room().available - (400 << 20))
budget.trim = lambda: trims.append(1)
budget.start()
held = []
end = time.monotonic() + 3
while time.monotonic() < end:
    try:
        held.append(np.ones(8 << 20, np.uint8))
        time.sleep(0.01)
    except MemoryError:
        time.sleep(0.05)
print(len(held) * 8 < 400 + 96 + 150, bool(trims), budget.last_free is not None)
"""


def test_fence_stays_where_little_is_left() -> None:
    """Who takes small pieces for seconds gets no more than there was and the step, however often the fence is looked after."""
    done = subprocess.run([sys.executable, "-c", _CREEPING], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True"] * 3, (done.stdout, done.stderr[-500:])


def test_a_look_that_fails_is_not_the_last() -> None:
    """The fence is looked after as long as the process lives."""
    looks: list[int] = []

    def look() -> Room:
        looks.append(1)
        if len(looks) == 2:
            raise MemoryError
        return Room(1 << 40, 1 << 41, "the machine")

    budget = MemoryBudget(0, look=look)
    budget.start()
    try:
        wait_for(lambda: len(looks) > 3, what="looks after one that failed")
    finally:
        budget.stop()
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert budget.last_free == 1 << 40


_ARENA = """
import resource, sys
import numpy as np
from vigil_sidecar.engine.arena import trim
from vigil_sidecar.engine.memory import is_out_of_memory
from vigil_sidecar.engine.session import Session

def data():
    return int(open("/proc/self/statm").read().split()[5]) * 4096

session = Session(sys.argv[1], intra_op_threads=1)
ask = lambda n: session.run({"shape": np.array([n, n], np.int64)})[0].nbytes
ask(2)
resource.setrlimit(resource.RLIMIT_DATA, (data() + (300 << 20), -1))
before = data()
try:
    ask(40_000)
except Exception as error:
    print(is_out_of_memory(error))
ask(2)
print(data() - before < 16 << 20)
print(ask(7000) >= 196_000_000, data() - before > 180 << 20)
trim()
print(data() - before < 16 << 20)
"""


def test_arena_takes_what_is_asked_for_and_gives_it_back(tmp_path: Path) -> None:
    """One that asked in vain has nothing reserved for it, and what a large one had is given back."""
    path = tmp_path / "model.onnx"
    graphs.filling(path)
    done = subprocess.run([sys.executable, "-c", _ARENA, str(path)], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True"] * 5, (done.stdout, done.stderr[-500:])


def test_graph_that_trims_is_one_of_onnx() -> None:
    """The bytes that stand in the source are what onnx makes of y = x."""
    model = onnx.load_from_string(arena._IDENTITY)
    onnx.checker.check_model(model)
    assert [n.op_type for n in model.graph.node] == ["Identity"]
