"""Requests of different lengths in one batch: padded to the longest, told apart by a mask, and cut back.

Invariant: what a request gets does not depend on its neighbours. The graph has to see to that with the help of the mask, so a
version is tried before it serves (``check``): the same sequences alone, and together, padded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vigil_sidecar.engine.contract import Contract
from vigil_sidecar.engine.datatypes import NUMPY
from vigil_sidecar.engine.golden import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE
from vigil_sidecar.errors import CandidateRefused, InferenceFailed, SemanticViolation
from vigil_sidecar.registry.options import RaggedOptions
from vigil_sidecar.registry.version import Runnable

__all__ = ["check", "complete", "cut", "length_of", "problem_of", "stack"]

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
_LENGTHS = (6, 10, 1)
_SEED = 5


def problem_of(options: RaggedOptions, contract: Contract, max_batch_size: int) -> str:
    """Why a graph cannot be batched so; empty when it can be tried."""
    if max_batch_size < 2:
        return "batching.inputs needs a model that is batched (max_batch_size of config.pbtxt)"
    for role, given, specs in (("inputs", options.inputs, contract.inputs), ("outputs", options.outputs, contract.outputs)):
        shapes = {t.name: t.shape for t in specs}
        for name, axis in given.items():
            if name not in shapes:
                return f"batching.{role} names '{name}', the graph has {', '.join(sorted(shapes))}"
            if not 1 <= axis < len(shapes[name]) or shapes[name][axis] != -1:
                return f"batching.{role}.{name} = {axis}, but the shape is {list(shapes[name])}: a free axis from 1 on is needed"
    for name in options.pad:
        if name not in options.inputs:
            return f"batching.pad names '{name}', batching.inputs does not"
    kinds = {t.name: t.datatype for t in contract.inputs}
    if wrong := next((n for n in options.inputs if kinds[n] == "BYTES"), None):
        return f"batching.inputs names '{wrong}', which holds BYTES and cannot be padded"
    if options.mask:
        spec = next((t for t in contract.inputs if t.name == options.mask), None)
        if spec is None or spec.datatype == "BYTES" or spec.shape != (-1, -1):
            return f"batching.mask = '{options.mask}', but that is no input of numbers with the shape [-1, -1]"
        if options.mask in options.inputs:
            return f"batching.inputs names '{options.mask}', which is the mask"
    return ""


def length_of(options: RaggedOptions, feeds: Feeds) -> int:
    """The length of a request; raises ``SemanticViolation`` when its inputs disagree, or it is too long for any batch."""
    lengths = {n: feeds[n].shape[a] for n, a in options.inputs.items()}
    if options.mask in feeds:
        lengths[options.mask] = feeds[options.mask].shape[1]
    if len(set(lengths.values())) != 1:
        text = f"the inputs have different lengths: {', '.join(f'{n} {v}' for n, v in lengths.items())}"
        raise SemanticViolation(text, [("inputs", text)])
    name, length = next(iter(lengths.items()))
    rows = feeds[name].shape[0]
    if rows * length > options.length_max:
        text = f"{rows} rows of the length {length} are {rows * length}, batching.length_max of the model is {options.length_max}"
        raise SemanticViolation(text, [(name, text)])
    return int(length)


def complete(options: RaggedOptions, contract: Contract, feeds: dict[str, Array]) -> None:
    """Add the mask that a caller left out: all of its length counts."""
    if options.mask and options.mask not in feeds:
        name, axis = next(iter(options.inputs.items()))
        kind = next(t.datatype for t in contract.inputs if t.name == options.mask)
        feeds[options.mask] = np.ones((feeds[name].shape[0], feeds[name].shape[axis]), NUMPY[kind])


def _padded(array: Array, axis: int, missing: int, value: float) -> Array:
    if not missing:
        return array
    return np.pad(array, [(0, missing if a == axis else 0) for a in range(array.ndim)], constant_values=value)


def stack(options: RaggedOptions, requests: Sequence[Feeds], lengths: Sequence[int]) -> dict[str, Array]:
    """Inputs of several requests as one batch."""
    longest = max(lengths)
    axes = dict(options.inputs)
    if options.mask:
        axes[options.mask] = 1
    out = {}
    for name in requests[0]:
        axis, value = axes.get(name), options.pad.get(name, 0)
        parts = [f[name] if axis is None else _padded(f[name], axis, longest - n, value) for f, n in zip(requests, lengths, strict=True)]
        out[name] = np.concatenate(parts)
    return out


def cut(options: RaggedOptions, names: Sequence[str], arrays: Sequence[Array], longest: int, length: int) -> list[Array]:
    """One request's rows of the outputs, as long as it is itself. Raises ``InferenceFailed`` when an output does not follow the length."""
    out = []
    for name, array in zip(names, arrays, strict=True):
        axis = options.outputs.get(name)
        if axis is None:
            out.append(array)
            continue
        if array.ndim <= axis or array.shape[axis] != longest:
            raise InferenceFailed(f"output '{name}' has the shape {list(array.shape)}, its axis {axis} should have the length {longest}")
        out.append(array[(slice(None),) * axis + (slice(0, length),)])
    return out


