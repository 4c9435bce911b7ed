"""Proofs where the first leaves are known by their compact range only."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_sidecar.audit.tree import CompactRange, Subtrees, root_from_inclusion


@given(size=st.integers(1, 200), data=st.data())
def test_every_remaining_leaf_has_its_proof(size: int, data: st.DataObject) -> None:
    """Whatever was pruned, however many are asked for one after another."""
    leaves = [hashlib.sha256(b"%d" % i).digest() for i in range(size)]
    begin = data.draw(st.integers(0, size - 1))
    base, whole = CompactRange(), CompactRange()
    base.extend(leaves[:begin])
    whole.extend(leaves)
    root = base.root()
    subtrees = Subtrees(base, leaves[begin:])
    for index in range(begin, size):
        assert root_from_inclusion(leaves[index], index, size, subtrees.path(index, size)) == whole.root()
    assert base.root() == root


def test_what_a_range_does_not_give() -> None:
    """A subtree that the range has no root of is refused, not guessed."""
    base = CompactRange()
    base.extend([bytes([i]) * 32 for i in range(6)])
    with pytest.raises(ValueError, match="begins"):
        base.suffix(3)
    with pytest.raises(ValueError, match="does not give"):
        Subtrees(base, ()).root(0, 2)
