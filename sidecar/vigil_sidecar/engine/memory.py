"""Memory: what the machine or a control group still has, what may be taken of it, and a fence at that line.

Sources: proc_meminfo(5) (``MemAvailable``), the kernel's cgroup-v2.rst (``memory.max``, ``memory.current``,
``memory.stat``), cgroup-v1/memory.rst, and getrlimit(2) for ``RLIMIT_DATA``, which since Linux 4.7 counts
every private writable mapping.
"""

from __future__ import annotations

import math
import os
import re
import resource
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["MemoryBudget", "Room", "is_out_of_memory", "lacking", "left_text", "room"]

_LOAD_SHARE = 1.25
"""Least that a loaded graph takes of memory, as a share of its file: 1.07 was measured, with its first batch."""
_FENCE_STEP_BYTES = 96 << 20
"""What the process may always take beyond what it has: it has to go on saying no, to write it down, and to start threads,
whose stacks count 8 MiB each although they take a few KiB."""
_INTERVAL_S = 0.25
_LITTLE, _TRIM_EVERY_S = 4, 5.0
"""Less than a quarter of the most that could be taken is little; at most so often memory is given back for that."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_NATIVE = re.compile(r"Failed to allocate memory for requested buffer of size (\d+)")
_OTHERS = re.compile(r"std::bad_alloc|bad allocation|Tensor storage size overflowed|SafeIntOnOverflow|Unable to allocate")


class Room(NamedTuple):
    """Bytes that can be had without swapping, of how many, and who gives no more: the machine or a control group."""

    available: int
    total: int
    of: str


def _number(path: str) -> int | None:
    try:
        with open(path, "rb", buffering=0) as file:
            return int(file.read(64))
    except (OSError, ValueError):  # "max" is no number either
        return None


def _statistic(path: str, name: bytes) -> int:
    try:
        with open(path, "rb") as file:
            return next((int(line.split()[1]) for line in file if line.startswith(name)), 0)
    except (OSError, ValueError, IndexError):
        return 0


@lru_cache(8)
def _groups(proc: Path, root: Path) -> tuple[tuple[str, str, str, bytes], ...]:
    """Control groups of this process, innermost first: the files of limit, use and statistics, and what can be dropped."""
    found = []
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return ()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, use, droppable = root, "memory.max", "memory.current", b"inactive_file "
        elif "memory" in controllers.split(","):
            base, limit, use, droppable = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", b"total_inactive_file "
        else:
            continue
        # A container often sees its own group as the root, under a path that only its host has.
        parts = [p for p in path.split("/") if p not in ("", "..")]
        for n in range(len(parts), -1, -1):
            folder = base.joinpath(*parts[:n])
            if (folder / limit).exists():
                found.append((str(folder / limit), str(folder / use), str(folder / "memory.stat"), droppable))
    return tuple(found)


def room(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> Room | None:
    """The tightest of the machine and this process's control groups; None where neither can be read."""
    found: list[Room] = []
    try:
        with open(proc / "meminfo", "rb", buffering=0) as file:
            data = file.read(4096)
        available, total = (int(data[data.index(n) + len(n) :].split(None, 1)[0]) * 1024 for n in (b"MemAvailable:", b"MemTotal:"))
        found.append(Room(available, total, "the machine"))
    except (OSError, ValueError):
        pass
    most = found[0].total if found else 1 << 62
    for limit, use, statistics, droppable in _groups(proc, groups):
        allowed = _number(limit)
        if allowed is not None and allowed < most and (used := _number(use)) is not None:
            free = allowed - used + _statistic(statistics, droppable)
            found.append(Room(max(0, min(free, allowed)), allowed, "the control group"))
    return min(found, default=None)


def _data_bytes() -> int | None:
    """What counts against RLIMIT_DATA now, with the stack, which is small (proc_pid_statm(5), data)."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return int(file.read(256).split()[5]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, of whatever library, says that memory could not be had."""
    text = str(error)[:4000]
    return isinstance(error, MemoryError) or _NATIVE.search(text) is not None or _OTHERS.search(text) is not None