def _same(a: Array, b: Array) -> bool:
    if a.shape != b.shape or a.dtype.kind != "f":
        return np.array_equal(a, b)
    return np.allclose(a, b, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE, equal_nan=True)


def _trial(
    options: RaggedOptions, contract: Contract, low: float, high: float, whole_most: int, rng: np.random.Generator
) -> list[dict[str, Array]]:
    """Requests of the lengths of a trial, with numbers between two bounds and whole ones from 0 on; one has zeros in its mask."""
    requests = []
    for length in _LENGTHS:
        feeds: dict[str, Array] = {}
        for spec in contract.inputs:
            if spec.name == options.mask:
                continue
            shape = [1] + [1 if d == -1 else d for d in spec.shape[1:]]
            if spec.name in options.inputs:
                shape[options.inputs[spec.name]] = length
            if spec.datatype == "BYTES":
                feeds[spec.name] = np.full(shape, "0", object)
                continue
            dtype = NUMPY[spec.datatype]
            made = rng.uniform(low, high, shape) if dtype.kind == "f" else rng.integers(0, 2 if dtype.kind == "b" else whole_most, shape)
            feeds[spec.name] = made.astype(dtype)
        complete(options, contract, feeds)
        if options.mask and length == max(_LENGTHS):
            feeds[options.mask][:, length // 2 :] = 0
        requests.append(feeds)
    return requests


def _compare(options: RaggedOptions, session: Runnable, requests: Sequence[Feeds]) -> None:
    names = [t.name for t in session.contract.outputs]
    whole = session.run(stack(options, requests, _LENGTHS))
    for i, (feeds, length) in enumerate(zip(requests, _LENGTHS, strict=True)):
        alone = session.run(feeds)
        padded = cut(options, names, [w[i : i + 1] for w in whole], max(_LENGTHS), length)
        for name, a, b in zip(names, alone, padded, strict=True):
            if not _same(a, b):
                raise CandidateRefused(
                    f"vigil.toml: batching: output '{name}' of a sequence of the length {length} is another one when it is padded "
                    f"to {max(_LENGTHS)}" + ("" if options.mask else "; has the graph an input that is a mask?")
                )


def check(options: RaggedOptions, session: Runnable) -> None:
    """Run sequences alone and together; raises ``CandidateRefused`` when padding changes what a graph answers.

    Numbers are below, above and around what is padded with, since a maximum or a rectifier sees only some of it; and a graph
    that heeds its mask must not notice another padding. It is a trial, and no proof: a graph could still look at what was not tried.
    """
    contract, rng = session.contract, np.random.default_rng(_SEED)
    paddings = [options]
    if options.mask:
        paddings.append(replace(options, pad={n: options.pad.get(n, 0) + 1 for n in options.inputs}))
    most = _whole_most(options, session, rng)
    try:
        for low, high in ((-3.0, -1.0), (1.0, 3.0), (-100.0, 100.0)):
            requests = _trial(options, contract, low, high, most, rng)
            for padding in paddings:
                _compare(padding, session, requests)
    except InferenceFailed as error:
        raise CandidateRefused(f"vigil.toml: batching: {error.text}") from None


def _whole_most(options: RaggedOptions, session: Runnable, rng: np.random.Generator) -> int:
    """How large whole numbers may be: many graphs look them up in a table."""
    for most in (1000, 100, 10):
        try:
            session.run(_trial(options, session.contract, -1, 1, most, rng)[0])
            return most
        except Exception:  # the native run failed: the table is smaller
            continue
    return 2
