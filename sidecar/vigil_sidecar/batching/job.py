"""One request on its way through a batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from vigil_sidecar.errors import CallError
from vigil_sidecar.registry.version import LoadedVersion

__all__ = ["Form", "Job", "JobResult"]


class JobResult(NamedTuple):
    """Hash of the output, and the answer: its bytes, or what makes them once the audit position is known."""

    output_hash: bytes
    answer: bytes | Callable[[str], bytes]


class Form(Protocol):
    """What requests have in common that are stacked byte by byte and answered together."""

    def stack(self, jobs: Sequence[Job]) -> Mapping[str, Any]:
        """Feeds of all jobs as one; raises ``CallError`` when a job's tensors must be refused."""

    def answer(self, jobs: Sequence[Job], arrays: Sequence[Any]) -> bool:
        """Set the result of every job from the batch's outputs; False when an output must be looked at job by job."""


@dataclass(slots=True)
class Job:
    """A checked request. ``rows`` 0 means that it is run alone; jobs with equal ``key`` may share a batch.

    ``feeds`` are its arrays; a job with a ``form`` has ``raws``, the tensors' bytes
    in the form's order, instead. ``result``, ``batch_size`` and ``batch_row`` are
    set by running it.
    """

    call: Any
    version: LoadedVersion
    rows: int
    outputs: tuple[str, ...]
    key: Hashable
    input_hash: bytes
    request_id: str
    finish: Callable[[Sequence[Any]], JobResult]
    source_id: str = ""
    feeds: Mapping[str, Any] | None = None
    form: Form | None = None
    raws: Sequence[bytes | memoryview] = ()
    length: int = 0
    """Of a request whose length may differ from its neighbours' (``ModelOptions.ragged``)."""
    result: JobResult | CallError | None = None
    batch_size: int = 0
    batch_row: int = 0
