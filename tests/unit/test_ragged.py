"""Requests of different lengths in one batch: with real ONNX Runtime, any mix of them equal to one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import graphs
from vigil_sidecar.batching.batcher import form_batches, run_batch
from vigil_sidecar.batching.job import Job, JobResult
from vigil_sidecar.batching.ragged import check, complete, cut, length_of, problem_of, stack
from vigil_sidecar.engine.contract import Contract, TensorSpec
from vigil_sidecar.engine.golden import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE, Golden
from vigil_sidecar.engine.session import Session
from vigil_sidecar.errors import CandidateRefused, InferenceFailed, SemanticViolation
from vigil_sidecar.registry.options import ModelOptions, RaggedOptions
from vigil_sidecar.registry.version import LoadedVersion
from vigil_sidecar.server.ragged_config import read_ragged

OPTIONS = RaggedOptions({"x": 1}, {"y": 1}, {"x": 9.5}, "mask", 40)
NAMES = ("y", "mean")


def version_of(tmp_path: Path, options: RaggedOptions = OPTIONS, masked: bool = True) -> LoadedVersion:
    path = tmp_path / "m.onnx"
    graphs.sequence(path, masked)
    session = Session(str(path), intra_op_threads=1)
    model = ModelOptions(ragged=options)
    return LoadedVersion("m", 1, "00" * 32, 1, session, model, 8, 0.001, 0.0, Golden({}, None), lambda version: None)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> LoadedVersion:
    return version_of(tmp_path_factory.mktemp("ragged"))


class Kept:
    """What a job was answered with."""

    def __init__(self) -> None:
        self.arrays: list[Any] = []

    def __call__(self, arrays: Any) -> JobResult:
        self.arrays = [a.copy() for a in arrays]
        return JobResult(b"", b"")


def job_of(version: LoadedVersion, x: Any, mask: Any = None) -> Job:
    options = version.options.ragged
    assert options is not None
    feeds = {"x": x} if mask is None else {"x": x, "mask": mask}
    length = length_of(options, feeds)
    complete(options, version.session.contract, feeds)
    return Job(None, version, len(x), NAMES, "key", b"", "", Kept(), feeds=feeds, length=length)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 10), st.booleans()), min_size=1, max_size=12), st.integers(0, 2**31))
def test_any_mix_is_answered_as_one_by_one(version: LoadedVersion, requests: list[tuple[int, int, bool]], seed: int) -> None:
    """Within the tolerance of the golden runs, in each one's own length; batches keep to rows and to the budget of lengths."""
    rng = np.random.default_rng(seed)
    jobs = []
    for rows, length, own in requests:
        mask = rng.integers(0, 2, (rows, length)) if own else None
        if mask is not None:
            mask[:, 0] = 1  # the mean of nothing is no number
        jobs.append(job_of(version, rng.random((rows, length, 2), np.float32), mask))
    batches = form_batches(jobs)
    assert sorted(id(j) for b in batches for j in b) == sorted(map(id, jobs))
    for batch in batches:
        rows, longest = sum(j.rows for j in batch), max(j.length for j in batch)
        assert rows <= 8 and rows * longest <= OPTIONS.length_max
        run_batch(batch)
    for job in jobs:
        assert isinstance(job.result, JobResult) and isinstance(job.finish, Kept) and job.feeds is not None
        for found, wanted in zip(job.finish.arrays, version.session.run(job.feeds), strict=True):
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE)


def test_lengths_share_a_batch(version: LoadedVersion) -> None:
    """What would be three runs is one, padded with the value that was asked for, and a mask that is zero there."""
    jobs = [job_of(version, np.ones((1, n, 2), np.float32)) for n in (2, 5, 3)]
    assert [len(b) for b in form_batches(jobs)] == [3]
    feeds = stack(OPTIONS, [j.feeds for j in jobs if j.feeds], [2, 5, 3])
    assert feeds["x"].shape == (3, 5, 2) and feeds["x"][0, 2:].tolist() == [[9.5, 9.5]] * 3
    assert feeds["mask"].tolist() == [[1, 1, 0, 0, 0], [1] * 5, [1, 1, 1, 0, 0]]


