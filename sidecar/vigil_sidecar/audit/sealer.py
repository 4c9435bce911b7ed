"""Checkpoints of a log: signed when due, published only when everything under them is on disk."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.entry import Entry
from vigil_sidecar.audit.keys import KeyFile
from vigil_sidecar.audit.notes import ROTATION, Signer, checkpoint_text, sign_note
from vigil_sidecar.audit.prune import Pruner
from vigil_sidecar.errors import AuditClosed, AuditError

__all__ = ["LAG_MAX", "Sealer"]

LAG_MAX = 1 << 19
"""Half of what verifiers accept between a checkpoint's tree and its record: a disk that hangs must not make a log look forged."""
_PRUNE_S = 30.0
"""Between two looks at what may be pruned, but for new segments."""
_GAP_S = 0.05
"""Between two checkpoints that events ask for: a flurry of them gets one."""
_CHECKPOINTS = 3
"""Tries for one with no record between what it covers and itself: only a clock that steps just then can put one there."""


class Log(Protocol):
    """What the sealer needs of a writer. Whoever holds ``lock``, appends alone."""

    lock: threading.RLock

    def head(self) -> tuple[int, bytes, int]:
        """Number of records, root hash, and a new descriptor of the file that ends them."""

    def append(self, entries: Sequence[Entry]) -> range:
        """Write entries as one group."""

    def not_forced(self, error: OSError) -> None:
        """Hear that data could not be forced to disk."""

    def count(self) -> int:
        """Number of records written."""


class Sealer:
    """Signs checkpoints of one log in a thread of its own. Any thread may call.

    A checkpoint is signed over a tree whose records were forced to disk before,
    and ``latest`` is what may leave the process: so no power cut can make an
    honest log contradict what others were given.
    """

    def __init__(
        self, log: Log, keys: KeyFile, origin: str, interval_s: float, fdatasync: Callable[[int], None], report: Callable[[str], None],
        pruner: Pruner | None = None,
    ) -> None:  # fmt: skip
        """Publish the public key and start; ``report`` hears why a checkpoint could not be made, or nothing was pruned."""
        self._log, self._keys, self._origin, self._interval_s = log, keys, origin, interval_s
        self._fdatasync, self._report = fdatasync, report
        self._pruner, self._pruned_s = pruner, -_PRUNE_S
        self._sealed = 0
        self._signer = Signer(origin, keys.key)
        keys.publish(self._signer)
        self._lock = threading.Lock()
        self._wake, self._stopping = threading.Event(), threading.Event()
        self.latest, self.latest_s = b"", time.monotonic()
        self._wake.set()
        self._thread = threading.Thread(target=self._run, name="audit-seal", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Ask for a checkpoint soon."""
        self._wake.set()

    def rotated(self) -> None:
        """Hear that there is one segment more: older ones may have to go."""
        self._pruned_s = -_PRUNE_S
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(self._interval_s)
            self._wake.clear()
            if self._stopping.is_set():
                return
            self._try()  # after a failure the next turn tries again
            if time.monotonic() - self._pruned_s >= _PRUNE_S:
                self._pruned_s = time.monotonic()
                self.prune()
            self._stopping.wait(_GAP_S)

    def _end_rotation(self) -> None:
        """Put the new key in place if a rotation could not: a start needs the key record for it, and that may be pruned."""
        with self._lock:
            if Signer(self._origin, self._keys.key).id != self._signer.id:
                self._forced_head()
                self._keys.switch(self._signer.key)

    def prune(self) -> None:
        """Prune what the retention says; why nothing could be pruned is reported."""
        if self._pruner is None:
            return
        try:
            self._end_rotation()
            self._pruner.index()
            self._pruner.run(self._sealed, self.seal)
        except AuditClosed:
            return
        except (AuditError, OSError, ValueError) as error:
            self._report(f"nothing was pruned: {getattr(error, 'strerror', None) or error}")

    def _try(self) -> None:
        try:
            self.seal()
        except (AuditError, OSError) as error:
            self._report(f"no checkpoint was signed: {error}")

    def _forced_head(self) -> tuple[int, bytes]:
        size, root, fd = self._log.head()
        try:
            self._fdatasync(fd)  # segments before this one were forced when they were left
        except OSError as error:
            self._log.not_forced(error)
            raise
        finally:
            os.close(fd)
        return size, root

    def seal(self) -> bytes:
        """Sign a checkpoint of all records, put it into the log, and publish it; raises ``AuditError`` or ``OSError``."""
        with self._lock:
            size, root = self._forced_head()
            others = self._log.count() - size
            if others > LAG_MAX:
                raise AuditError(f"forcing {size} records took so long that {others} others came; the checkpoint is not made")
            note = sign_note(checkpoint_text(self._origin, size, root), self._signer)
            self._log.append([Entry(layout.KIND_CHECKPOINT, events.CHECKPOINT, payload=note)])
            self._keys.keep(note)
            self.latest, self.latest_s, self._sealed = note, time.monotonic(), size
            return note

    def rotate(self) -> str:
        """Take a new key: a record signed by the old and the new one, then checkpoints by the new one.

        Returns the new verifier key. Raises ``AuditError`` or ``OSError``. The old key stays
        unless its record was written; from then on only the new one signs.
        """
        with self._lock:
            if Signer(self._origin, self._keys.key).id != self._signer.id:
                self._keys.switch(self._signer.key)  # a rotation before could not be ended
            new = Ed25519PrivateKey.generate()
            signer = Signer(self._origin, new)
            self._keys.publish(signer)
            self._keys.stage(new)
            failed: AuditError | OSError | None = None
            self._forced_head()  # so that there is little to force while nobody else may append
            with self._log.lock:
                self._cover()
                text = f"{ROTATION}\n{checkpoint_text(self._origin, *self._forced_head())}{signer.verifier_key}\n"
                try:
                    self._log.append([Entry(layout.KIND_KEY, events.KEY_ROTATED, payload=sign_note(text, self._signer, signer))])
                except AuditError as error:
                    if not error.standing:
                        raise
                    failed = error
            # The record stands: whatever fails from here on, the old key signs nothing any more.
            # The staged key file is taken at the next start if it cannot be now.
            self._signer = signer
            if failed is not None:
                raise failed
            self._forced_head()
            self._keys.switch(new)
        self.seal()
        return signer.verifier_key

    def _cover(self) -> None:
        """Write a checkpoint by the old key over everything before the record that makes the new key valid.

        Else what was pruned between the last checkpoint and that record would be proven by a key that is trusted only later.
        """
        for _ in range(_CHECKPOINTS):
            size, root = self._forced_head()
            note = sign_note(checkpoint_text(self._origin, size, root), self._signer)
            self._log.append([Entry(layout.KIND_CHECKPOINT, events.CHECKPOINT, payload=note)])
            if self._log.count() == size + 1:
                return

    def stop(self) -> None:
        """Sign the last checkpoint and end the thread."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(5)
        self._try()
