"""Order of frames per source, and who watches a source."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

from vigil_sidecar.errors import LimitHit, OrderViolation

__all__ = ["SourceOrder", "Subscription", "WatchHub"]


_RETRIES_MAX = 16
"""A source's latest frames whose retries are known."""


class _Last(NamedTuple):
    capture_time_us: int
    accepted: tuple[tuple[int, str], ...]
    """Time and request id of the latest frames that had one."""
    seen_s: float


class SourceOrder:
    """Remembers the last accepted time of each source of each tenant. Any thread may call.

    Invariant: entries are ordered by when they were last used, so the idle
    ones are at the front.
    """

    def __init__(self, sources_max: int, idle_s: float, skew_max_s: float, now_s: Callable[[], float], utc_s: Callable[[], float]):
        self._max, self._idle_s, self._skew_s = sources_max, idle_s, skew_max_s
        self._now_s, self._utc_s = now_s, utc_s
        self._lock = threading.Lock()
        self._last: OrderedDict[tuple[str, str], _Last] = OrderedDict()

    def __len__(self) -> int:
        return len(self._last)

    def known(self, tenant: str, most: int) -> list[tuple[str, int, float]]:
        """The tenant's sources, the one used last first: name, latest capture time (µs), seconds since its last frame."""
        now_s = self._now_s()
        with self._lock:
            found = [(k[1], x.capture_time_us, now_s - x.seen_s) for k, x in reversed(self._last.items()) if k[0] == tenant]
        return [x for x in found if x[2] <= self._idle_s][:most]

    def accept(self, tenant: str, source: str, capture_time_us: int, request_id: str, again: bool = False) -> None:
        """Accept a frame's time, or raise ``OrderViolation`` or ``LimitHit``; nothing changes then.

        ``again``: the model asked first may have accepted the same frame.
        """
        ahead_s = capture_time_us / 1e6 - self._utc_s()
        if ahead_s > self._skew_s:
            raise OrderViolation(
                f"capture_time_us {capture_time_us} is {ahead_s:.1f} s ahead of now, the limit is {self._skew_s} s "
                "(limits.capture_skew_max_s)",
                [("capture_time_us", "too far ahead")],
            )
        now_s, key = self._now_s(), (tenant, source)
        with self._lock:
            while self._last and now_s - next(iter(self._last.values())).seen_s > self._idle_s:
                self._last.popitem(last=False)
            last = self._last.get(key)
            if last is not None:
                retry = request_id != "" and (capture_time_us, request_id) in last.accepted
                if retry or (again and capture_time_us == last.capture_time_us):
                    self._last[key] = last._replace(seen_s=now_s)
                    self._last.move_to_end(key)
                    return
                # SR-008
                if capture_time_us <= last.capture_time_us:
                    raise OrderViolation(
                        f"capture_time_us {capture_time_us} of source '{source}' is not after {last.capture_time_us}",
                        [("capture_time_us", "not increasing")],
                    )
            elif len(self._last) >= self._max:
                raise LimitHit(
                    f"{self._max} sources are known (limits.sources_max); idle ones are forgotten after {self._idle_s} s",
                    metadata={"limit": "limits.sources_max"},
                )
            known = last.accepted if last is not None else ()
            accepted = (*known, (capture_time_us, request_id))[-_RETRIES_MAX:] if request_id else known
            self._last[key] = _Last(capture_time_us, accepted, now_s)
            self._last.move_to_end(key)


class Subscription:
    """A watcher's bounded queue: when it is full the oldest item goes and is counted."""

    def __init__(self, size_max: int) -> None:
        self._items: deque[Any] = deque()
        self._max, self._dropped, self._closed = size_max, 0, False
        self._condition = threading.Condition()

    def put(self, item: Any) -> None:
        """Add an item without waiting."""
        with self._condition:
            if len(self._items) >= self._max:
                self._items.popleft()
                self._dropped += 1
            self._items.append(item)
            self._condition.notify()

    def get(self, timeout_s: float) -> tuple[Any, int] | None:
        """The next item and how many were dropped before it; None after the time or when closed."""
        with self._condition:
            if not self._items and not self._closed:
                self._condition.wait(timeout_s)
            if not self._items:
                return None
            dropped, self._dropped = self._dropped, 0
            return self._items.popleft(), dropped

    def close(self) -> None:
        """Wake the reader for the last time."""
        with self._condition:
            self._closed = True
            self._condition.notify()


class WatchHub:
    """Passes items to the watchers of a key."""

    def __init__(self, watchers_max: int, queue_max: int) -> None:
        self._watchers_max, self._queue_max = watchers_max, queue_max
        self._lock = threading.Lock()
        self._by_key: dict[object, list[Subscription]] = {}
        self._count = 0

    def subscribe(self, key: object, queue_max: int = 0) -> Subscription:
        """Start watching, with a queue of its own size or the usual one; raises ``LimitHit``."""
        with self._lock:
            if self._count >= self._watchers_max:
                raise LimitHit(f"{self._watchers_max} watchers (limits.watchers_max)", metadata={"limit": "limits.watchers_max"})
            self._count += 1
            subscription = Subscription(queue_max or self._queue_max)
            self._by_key.setdefault(key, []).append(subscription)
            return subscription

    def unsubscribe(self, key: object, subscription: Subscription) -> None:
        """Stop watching."""
        with self._lock:
            watchers = self._by_key.get(key, [])
            if subscription in watchers:
                watchers.remove(subscription)
                self._count -= 1
            if not watchers:
                self._by_key.pop(key, None)

    def watched(self, key: object) -> bool:
        """Whether anybody watches a key."""
        return key in self._by_key

    def publish(self, key: object, item: Any) -> None:
        """Give an item to every watcher of the key; never waits."""
        if self.watched(key):
            with self._lock:
                watchers = tuple(self._by_key.get(key, ()))
            for subscription in watchers:
                subscription.put(item)