def test_padding_that_changes_answers_is_found(tmp_path: Path, version: LoadedVersion) -> None:
    """A graph without a mask, whose mean counts the padding, is refused before it serves; one that heeds its mask passes."""
    check(OPTIONS, version.session)
    options = RaggedOptions({"x": 1}, {"y": 1})
    with pytest.raises(CandidateRefused, match="output 'mean' of a sequence of the length 6 is another one when it is padded to 10; has"):
        check(options, version_of(tmp_path, options, masked=False).session)
    with pytest.raises(CandidateRefused, match="output 'y'"):
        check(RaggedOptions({"x": 1}, {}, {}, "mask"), version.session)


def test_padding_that_shows_in_some_numbers_only_is_found(tmp_path: Path) -> None:
    """A maximum hides padding behind any positive number: all kinds are tried."""
    path = tmp_path / "m.onnx"
    graphs.largest(path)
    with pytest.raises(CandidateRefused, match="output 'y' of a sequence of the length"):
        check(RaggedOptions({"x": 1}), Session(str(path), intra_op_threads=1))
    check(RaggedOptions({"x": 1}, {}, {"x": -1e30}), Session(str(path), intra_op_threads=1))  # what is below all shows in none


def test_requests_that_cannot_be(version: LoadedVersion) -> None:
    """Inputs of different lengths, and one that fits no batch, are refused with the figures."""
    with pytest.raises(SemanticViolation, match="different lengths: x 3, mask 2"):
        job_of(version, np.ones((1, 3, 2), np.float32), np.ones((1, 2), np.int64))
    with pytest.raises(SemanticViolation, match=r"4 rows of the length 11 are 44, batching.length_max of the model is 40"):
        job_of(version, np.ones((4, 11, 2), np.float32))
    with pytest.raises(InferenceFailed, match="its axis 1 should have the length 5"):
        cut(OPTIONS, ("y",), [np.ones((1, 4, 2))], 5, 3)


CONTRACT = Contract(
    (TensorSpec("x", "FP32", (-1, -1, 2)), TensorSpec("mask", "INT64", (-1, -1)), TensorSpec("t", "BYTES", (-1, -1))),
    (TensorSpec("y", "FP32", (-1, -1)),),
)


@pytest.mark.parametrize(
    ("options", "rows", "problem"),
    [
        (RaggedOptions({"x": 1}, {"y": 1}, {"x": 1}, "mask"), 8, ""),
        (RaggedOptions({"x": 1}), 1, "needs a model that is batched"),
        (RaggedOptions({"z": 1}), 8, "batching.inputs names 'z', the graph has mask, t, x"),
        (RaggedOptions({"x": 2}), 8, "batching.inputs.x = 2, but the shape is [-1, -1, 2]"),
        (RaggedOptions({"x": 1}, {"y": 3}), 8, "batching.outputs.y = 3"),
        (RaggedOptions({"x": 1}, {}, {"mask": 1}), 8, "batching.pad names 'mask'"),
        (RaggedOptions({"t": 1}), 8, "holds BYTES"),
        (RaggedOptions({"x": 1}, {}, {}, "x"), 8, "no input of numbers with the shape [-1, -1]"),
        (RaggedOptions({"x": 1, "mask": 1}, {}, {}, "mask"), 8, "which is the mask"),
    ],
)
def test_options_that_cannot_be(options: RaggedOptions, rows: int, problem: str) -> None:
    """Each is told by its key."""
    found = problem_of(options, CONTRACT, rows)
    assert (problem in found) if problem else found == ""


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"inputs": {"x": 1}}, ""),
        ({}, "must name an input"),
        ({"inputs": {"x": 0}}, "allowed is an axis, 1..7"),
        ({"inputs": {"x": 1}, "axis": 1}, "unknown key 'batching.axis'"),
        ({"inputs": {"x": 1}, "mask": 1}, "wrong type"),
        ({"inputs": {"x": 1}, "pad": {"x": "0"}}, "is no number"),
        ({"inputs": {"x": 1}, "length_max": 0}, "allowed is 1..2147483648"),
    ],
)
def test_tables_that_cannot_be(table: dict[str, Any], problem: str) -> None:
    """Each is told by its key."""
    if not problem:
        assert read_ragged(table) == RaggedOptions({"x": 1})
        return
    with pytest.raises(CandidateRefused, match=problem):
        read_ragged(table)
