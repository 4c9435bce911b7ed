"""Calls that wait for their model: by priority, each with the time until which it may wait. A pure core without a clock.

As Triton's dynamic batcher (model_config.proto, ``ModelDynamicBatching`` and ``ModelQueuePolicy``): level 1 goes first; in a
level those that have waited too long are refused, or wait behind all others of it.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, NamedTuple, TypeVar

from vigil_sidecar.registry.options import QueueOptions

__all__ = ["Line", "Turned"]

T = TypeVar("T")


class _Place(NamedTuple, Generic[T]):
    item: T
    since_ns: int
    expires_ns: int
    """0: it may wait for ever."""
    delayed: bool
    """Once expired it waits behind others, instead of being refused."""


class Turned(NamedTuple, Generic[T]):
    """An item that is not taken: there was no room in its level, or (``late``) it waited too long."""

    item: T
    late: bool


class Line(Generic[T]):
    """Items in the order in which they are to be taken. Not safe for threads: its user holds a lock.

    Invariant: what was put is, exactly once, taken or turned away.
    """

    def __init__(self) -> None:
        self._levels: dict[int, deque[_Place[T]]] = {}
        self._behind: dict[int, deque[_Place[T]]] = {}
        """By level, those that are late and wait behind its others."""
        self._turned: list[Turned[T]] = []
        self._count = 0

    def __len__(self) -> int:
        """How many are to be taken."""
        return self._count

    @property
    def unanswered(self) -> int:
        """How many wait, to be taken or to hear that they are turned away."""
        return self._count + len(self._turned)

    def put(self, item: T, now_ns: int, options: QueueOptions | None, priority: int = 0, timeout_us: int = 0) -> None:
        """Add an item. ``priority`` 0, and one beyond the levels, is the default level; ``timeout_us`` 0 asks for none."""
        if options is None:
            self._levels.setdefault(0, deque()).append(_Place(item, now_ns, 0, False))
            self._count += 1
            return
        level = options.level(priority)
        policy = options.policy(level)
        waiting = len(self._levels.get(level, ())) + len(self._behind.get(level, ()))
        if 0 < policy.size_max <= waiting:
            self._turned.append(Turned(item, False))
            return
        allowed_us = policy.timeout_us
        if policy.override and timeout_us:
            allowed_us = min(timeout_us, allowed_us or timeout_us)
        expires_ns = now_ns + allowed_us * 1000 if allowed_us else 0
        self._levels.setdefault(level, deque()).append(_Place(item, now_ns, expires_ns, policy.delay))
        self._count += 1

    def expire(self, now_ns: int) -> None:
        """Turn away, or put behind, what has waited too long."""
        for level, places in self._levels.items():
            if not any(0 < p.expires_ns < now_ns for p in places):
                continue
            kept: deque[_Place[T]] = deque()
            for p in places:
                if not 0 < p.expires_ns < now_ns:
                    kept.append(p)
                elif p.delayed:
                    self._behind.setdefault(level, deque()).append(p)
                else:
                    self._turned.append(Turned(p.item, True))
                    self._count -= 1
            self._levels[level] = kept

    def turned(self) -> list[Turned[T]]:
        """Those that are turned away, once."""
        found, self._turned = self._turned, []
        return found

    def oldest_ns(self) -> int:
        """Since when the one waits that has waited longest; there is one."""
        return min(d[0].since_ns for part in (self._levels, self._behind) for d in part.values() if d)

    def next_expiry_ns(self) -> int:
        """When the next one will have waited too long; 0 when none will."""
        return min((p.expires_ns for places in self._levels.values() for p in places if p.expires_ns), default=0)

    def take(self, count: int) -> list[T]:
        """The next items, at most so many: by level, those that are not late first."""
        out: list[T] = []
        for level in sorted(self._levels.keys() | self._behind.keys()):
            for places in (self._levels.get(level), self._behind.get(level)):
                while places and len(out) < count:
                    out.append(places.popleft().item)
        self._count -= len(out)
        return out
