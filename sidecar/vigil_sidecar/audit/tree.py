"""The Merkle tree of RFC 6962 over a log's leaf hashes, kept as a compact range."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

__all__ = ["EMPTY_ROOT", "CompactRange", "Subtrees", "inclusion_ranges", "node_hash", "root_from_inclusion"]

EMPTY_ROOT = hashlib.sha256(b"").digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node: SHA-256 over 0x01, left and right (RFC 6962, section 2.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class CompactRange:
    """Roots of the perfect subtrees of the first ``size`` leaves, largest first. Not for several threads at once.

    Invariant: there are as many hashes as ``size`` has binary ones.
    """

    __slots__ = ("hashes", "size")

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        if len(hashes) != size.bit_count():
            raise ValueError(f"{len(hashes)} hashes for a tree of {size} leaves")
        self.size, self.hashes = size, list(hashes)

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash."""
        sha256, hashes, size = hashlib.sha256, self.hashes, self.size
        while size & 1:
            leaf = sha256(b"\x01" + hashes.pop() + leaf).digest()
            size >>= 1
        hashes.append(leaf)
        self.size += 1

    def suffix(self, begin: int) -> CompactRange:
        """The range of the leaves from ``begin`` on, where a perfect subtree begins; raises ``ValueError`` elsewhere."""
        at, size = 0, self.size
        for i, bit in enumerate(b for b in reversed(range(size.bit_length())) if size >> b & 1):
            if at == begin:
                return CompactRange(size - begin, self.hashes[i:])
            at += 1 << bit
        if begin != size:
            raise ValueError(f"no perfect subtree begins at leaf {begin} of {size}")
        return CompactRange()

    def copy(self) -> CompactRange:
        """Another range of the same leaves."""
        return CompactRange(self.size, self.hashes)

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Add leaf hashes in order."""
        for leaf in leaves:
            self.append(leaf)

    def root(self) -> bytes:
        """Root hash of all leaves."""
        if not self.hashes:
            return EMPTY_ROOT
        root = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            root = node_hash(left, root)
        return root

    def encode(self) -> bytes:
        """The hashes one after another, as a segment's header has them before its padding."""
        return b"".join(self.hashes)

    @classmethod
    def decode(cls, size: int, data: bytes) -> CompactRange:
        """From a segment's header; raises ``ValueError`` when the padding is not zeros."""
        used = 32 * size.bit_count()
        if used > len(data) or any(data[used:]):
            raise ValueError("the compact range does not fit its size")
        return cls(size, [data[i : i + 32] for i in range(0, used, 32)])


def inclusion_ranges(index: int, size: int) -> list[tuple[int, int]]:
    """The subtrees [begin, end) whose roots prove leaf ``index`` in a tree of ``size`` leaves, nearest first."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size} leaves")
    ranges: list[tuple[int, int]] = []
    begin, end = 0, size
    while end - begin > 1:
        split = begin + (1 << ((end - begin - 1).bit_length() - 1))
        if index < split:
            ranges.append((split, end))
            end = split
        else:
            ranges.append((begin, split))
            begin = split
    return ranges[::-1]


def root_from_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """Root that a leaf and its inclusion proof give (RFC 6962, section 2.1.1); raises ``ValueError`` for a wrong length."""
    ranges = inclusion_ranges(index, size)
    if len(path) != len(ranges):
        raise ValueError(f"the proof has {len(path)} hashes, {len(ranges)} are needed")
    root = leaf
    for (begin, _), other in zip(ranges, path, strict=True):
        root = node_hash(other, root) if begin < index else node_hash(root, other)
    return root


class Subtrees:
    """Roots of subtrees where the first leaves are known by their compact range only. Not for several threads at once."""

    def __init__(self, base: CompactRange, leaves: Sequence[bytes]) -> None:
        self._base, self._leaves = base, leaves
        self._known: dict[tuple[int, int], bytes] = {}

    def root(self, begin: int, end: int) -> bytes:
        """Root of the leaves [begin, end), a subtree of an inclusion proof; raises ``ValueError`` for one that the range does not give."""
        size = self._base.size
        if begin < size:
            tree = self._base.suffix(begin)
            if end <= size:  # a whole subtree: the first of the suffix
                if end - begin != 1 << (tree.size.bit_length() - 1):
                    raise ValueError(f"the compact range does not give the subtree {begin}..{end}")
                return tree.hashes[0]
            tree.extend(self._leaves[: end - size])
            return tree.root()
        return self._node(begin - size, end - size)

    def _node(self, begin: int, end: int) -> bytes:
        if end - begin == 1:
            return self._leaves[begin]
        found = self._known.get((begin, end))
        if found is None:
            split = begin + (1 << ((end - begin - 1).bit_length() - 1))
            found = self._known[begin, end] = node_hash(self._node(begin, split), self._node(split, end))
        return found

    def path(self, index: int, size: int) -> list[bytes]:
        """Inclusion proof of a leaf in the tree of ``size`` leaves, nearest first (RFC 6962, section 2.1.1)."""
        return [self.root(begin, end) for begin, end in inclusion_ranges(index, size)]
