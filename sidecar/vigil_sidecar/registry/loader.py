"""Gates of a candidate: staged bytes, load, contract, warm-up."""

from __future__ import annotations

import ctypes
import gc
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from vigil_safety import events_gen as events
from vigil_sidecar.engine import arena
from vigil_sidecar.engine.memory import MemoryBudget, is_out_of_memory, lacking
from vigil_sidecar.engine.reshape import Reshaped
from vigil_sidecar.engine.session import Session
from vigil_sidecar.engine.staging import StagedFile, signature_of, stage
from vigil_sidecar.engine.warmup import Warmth, warm_up
from vigil_sidecar.errors import CandidateRefused
from vigil_sidecar.registry.options import ModelOptions
from vigil_sidecar.registry.version import Gate, LoadedVersion, ModelEvent, ModelStage, Runnable
from vigil_sidecar.settings_gen import Settings

__all__ = ["Loader"]


def _check_gates(options: ModelOptions, warmth: Warmth) -> None:
    """The gates of the model's own vigil.toml."""
    if options.run_ms_max is not None and warmth.run_s * 1000 > options.run_ms_max:
        raise CandidateRefused(f"its largest batch takes {warmth.run_s * 1000:.3g} ms, gates.run_ms_max is {options.run_ms_max:g}")
    if options.batch_difference_max is not None and warmth.batch_difference < 0:
        raise CandidateRefused("rows of a batch depend on each other, or were not compared, and gates.batch_difference_max is set")
    if options.batch_difference_max is not None and warmth.batch_difference > options.batch_difference_max:
        raise CandidateRefused(
            f"a row alone and in a batch differ by {warmth.batch_difference:.3g}, "
            f"gates.batch_difference_max is {options.batch_difference_max:g}"
        )


def _pause_ms(size: int) -> int:
    """For how long at a time work on a model of so many bytes may let nothing else run.

    ONNX Runtime frees a session under the interpreter's lock, and the kernel lets no other thread have memory
    while it gives or takes much of it. Up to 115 ms for a GB were measured; twice that is allowed for. 0 for
    what is done within a few ms.
    """
    return size // 4_000_000 if size >= 64_000_000 else 0


_LOAD_MS = 100
"""The same for loading a model of any size: ONNX Runtime makes a session under the interpreter's lock, and the first
one of a process also what all share. 80 ms were measured for a model of a few bytes on a busy machine."""


