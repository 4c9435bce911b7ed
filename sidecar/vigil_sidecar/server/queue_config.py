"""dynamic_batching of config.pbtxt: how calls of a model wait for each other."""

from __future__ import annotations

from typing import Any

from inference.model_config_pb2 import ModelConfig

from vigil_sidecar.errors import CandidateRefused
from vigil_sidecar.registry.options import QueueOptions, QueuePolicy

__all__ = ["read_queue", "write_queue"]

_DELAY_US_MAX = 1_000_000
_LEVELS_MAX = 1024


def _refused(field: str, text: str) -> CandidateRefused:
    return CandidateRefused(f"config.pbtxt: dynamic_batching.{field}{text}")


def _policy(said: Any, where: str, delay_us: int) -> QueuePolicy:
    timeout = said.default_timeout_microseconds
    if 0 < timeout <= delay_us:
        text = f".default_timeout_microseconds is {timeout}, every call may wait {delay_us} (max_queue_delay_microseconds)"
        raise _refused(where, text)
    return QueuePolicy(said.max_queue_size, timeout, said.timeout_action == said.DELAY, said.allow_timeout_override)


def read_queue(config: ModelConfig) -> QueueOptions | None:
    """How calls wait; None where the file says nothing that Vigil does not do anyway. Raises ``CandidateRefused``."""
    said = config.dynamic_batching
    sizes = tuple(sorted(said.preferred_batch_size))
    if any(not 1 <= p <= config.max_batch_size for p in sizes):
        wrong = sizes[-1] if sizes[0] > 0 else sizes[0]
        raise _refused("preferred_batch_size", f" has {wrong}, allowed is 1..{config.max_batch_size} (max_batch_size)")
    if (delay := said.max_queue_delay_microseconds) > _DELAY_US_MAX:
        raise _refused("max_queue_delay_microseconds", f" is {delay}, allowed is 0..{_DELAY_US_MAX}")
    levels, default = said.priority_levels, said.default_priority_level
    if levels > _LEVELS_MAX:
        raise _refused("priority_levels", f" is {levels}, allowed is 0..{_LEVELS_MAX}")
    if levels and not 1 <= default <= levels:
        raise _refused("default_priority_level", f" is {default}, allowed is 1..{levels} (priority_levels)")
    if not levels and (default or said.priority_queue_policy):
        raise _refused("priority_levels", " is 0, but default_priority_level or priority_queue_policy is given")
    for level in said.priority_queue_policy:
        if not 1 <= level <= levels:
            raise _refused("priority_queue_policy", f" is of level {level}, allowed is 1..{levels} (priority_levels)")
    queue = QueueOptions(
        delay, sizes, _policy(said.default_queue_policy, "default_queue_policy", delay), levels, default,
        {n: _policy(p, f"priority_queue_policy[{n}]", delay) for n, p in said.priority_queue_policy.items()}, said.preserve_ordering,
    )  # fmt: skip
    return queue if queue != QueueOptions(preserve_ordering=queue.preserve_ordering) else None


def _write_policy(into: Any, policy: QueuePolicy) -> None:
    into.max_queue_size, into.default_timeout_microseconds = policy.size_max, policy.timeout_us
    into.timeout_action = into.DELAY if policy.delay else into.REJECT
    into.allow_timeout_override = policy.override


def write_queue(queue: QueueOptions, into: ModelConfig) -> None:
    """The same as a configuration says it."""
    said = into.dynamic_batching
    said.preferred_batch_size.extend(queue.preferred)
    said.max_queue_delay_microseconds = queue.delay_us
    said.priority_levels, said.default_priority_level = queue.levels, queue.default_level
    said.preserve_ordering = queue.preserve_ordering
    _write_policy(said.default_queue_policy, queue.default)
    for level, policy in queue.policies.items():
        _write_policy(said.priority_queue_policy[level], policy)
