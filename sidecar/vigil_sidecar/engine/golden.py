"""A golden run of a version: fixed inputs, and the outputs that they gave when it was loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["ABSOLUTE_TOLERANCE", "RELATIVE_TOLERANCE", "Golden", "make_golden"]

Array = npt.NDArray[Any]
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-3, 1e-4
"""Between two results of the same inputs: of a golden run, and of rows alone and together (engine/warmup.py)."""
_BYTES_MAX = 16 << 20
"""Expected outputs that are larger are not kept: then only that what was finite still is."""


class _Runs(Protocol):
    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """Run once."""


class Golden:
    """Inputs by name, and what is expected of their outputs. Immutable; any thread may check."""

    def __init__(self, feeds: Mapping[str, Array], expected: Sequence[Array] | None, finite: Sequence[bool] = ()) -> None:
        """``finite`` says which outputs were: all that is asked where ``expected`` is None."""
        self._feeds, self._expected, self._finite = feeds, expected, finite

    def check(self, session: _Runs) -> str:
        """Run the golden inputs; empty when the outputs are the expected ones, else what is wrong.

        Floats may differ by 1e-3 relative and 1e-4 absolute, the tolerance of the warm-up;
        everything else is equal. Raises whatever the run raises.
        """
        found = session.run(self._feeds)
        if self._expected is None:
            broken = [i for i, (a, was) in enumerate(zip(found, self._finite, strict=False)) if was and not _finite(a)]
            return f"output {broken[0]} of the golden run is not finite" if broken else ""
        for i, (now, then) in enumerate(zip(found, self._expected, strict=True)):
            if now.shape != then.shape:
                return f"output {i} of the golden run has shape {list(now.shape)}, it had {list(then.shape)}"
            # SR-024
            if not _same(now, then):
                return f"output {i} of the golden run drifted from what it was when the version was loaded"
        return ""


def _finite(array: Array) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _same(now: Array, then: Array) -> bool:
    if then.dtype.kind != "f":
        return np.array_equal(now, then)
    return bool(np.allclose(now, then, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE, equal_nan=True))


def make_golden(session: _Runs, feeds: Mapping[str, Array]) -> Golden:
    """A golden run of these inputs. A graph that answers differently each time has no expected outputs."""
    first, second = session.run(feeds), session.run(feeds)
    steady = all(a.shape == b.shape and _same(a, b) for a, b in zip(first, second, strict=True))
    keep = steady and sum(a.nbytes for a in first) <= _BYTES_MAX
    return Golden(
        feeds, [a.copy() for a in first] if keep else None, [_finite(a) and _finite(b) for a, b in zip(first, second, strict=True)]
    )
