"""Order of frames per source, and bounded watching."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_sidecar.errors import LimitHit, OrderViolation
from vigil_sidecar.streams.sources import SourceOrder, Subscription, WatchHub


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def order(clock: Clock, sources_max: int = 3) -> SourceOrder:
    return SourceOrder(sources_max, 10.0, 5.0, clock, clock)


def test_times_must_increase_per_tenant_and_source() -> None:
    """An equal or earlier time is refused; another source or tenant has its own order."""
    o = order(Clock())
    o.accept("t", "a", 100, "")
    for time_us in (100, 99):
        with pytest.raises(OrderViolation, match="not after 100"):
            o.accept("t", "a", time_us, "")
    o.accept("t", "b", 50, "")
    o.accept("u", "a", 50, "")
    o.accept("t", "a", 101, "")


def test_retry_is_no_violation() -> None:
    """The same request id with the same time is a retry; another time under that id is not."""
    o = order(Clock())
    o.accept("t", "a", 100, "r")
    o.accept("t", "a", 100, "r")
    with pytest.raises(OrderViolation):
        o.accept("t", "a", 99, "r")
    with pytest.raises(OrderViolation):
        o.accept("t", "a", 100, "other")


def test_future_stamp_does_not_lock_a_source_out() -> None:
    """A time beyond the skew is refused and leaves the order as it was."""
    o = order(Clock())
    with pytest.raises(OrderViolation, match="capture_skew_max_s"):
        o.accept("t", "a", int(1005.1 * 1e6), "")
    o.accept("t", "a", 1, "")


def test_sources_are_bounded_and_expire() -> None:
    """One source too many is refused by name; idle ones make room."""
    clock = Clock()
    o = order(clock)
    for name in "abc":
        o.accept("t", name, 1, "")
    with pytest.raises(LimitHit, match=r"limits\.sources_max"):
        o.accept("t", "d", 1, "")
    clock.now += 11
    o.accept("t", "d", 1, "")
    assert len(o) == 1


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 50)), max_size=50))
def test_accepted_times_strictly_increase(history: list[tuple[str, int]]) -> None:
    """Whatever comes, what is accepted of one source strictly increases."""
    o = order(Clock())
    accepted: dict[str, list[int]] = {"a": [], "b": []}
    for source, time_us in history:
        try:
            o.accept("t", source, time_us, "")
            accepted[source].append(time_us)
        except OrderViolation:
            assert time_us <= accepted[source][-1]
    for times in accepted.values():
        assert all(x < y for x, y in pairwise(times))


def test_slow_watcher_loses_the_oldest_and_is_told() -> None:
    """A full queue drops from its front and counts."""
    s = Subscription(2)
    for i in range(5):
        s.put(i)
    assert s.get(0) == (3, 3)
    assert s.get(0) == (4, 0)
    assert s.get(0) is None


def test_watchers_are_bounded() -> None:
    """One watcher too many is refused; leaving makes room."""
    hub = WatchHub(1, 4)
    first = hub.subscribe("k")
    with pytest.raises(LimitHit, match=r"limits\.watchers_max"):
        hub.subscribe("k")
    hub.unsubscribe("k", first)
    second = hub.subscribe("k")
    hub.publish("k", "item")
    hub.publish("other", "no")
    assert second.get(0) == ("item", 0)
    assert first.get(0) is None
