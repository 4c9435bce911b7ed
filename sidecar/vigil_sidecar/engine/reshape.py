"""A graph whose tensors callers see in other shapes than it takes (``reshape`` of Triton's model configuration)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vigil_sidecar.engine.contract import Contract, TensorSpec
from vigil_sidecar.engine.session import Session

__all__ = ["Reshape", "Reshaped", "problem_of"]


class Reshape(NamedTuple):
    """Shape that callers see, and that of the graph, both without the batch's axis; -1 is a free dimension."""

    dims: tuple[int, ...]
    shape: tuple[int, ...]


def _pieces(shape: Sequence[int]) -> list[int]:
    """Elements of the parts between free dimensions."""
    out = [1]
    for d in shape:
        if d == -1:
            out.append(1)
        else:
            out[-1] *= d
    return out


def problem_of(reshape: Reshape) -> str:
    """Why one shape cannot be taken for the other, as Triton has it; empty when it can.

    Free dimensions correspond in their order, and what stands between them must have equally many elements.
    """
    free, wanted = reshape.dims.count(-1), reshape.shape.count(-1)
    if free != wanted:
        return f"dims {list(reshape.dims)} have {free} variable dimensions, reshape {list(reshape.shape)} has {wanted}"
    if any(d < -1 for d in (*reshape.dims, *reshape.shape)):
        return f"reshape {list(reshape.shape)} of dims {list(reshape.dims)} has a negative dimension"
    if _pieces(reshape.dims) != _pieces(reshape.shape):
        return f"dims {list(reshape.dims)} and reshape {list(reshape.shape)} have different sizes"
    return ""


def _filled(wanted: Sequence[int], seen: Sequence[int], given: Sequence[int]) -> tuple[int, ...]:
    """``wanted`` with its free dimensions taken from those of ``given``, whose form is ``seen``."""
    free = iter([g for s, g in zip(seen, given, strict=True) if s == -1])
    return tuple([next(free) if d == -1 else d for d in wanted])


class Reshaped(Session):
    """A session behind the shapes of its configuration. ``run`` may be called from several threads at once; nothing is copied."""

    def __init__(self, session: Session, reshapes: Mapping[str, Reshape], batched: bool) -> None:
        """``reshapes`` are of tensors that the graph has, as ``ModelOptions.contradiction`` checks."""
        self._inner, self._reshapes, self._lead = session, reshapes, 1 if batched else 0
        self.providers, self.fallbacks = session.providers, session.fallbacks
        inner = session.contract
        self.contract = Contract(tuple(map(self._seen, inner.inputs)), tuple(map(self._seen, inner.outputs)))
        self.output_names = session.output_names

    def _seen(self, spec: TensorSpec) -> TensorSpec:
        found = self._reshapes.get(spec.name)
        return spec if found is None else spec._replace(shape=(*spec.shape[: self._lead], *found.dims))

    def _turn(self, name: str, array: Any, inward: bool) -> Any:
        found = self._reshapes.get(name)
        if found is None:
            return array
        lead = self._lead
        given, wanted = (found.dims, found.shape) if inward else (found.shape, found.dims)
        rest = array.shape[lead:]
        if len(rest) != len(given) or any(g not in (-1, r) for g, r in zip(given, rest, strict=True)):
            return array  # not what the graph declares: whoever looks at the answer says so
        return array.reshape((*array.shape[:lead], *_filled(wanted, given, rest)))

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> list[Any]:
        """As ``Session.run``, in the callers' shapes."""
        names = outputs or self.output_names
        arrays = self._inner.run({n: self._turn(n, a, True) for n, a in feeds.items()}, names)
        return [self._turn(n, a, False) for n, a in zip(names, arrays, strict=True)]

    def close(self) -> None:
        """Free the graph."""
        self._inner.close()
