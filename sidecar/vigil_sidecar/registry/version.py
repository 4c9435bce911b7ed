"""A loaded version, its leases, and what is told about versions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from vigil_sidecar.engine.contract import Contract
from vigil_sidecar.engine.golden import Golden
from vigil_sidecar.registry.options import ModelOptions
from vigil_sidecar.registry.statistics import VersionStatistics

__all__ = ["Gate", "LoadedVersion", "ModelEvent", "ModelStage", "ModelView", "Runnable", "VersionView"]


class Runnable(Protocol):
    """What the registry needs of a session."""

    contract: Contract
    providers: list[str]

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> list[Any]:
        """Compute; may be called from several threads at once."""

    def close(self) -> None:
        """Free it."""


class Gate(NamedTuple):
    """A check that a version passed: its name, what was found, and the microseconds that it took."""

    name: str
    found: str
    took_us: int


class LoadedVersion:
    """A version in memory. Given to ``on_closed`` when it is retired and its last lease has ended.

    Invariant: ``session`` is usable exactly while somebody holds a lease, or
    while the version is not retired.
    """

    def __init__(
        self, model: str, number: int, digest: str, size: int, session: Runnable, options: ModelOptions,
        max_batch_size: int, run_s: float, batch_difference: float, golden: Golden, on_closed: Callable[[LoadedVersion], None],
    ) -> None:  # fmt: skip
        self.model, self.number, self.digest, self.size = model, number, digest, size
        self.digest_bytes = bytes.fromhex(digest)
        self.text = str(number)
        self.session, self.options = session, options
        self.max_batch_size, self.run_s, self.batch_difference = max_batch_size, run_s, batch_difference
        self.golden = golden
        """What the version is probed with."""
        self.inputs = {t.name: t for t in session.contract.inputs}
        self.outputs = {t.name: t for t in session.contract.outputs}
        self.output_names = tuple(self.outputs)
        self.known_shapes: dict[object, int] = {}
        """Element counts of shapes that were found to fit the contract; bounded by its users."""
        self.statistics = VersionStatistics()
        self.answer_heads: dict[object, bytes] = {}
        """Encoded answers without id and contents, by output names and shapes; bounded by its users."""
        self.stand_in: Any = None
        """What is told of its ladder (server/ladder.py); None without one."""
        self.plans: dict[bytes, Any] = {}
        self.forms: dict[object, Any] = {}
        """What is known of requests that differ in id and tensor bytes only (server/forms.py); bounded by its users."""
        self.gates: tuple[Gate, ...] = ()
        self.memory_bytes = 0
        """What the process grew by while it was loaded; 0: unknown."""
        self.retiring: Callable[[LoadedVersion], None] = lambda version: None
        """Hears that no new leases are given."""
        self._on_closed = on_closed
        self._lock = threading.Lock()
        self._leases = 0
        self._retired = False

    def acquire(self) -> bool:
        """Take a lease; False when the version is already retired."""
        with self._lock:
            if self._retired:
                return False
            self._leases += 1
            return True

    def release(self) -> None:
        """Give a lease back."""
        with self._lock:
            assert self._leases > 0
            self._leases -= 1
            last = self._retired and self._leases == 0
        if last:
            self._close()

    def retire(self) -> None:
        """No new leases; closed now or with the last one."""
        with self._lock:
            if self._retired:
                return
            self._retired = True
            idle = self._leases == 0
        self.retiring(self)
        if idle:
            self._close()

    def _close(self) -> None:
        self._on_closed(self)


class VersionView(NamedTuple):
    """What is told about one version."""

    version: int
    digest: str
    state: str
    reason: str
    since_us: int
    size: int


class ModelView(NamedTuple):
    """What is told about one model."""

    name: str
    serving: LoadedVersion | None
    versions: tuple[VersionView, ...]
    generation: int
    options: ModelOptions


class ModelStage(NamedTuple):
    """A step in a version's life that is shown, but not recorded: a name of ``vigil.models.v1.Stage``."""

    stage: str
    model: str
    version: int
    digest: str = ""
    reason: str = ""


class ModelEvent(NamedTuple):
    """Something that happened to a model, by its id in the catalogue."""

    event_id: int
    model: str
    version: int = 0
    digest: str = ""
    reason: str = ""
    replaced_version: int = 0
    replaced_digest: str = ""
    generation: int = 0