def lacking(error: BaseException) -> str:
    """The figure in such an exception, as a part of a sentence: what was asked for."""
    native = _NATIVE.search(str(error)[:4000])
    return f"{native[1]} bytes" if native else "more"


def left_text() -> str:
    """How much this process may still take by its fence, as a part of a sentence; empty without a fence."""
    limit, data = resource.getrlimit(resource.RLIMIT_DATA)[0], _data_bytes()
    return "" if limit == resource.RLIM_INFINITY or data is None else f"; {max(0, limit - data)} bytes may be taken"


class MemoryBudget:
    """What may still be taken; ``start`` puts a fence there. Any thread may ask."""

    def __init__(self, reserve_bytes: int, most_bytes: int = 0, look: Callable[[], Room | None] = room) -> None:
        """``reserve_bytes`` of what ``look`` gives stay free, and this process takes ``most_bytes`` (0: any)."""
        self.reserve_bytes, self.most_bytes, self._look = reserve_bytes, most_bytes, look
        self.last_free: int | None = None
        """What could be taken when the fence was last set, which is several times a second once started; None: not known."""
        self.trim: Callable[[], None] = lambda: None
        """Gives back what is held and not used; called, seldom, when little is left."""
        self._ceiling = self._most_free = 0
        self._trimmed_s = -math.inf
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="memory", daemon=True)

    def _budget(self) -> tuple[int | None, str]:
        """Bytes that may still be taken (None where that cannot be known; negative when too much was), and why no more."""
        found, data = self._look(), _data_bytes()
        free = None if found is None else found.available - self.reserve_bytes
        text = "how much memory there is cannot be read here"
        if found is not None:
            text = f"{found.available} of {found.total} are available in {found.of}, "
            text += f"{self.reserve_bytes} stay free (limits.memory_reserve_bytes)"
        if self.most_bytes and data is not None and (free is None or self.most_bytes - data < free):
            free, text = self.most_bytes - data, f"{data} of {self.most_bytes} are taken (limits.memory_bytes_max)"
        return free, text

    def figures(self) -> str:
        """What there is, for an error's text."""
        free, text = self._budget()
        return text if free is None else f"{max(0, free)} bytes may be taken: {text}"

    def refusal(self, file_bytes: int) -> str:
        """Why a model file of this size may not be loaded now; empty when it may be tried."""
        free, text = self._budget()
        need = file_bytes + int(_LOAD_SHARE * file_bytes)
        if free is None or need <= free:
            return ""
        return (
            f"a model of {file_bytes} bytes needs at least {need} to load (its file is copied and its weights unpacked); "
            f"{max(0, free)} bytes may be taken: {text}"
        )

    def exceeded(self) -> str:
        """What was taken that should stay free; empty when nothing was."""
        free, text = self._budget()
        return "" if free is None or free >= 0 else f"with it {-free} bytes too many are taken: {text}"

    def fence(self) -> None:
        """Have the kernel refuse this process what would go into the reserve: then one allocation fails, not the process."""
        free, _ = self._budget()
        self.last_free, data = free if free is None else max(0, free), _data_bytes()
        if free is None or data is None:
            return
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if free > _FENCE_STEP_BYTES or not self._ceiling:
            self._ceiling = data + max(0, free)
        # Once little is left the fence stays, or each look would let the process take some more.
        limit = self._ceiling if free > _FENCE_STEP_BYTES else self._ceiling + _FENCE_STEP_BYTES
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))

    def start(self) -> None:
        """Keep the fence where it belongs, as others take and give memory."""
        self.fence()
        self._thread.start()

    def stop(self) -> None:
        """Leave the fence where it is."""
        self._stopping.set()

    def _follow(self) -> None:
        while not self._stopping.wait(_INTERVAL_S):
            try:
                self.fence()
                self._relieve()
            except Exception:  # as when there is no memory to look with: then nothing is known until the next look
                self.last_free = None

    def _relieve(self) -> None:
        """When little is left of what there was, have given back what nobody uses."""
        free = self.last_free
        if free is None:
            return
        self._most_free = max(self._most_free, free)
        if free < self._most_free // _LITTLE and time.monotonic() - self._trimmed_s > _TRIM_EVERY_S:
            self._trimmed_s = time.monotonic()
            self.trim()
            self.fence()
