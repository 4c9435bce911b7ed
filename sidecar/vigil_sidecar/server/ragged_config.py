"""[batching] of a model's vigil.toml: requests of different lengths in one batch."""

from __future__ import annotations

from typing import Any

from vigil_sidecar.errors import CandidateRefused
from vigil_sidecar.registry.options import RaggedOptions

__all__ = ["read_ragged"]

_KEYS: dict[str, type] = {"inputs": dict, "outputs": dict, "pad": dict, "mask": str, "length_max": int}
_AXIS_MAX, _LENGTH_MAX = 7, 1 << 31


def read_ragged(table: dict[str, Any]) -> RaggedOptions:
    """The options that the table says; raises ``CandidateRefused`` naming the key."""
    for key, value in table.items():
        if key not in _KEYS:
            raise CandidateRefused(f"vigil.toml: unknown key 'batching.{key}'; known are {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]) or isinstance(value, bool):
            raise CandidateRefused(f"vigil.toml: batching.{key} = {value!r} has the wrong type")
    if not table.get("inputs"):
        raise CandidateRefused("vigil.toml: batching.inputs must name an input and its axis that has the length, such as { ids = 1 }")
    for role in ("inputs", "outputs"):
        for name, axis in table.get(role, {}).items():
            if not isinstance(axis, int) or isinstance(axis, bool) or not 1 <= axis <= _AXIS_MAX:
                raise CandidateRefused(f"vigil.toml: batching.{role}.{name} = {axis!r}: allowed is an axis, 1..{_AXIS_MAX}")
    for name, value in table.get("pad", {}).items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise CandidateRefused(f"vigil.toml: batching.pad.{name} = {value!r} is no number")
    if not 1 <= table.get("length_max", 1) <= _LENGTH_MAX:
        raise CandidateRefused(f"vigil.toml: batching.length_max = {table['length_max']}: allowed is 1..{_LENGTH_MAX}")
    return RaggedOptions(**table)
