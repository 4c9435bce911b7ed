"""What signatures say about a log as its records go by: checkpoints, key rotations, anchors. Part of the verifier."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.notes import NOTE_BYTES_MAX, ROTATION, Checkpoint, NoteError, Verifier, open_note, parse_checkpoint, parse_prune
from vigil_sidecar.audit.tree import CompactRange

__all__ = ["LAG_MAX", "Anchor", "Forged", "Seals"]

LAG_MAX = 1 << 20
"""A checkpoint's record comes at most this many records behind the tree that it signs (docs/audit-format.md)."""


class Forged(Exception):
    """A record that an honest writer does not write; the text says why."""


class Anchor(NamedTuple):
    """Another log's checkpoint in this one."""

    sequence: int
    time_ns: int
    note: bytes


class Seals:
    """Follows one log. Feed every record in order; ``tree`` then covers them all.

    A checkpoint counts when a trusted key signed it. From the first one on, each
    must be signed by a key that is trusted then: a rotation, signed by both keys,
    hands trust from the old to the new one and takes it from the old one.
    """

    def __init__(self, origin: str, trusted: Sequence[Verifier], tree: CompactRange, wanted: Collection[int] = ()) -> None:
        """``tree`` is that of the records before the first one; ``wanted`` are sizes whose roots are kept in ``roots``."""
        self.origin, self._active, self._retired = origin, [k for k in trusted if k.name == origin], list[Verifier]()
        self._whole, self._base, self._leaves = tree, tree.copy(), list[bytes]()
        self._wanted, self.roots = frozenset(wanted), dict[int, bytes]()
        self.sealed, self.sealed_time_ns = 0, 0
        self.checkpoints, self.last_size, self.rotations = 0, 0, 0
        self.anchors: list[Anchor] = []
        self.ends_with_seal = False
        self.begin = tree.size
        """Records that were pruned before the first one here."""
        self.prunes: list[tuple[int, int]] = []
        """Sequence of each prune record, and how many records it says are gone."""
        self._starts: dict[int, bytes] = {}
        if tree.size in self._wanted:
            self.roots[tree.size] = tree.root()

    @property
    def size(self) -> int:
        """Number of records fed."""
        return self._whole.size

    @property
    def known(self) -> list[Verifier]:
        """Keys that are or were trusted for this log."""
        return [*self._active, *self._retired]

    def record(self, kind: int, sequence: int, time_ns: int, payload: bytes, leaf: bytes) -> None:
        """The next record; raises ``Forged``."""
        self.ends_with_seal = False
        if kind == layout.KIND_CHECKPOINT:
            self._checkpoint(payload, time_ns)
        elif kind == layout.KIND_KEY:
            self._rotation(payload)
        elif kind == layout.KIND_ANCHOR:
            if len(payload) > NOTE_BYTES_MAX:
                raise Forged(f"an anchor of {len(payload)} bytes, the limit is {NOTE_BYTES_MAX}")
            self.anchors.append(Anchor(sequence, time_ns, payload))
        elif kind == layout.KIND_PRUNE:
            self._prune(sequence, payload)
        self._leaves.append(leaf)
        self._whole.append(leaf)
        if len(self._leaves) > 2 * LAG_MAX:
            self._fold(self._base.size + LAG_MAX)
        if self.size in self._wanted:
            self.roots[self.size] = self.root()

    def segment(self) -> None:
        """A segment begins here: where a cut may be."""
        self._starts[self.size] = self.root()

    def _prune(self, sequence: int, payload: bytes) -> None:
        try:
            cut = parse_prune(payload)
        except NoteError as error:
            raise Forged(f"{error}") from None
        if cut.origin != self.origin:
            raise Forged(f"a prune record of {cut.origin} in the log {self.origin}")
        if cut.size >= self.size or (self.prunes and cut.size < self.prunes[-1][1]):
            raise Forged(f"a prune record of {cut.size} records, {self.size} stand before it")
        if cut.size >= self.begin and self._starts.get(cut.size) != cut.root:
            raise Forged(f"the prune record of {cut.size} records names another root, or no segment begins there")
        self.prunes.append((sequence, cut.size))

    def pruned_by_right(self) -> bool:
        """Whether a signed checkpoint covers a prune record that accounts for what is missing before the first record."""
        return any(size >= self.begin for sequence, size in self.prunes if sequence <= self.sealed)

    def trust(self, payload: bytes) -> None:
        """Take over from a key record that was kept when its segment was pruned; raises ``Forged``."""
        self._rotate(*self._open_rotation(payload))

    def signed_now(self, note: bytes) -> bool:
        """Whether a key that is trusted now signed a note."""
        try:
            return bool(open_note(note, self._active)[1])
        except NoteError:
            return False

    def _fold(self, size: int) -> None:
        if size == self._whole.size:
            self._base = self._whole.copy()
            self._leaves.clear()
            return
        count = size - self._base.size
        self._base.extend(self._leaves[:count])
        del self._leaves[:count]

    def root(self) -> bytes:
        """Root of all records fed."""
        return self._whole.root()

    def _open(self, payload: bytes, keys: Sequence[Verifier], signatures: int) -> tuple[str, list[Verifier]]:
        """A note of this log's own, with exactly as many signatures as its writer makes."""
        try:
            text, signed = open_note(payload, keys)
        except NoteError as error:
            raise Forged(f"{error}") from None
        found = payload[payload.rindex(b"\n\n") + 2 :].count(b"\n")
        if found != signatures:
            raise Forged(f"a note of this log with {found} signatures, its writer makes {signatures}")
        return text, signed

    def _head(self, text: str) -> Checkpoint:
        """The tree head that a note states, checked against the tree of the chain's own records."""
        try:
            head = parse_checkpoint(text)
        except NoteError as error:
            raise Forged(f"{error}") from None
        if head.origin != self.origin:
            raise Forged(f"a checkpoint of {head.origin} in the log {self.origin}")
        if head.size > self.size:
            raise Forged(f"the checkpoint covers {head.size} records, {self.size} stand before it: records were taken out")
        if head.size <= self.last_size and self.last_size:
            raise Forged(f"the checkpoint of {head.size} records comes after one of {self.last_size}: an old one was put in again")
        if head.size < self.begin <= head.size + LAG_MAX:  # it was late, and what it covers was pruned since
            self.last_size = head.size
            return head
        if head.size < self._base.size:
            raise Forged(f"the checkpoint of {head.size} records comes more than {LAG_MAX} records late")
        self._fold(head.size)
        if self._base.root() != head.root:
            raise Forged(f"the records are not those that were signed: another root at {head.size} records")
        self.last_size = head.size
        return head

    def _checkpoint(self, payload: bytes, time_ns: int) -> None:
        text, signed = self._open(payload, [*self._active, *self._retired], 1)
        head = self._head(text)
        self.checkpoints += 1
        self.ends_with_seal = head.size == self.size
        if any(k in self._active for k in signed):
            if head.size >= self.begin:
                self.sealed, self.sealed_time_ns = head.size, time_ns
        elif signed:
            raise Forged("a checkpoint is signed by a key that was rotated away")
        elif self.sealed:
            raise Forged("a checkpoint is not signed by the key that signed the one before")

    def _open_rotation(self, payload: bytes) -> tuple[Verifier, list[Verifier], str]:
        """The new key, who signed, and the tree head of a key record."""
        try:
            new = Verifier(payload.decode().split("\n")[4])
        except (NoteError, IndexError, UnicodeDecodeError):
            raise Forged("a key record that names no key") from None
        if new.name != self.origin:
            raise Forged(f"a key record for {new.name} in the log {self.origin}")
        text, signed = self._open(payload, [*self._active, *self._retired, new], 2)
        title, _, body = text.partition("\n")
        if title != ROTATION or all(k.text != new.text for k in signed):
            raise Forged("a key record that its new key did not sign")
        return new, signed, "\n".join(body.split("\n")[:3]) + "\n"

    def _rotate(self, new: Verifier, signed: Sequence[Verifier], _: str) -> None:
        if any(k in self._active for k in signed if k.text != new.text):
            self._retired, self._active = [*self._retired, *self._active], [new]
        elif self.sealed:
            raise Forged("a key record that the key before did not sign")

    def _rotation(self, payload: bytes) -> None:
        opened = self._open_rotation(payload)
        self._head(opened[2])
        self._rotate(*opened)
        self.rotations += 1
