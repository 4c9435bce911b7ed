"""One request on its way through a batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vigil_sidecar.registry.version import LoadedVersion

__all__ = ["Job", "JobResult"]


class JobResult(NamedTuple):
    """Hash of the output, and the answer's bytes once the audit position is known."""

    output_hash: bytes
    encode: Callable[[str], bytes]


@dataclass(slots=True)
class Job:
    """Feeds of one request. ``rows`` 0 means that it is run alone; jobs with equal ``key`` may share a batch."""

    call: Any
    version: LoadedVersion
    feeds: Mapping[str, Any]
    rows: int
    outputs: tuple[str, ...]
    key: Hashable
    input_hash: bytes
    request_id: str
    source_id: str
    finish: Callable[..., JobResult]
    """Called with the job's arrays; with a second argument True when ``plausible`` held for its whole batch."""
    plausible: Callable[[LoadedVersion, Sequence[Any]], bool] | None = None
