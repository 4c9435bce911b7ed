"""Inputs that config.pbtxt names for warming up (Triton's ``model_warmup``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vigil_sidecar.engine.contract import Contract
from vigil_sidecar.engine.datatypes import NUMPY, decode_bytes
from vigil_sidecar.errors import CandidateRefused

__all__ = ["SampleInput", "WarmupSample", "sample_feeds"]

Array = np.ndarray[Any, Any]
_ELEMENTS_MAX = 1 << 26
_RUN_BYTES_MAX = 1 << 30


@dataclass(frozen=True)
class SampleInput:
    """One input: its datatype, its shape without the batch's axis, and ``data``: bytes of a file, or None for ``fill``."""

    datatype: str
    shape: tuple[int, ...]
    fill: str = "random"
    """zero or random, where there is no file."""
    file: str = ""
    data: bytes | None = None


@dataclass(frozen=True)
class WarmupSample:
    """A request as the model will see it. ``count`` is how often it runs."""

    name: str
    batch_size: int
    inputs: Mapping[str, SampleInput]
    count: int = 1


def _array(name: str, sample: str, said: SampleInput) -> Array:
    size = math.prod(said.shape)
    where = f"model_warmup '{sample}', input '{name}'"
    if size > _ELEMENTS_MAX:
        raise CandidateRefused(f"config.pbtxt: {where}: dims have {size} elements, allowed are {_ELEMENTS_MAX}")
    if said.datatype == "BYTES":
        if said.data is None:
            return np.full(said.shape, "0" if said.fill == "random" else "", dtype=object)
        try:
            return np.array(decode_bytes(said.data, size, name), dtype=object).reshape(said.shape)
        except Exception as error:
            raise CandidateRefused(f"config.pbtxt: {where}: {said.file}: {error}") from None
    dtype = NUMPY[said.datatype]
    if said.data is not None:
        if len(said.data) != size * dtype.itemsize:
            raise CandidateRefused(
                f"config.pbtxt: {where}: {said.file} has {len(said.data)} bytes, the shape needs {size * dtype.itemsize}"
            )
        return np.frombuffer(said.data, dtype).reshape(said.shape)
    if said.fill == "zero":
        return np.zeros(said.shape, dtype)
    rng = np.random.default_rng(size)
    return rng.random(said.shape).astype(dtype) if dtype.kind == "f" else rng.integers(0, 2, said.shape).astype(dtype)


def sample_feeds(sample: WarmupSample, contract: Contract, rows: int | None) -> dict[str, Array]:
    """Inputs of a run by name, the sample's row ``rows`` times where the model is batched.

    Raises:
        CandidateRefused: the sample and the graph contradict each other.
    """
    out, total = {}, 0
    for spec in contract.inputs:
        said = sample.inputs.get(spec.name)
        if said is None:
            raise CandidateRefused(f"config.pbtxt: model_warmup '{sample.name}' has no input '{spec.name}'")
        if said.datatype != spec.datatype:
            raise CandidateRefused(
                f"config.pbtxt: model_warmup '{sample.name}', input '{spec.name}' is {said.datatype}, the graph says {spec.datatype}"
            )
        array = _array(spec.name, sample.name, said)
        total += array.nbytes * (rows or 1)
        if total > _RUN_BYTES_MAX:
            raise CandidateRefused(f"config.pbtxt: model_warmup '{sample.name}': {rows or 1} rows have more than {_RUN_BYTES_MAX} bytes")
        out[spec.name] = array if rows is None else np.ascontiguousarray(np.broadcast_to(array, (rows, *array.shape)))
    if unknown := sorted(set(sample.inputs) - set(out)):
        raise CandidateRefused(f"config.pbtxt: model_warmup '{sample.name}': the graph has no input '{unknown[0]}'")
    return out
