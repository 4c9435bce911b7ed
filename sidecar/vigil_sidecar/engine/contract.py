"""A model's contract: names, types and shapes of its inputs and outputs."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Contract", "TensorSpec"]


class TensorSpec(NamedTuple):
    """One input or output. ``shape`` has -1 for a free dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}:{self.datatype}{list(self.shape)}"


class Contract(NamedTuple):
    """Inputs and outputs, in the graph's order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def difference(self, other: Contract) -> str | None:
        """The first difference from ``other`` in words; None when they agree. Order does not count."""
        for role, mine, theirs in (("input", self.inputs, other.inputs), ("output", self.outputs, other.outputs)):
            ours = {t.name: t for t in mine}
            wanted = {t.name: t for t in theirs}
            for name in sorted(wanted.keys() | ours.keys()):
                if name not in ours:
                    return f"{role} '{name}' is missing"
                if name not in wanted:
                    return f"{role} '{name}' is new"
                # SR-048
                if ours[name] != wanted[name]:
                    return f"{role} {ours[name]} was {wanted[name]}"
        return None