def _resident_bytes() -> int:
    """Resident memory of this process (proc(5), statm); 0 where that cannot be read."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


class _Passed:
    """Notes the gates as they are passed."""

    def __init__(self) -> None:
        self.gates: list[Gate] = []
        self._since_ns = time.monotonic_ns()

    def gate(self, name: str, found: str) -> None:
        """One more, and how long it took since the one before."""
        now_ns = time.monotonic_ns()
        self.gates.append(Gate(name, found, (now_ns - self._since_ns) // 1000))
        self._since_ns = now_ns


class Loader:
    """Turns a file into a version that may serve. Used by the reconciler's thread only."""

    def __init__(self, settings: Settings, observe: Callable[[ModelEvent], None], check: Callable[[LoadedVersion], None],
        wrap: Callable[[str, Runnable], Runnable] | None = None,
    ) -> None:  # fmt: skip
        """``check`` is the last gate (a pipeline tries its graph); it raises ``CandidateRefused``.

        ``wrap(model, session)`` may put something between a version and its session.
        """
        self._wrap = wrap or (lambda model, session: session)
        self._settings, self._observe, self._check = settings, observe, check
        self.memory = MemoryBudget(settings.limits_memory_reserve_bytes, settings.limits_memory_bytes_max)
        self.memory.trim = arena.trim
        self.pausing: Callable[[int], AbstractContextManager[None]] = lambda pause_ms: nullcontext()
        """Around what lets nothing else run for up to so many ms."""
        self.shown: Callable[[ModelStage], None] = lambda stage: None
        """Hears of each step, as it begins."""
        self._libc = ctypes.CDLL(None)
        self._retired: queue.SimpleQueue[LoadedVersion] = queue.SimpleQueue()
        threading.Thread(target=self._free, name="retire", daemon=True).start()

    def stage(self, model: str, number: int, path: Path) -> StagedFile:
        """Read the file, if it can fit; see ``engine.staging.stage``."""
        self.shown(ModelStage("STAGE_STAGING", model, number))
        signature = signature_of(path)
        # SR-057
        if signature is not None and (problem := self.memory.refusal(signature.size)):
            raise CandidateRefused(problem)
        with self.pausing(_pause_ms(signature.size) if signature else 0):
            return stage(path, self._settings.models_file_bytes_max)

    def load(self, model: str, number: int, staged: StagedFile, options: ModelOptions, serving: LoadedVersion | None) -> LoadedVersion:
        """Load and check a candidate; raises ``CandidateRefused`` with the reason."""
        with self.pausing(_LOAD_MS + _pause_ms(staged.size)):
            return self._load(model, number, staged, options, serving)

    def _load(self, model: str, number: int, staged: StagedFile, options: ModelOptions, serving: LoadedVersion | None) -> LoadedVersion:
        s, passed, before = self._settings, _Passed(), _resident_bytes()
        self.shown(ModelStage("STAGE_WARMING", model, number, staged.digest))
        threads = s.models_intra_op_threads if options.intra_op_threads is None else options.intra_op_threads
        self.memory.fence()  # what the file's copy took counts
        session = Session(staged.path, options.providers, threads)
        try:
            passed.gate("loaded", f"by {', '.join(session.providers)}")
            for provider, reason in session.fallbacks:
                self._observe(ModelEvent(events.PROVIDER_FALLBACK, model, number, staged.digest, f"{provider}: {reason}"))
            if problem := options.contradiction(session.contract):
                raise CandidateRefused(problem)
            if options.reshapes:
                session = Reshaped(session, options.reshapes, bool(options.max_batch_size))
            if serving is not None and not (options.allow_contract_change or s.models_allow_contract_change):
                difference = session.contract.difference(serving.session.contract)
                if difference is not None:
                    raise CandidateRefused(f"contract differs from version {serving.number}: {difference}")
            passed.gate("contract", f"that of version {serving.number}" if serving is not None else "the first that serves")
            budget_s = s.models_warmup_budget_s if options.warmup_budget_s is None else options.warmup_budget_s
            warmth = warm_up(session, options.max_batch_size, s.models_batch_size_max_default, budget_s, samples=options.warmup)
            rows = f"batches up to {warmth.max_batch_size}" if warmth.max_batch_size else "not batched"
            passed.gate("warm-up", f"{rows}; the largest takes {warmth.run_s * 1000:.3g} ms")
            _check_gates(options, warmth)
            if options.run_ms_max is not None or options.batch_difference_max is not None:
                passed.gate("the model's own", "run_ms_max and batch_difference_max of its vigil.toml, those that are set")
            version = LoadedVersion(
                model, number, staged.digest, staged.size, self._wrap(model, session), options,
                warmth.max_batch_size, warmth.run_s, warmth.batch_difference, warmth.golden, self._closed,
            )  # fmt: skip
            self._check(version)
            passed.gate("pipeline and ladder", options.pipeline or "tensors")
            if problem := self.memory.exceeded():
                raise CandidateRefused(problem)
            version.memory_bytes = max(0, _resident_bytes() - before)
            passed.gate("memory", f"takes {version.memory_bytes} bytes; {self.memory.figures()}")
            version.gates = tuple(passed.gates)
            version.retiring = self._retiring
            return version
        except CandidateRefused:
            self._drop(session)
            raise
        except Exception as error:  # a native failure while warming up is the candidate's, never ours
            self._drop(session)
            if is_out_of_memory(error):
                text = f"warm-up: {lacking(error)} was asked for; {self.memory.figures()}"
                raise CandidateRefused(text) from None
            raise CandidateRefused(f"warm-up failed: {str(error).split(chr(10))[0][:300]}") from None

    @staticmethod
    def _drop(session: Session) -> None:
        """A session that will not serve gives back what it took."""
        session.close()
        arena.trim()

    def _retiring(self, version: LoadedVersion) -> None:
        self.shown(ModelStage("STAGE_DRAINING", version.model, version.number, version.digest))

    def _closed(self, version: LoadedVersion) -> None:
        """The last lease ended, on whichever thread held it: the work of freeing is done by another."""
        self._retired.put(version)

    def _free(self) -> None:
        while True:
            self._free_one(self._retired.get())

    def _free_one(self, version: LoadedVersion) -> None:
        with self.pausing(_pause_ms(version.size)):
            version.session.close()
        gc.collect()
        arena.trim()
        trim = getattr(self._libc, "malloc_trim", None)
        if trim is not None:
            trim(0)
        self._observe(ModelEvent(events.VERSION_RETIRED, version.model, version.number, version.digest, "last lease ended"))
