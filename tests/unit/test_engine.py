"""Staging, sessions, warm-up, batching: with real ONNX Runtime."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.harness import graphs
from vigil_sidecar.batching.batcher import form_batches, run_batch
from vigil_sidecar.batching.job import Job, JobResult
from vigil_sidecar.engine.datatypes import decode_bytes, encode_bytes
from vigil_sidecar.engine.golden import Golden
from vigil_sidecar.engine.reshape import Reshape, Reshaped, problem_of
from vigil_sidecar.engine.session import Session, choose_providers
from vigil_sidecar.engine.staging import StillWritten, stage
from vigil_sidecar.engine.warmup import warm_up
from vigil_sidecar.errors import CallError, CandidateRefused, OutputViolation, SemanticViolation
from vigil_sidecar.registry.options import ModelOptions
from vigil_sidecar.registry.version import LoadedVersion

NO_GOLDEN = Golden({}, None)


def session_of(data: bytes, tmp_path: Path) -> Session:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    return Session(str(path))


def test_staged_bytes_are_sealed_and_hashed(tmp_path: Path) -> None:
    """The copy has the file's digest, can be loaded, and cannot be changed."""
    data = graphs.scale(2.0)
    (tmp_path / "m.onnx").write_bytes(data)
    staged = stage(tmp_path / "m.onnx", 1 << 20)
    assert staged.digest == hashlib.sha256(data).hexdigest()
    (tmp_path / "m.onnx").write_bytes(graphs.scale(9.0))
    session = Session(staged.path)
    assert session.run({"x": np.ones((1, 4), np.float32)})[0].tolist() == [[2, 2, 2, 2]]
    with pytest.raises(OSError):
        os.write(staged.fd, b"x")
    staged.close()


def test_open_file_is_not_staged(tmp_path: Path) -> None:
    """A file that somebody has open for writing is left alone, however complete it looks."""
    path = tmp_path / "m.onnx"
    path.write_bytes(graphs.scale(2.0))
    with path.open("ab"), pytest.raises(StillWritten):
        stage(path, 1 << 20)
    stage(path, 1 << 20).close()


@pytest.mark.parametrize("kind", ["empty", "folder", "large", "missing", "fifo"])
def test_files_that_cannot_be_models(tmp_path: Path, kind: str) -> None:
    """Each is refused, or waited for, in words; nothing blocks."""
    path = tmp_path / "m.onnx"
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        path.write_bytes(b"x" * 100)
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises((CandidateRefused, StillWritten)):
        stage(path, 50)


@pytest.mark.parametrize(
    ("data", "reason"), [(b"garbage" * 100, "cannot load"), (graphs.scale(2.0)[:50], "cannot load"), (b"\x00" * 64, "cannot load")]
)
def test_broken_graphs_are_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    """Garbage and truncated graphs are refused with ONNX Runtime's reason and without a path."""
    with pytest.raises(CandidateRefused, match=reason) as refusal:
        session_of(data, tmp_path)
    assert str(tmp_path) not in str(refusal.value)


def test_providers_fall_back_in_order() -> None:
    """Providers that are not there are passed over with the reason; CPU is always last."""
    chosen, passed = choose_providers(["cuda", "nonsense", "cpu"])
    assert chosen == ["CPUExecutionProvider"]
    assert [name for name, _ in passed] == ["cuda", "nonsense"]


def test_contract_difference_is_named(tmp_path: Path) -> None:
    """Other shapes are a difference in words; the same graph with another weight is none."""
    a = session_of(graphs.scale(2.0), tmp_path).contract
    b = session_of(graphs.scale(3.0), tmp_path).contract
    c = session_of(graphs.other_contract(), tmp_path).contract
    assert b.difference(a) is None
    assert "input x:FP32[-1, 5] was x:FP32[-1, 4]" in (c.difference(a) or "")


def test_rows_that_influence_each_other_are_not_batched(tmp_path: Path) -> None:
    """A free first axis is a batch only when rows prove independent: time is not."""
    assert warm_up(session_of(graphs.scale(2.0), tmp_path), None, 16, 20).max_batch_size == 16
    assert warm_up(session_of(graphs.time_mixing(), tmp_path), None, 16, 20).max_batch_size == 0


def test_warm_up_has_a_budget(tmp_path: Path) -> None:
    """A candidate that is not warm in time is refused with how far it came."""
    ticks = iter(range(1000))
    with pytest.raises(CandidateRefused, match=r"not warm within 5.0 s .*of 16 batch sizes"):
        warm_up(session_of(graphs.scale(2.0), tmp_path), None, 16, 5.0, clock=lambda: float(next(ticks)))


def test_max_batch_size_needs_a_free_axis(tmp_path: Path) -> None:
    """config.pbtxt cannot make a batch of a fixed axis."""
    session = session_of(graphs.gemm(1, 4), tmp_path)
    fixed = session.contract._replace(inputs=(session.contract.inputs[0]._replace(shape=(1, 4)),))
    session.contract = fixed
    with pytest.raises(CandidateRefused, match="first axis is not free"):
        warm_up(session, 8, 16, 20)


def test_bytes_elements() -> None:
    """BYTES elements survive; cut-off, surplus and non-UTF-8 ones are refused by name."""
    raw = encode_bytes(["hi", "", "é"])
    assert decode_bytes(raw, 3, "x") == ["hi", "", "é"]
    for broken, count in ((raw[:-1], 3), (raw, 2), (raw, 4), (encode_bytes([b"\xff"]), 1), (b"\xff\xff\xff\xff", 1)):
        with pytest.raises(SemanticViolation, match="input 'x'"):
            decode_bytes(broken, count, "x")


def loaded(tmp_path: Path, data: bytes, batch: int = 8) -> LoadedVersion:
    return LoadedVersion("m", 1, "00" * 32, 1, session_of(data, tmp_path), ModelOptions(), batch, 0.0, 0.0, NO_GOLDEN, lambda v: None)


def job(version: LoadedVersion, array: Any, finish: Any = None) -> Job:
    finish = finish or (lambda arrays: JobResult(b"", lambda position, a=arrays: a))
    return Job(None, version, array.shape[0], ("y",), (version, array.shape[1:]), b"", "", finish, feeds={"x": array})


def ran(*jobs: Job) -> list[Job]:
    run_batch(jobs)
    return list(jobs)


def test_batches_give_each_job_its_rows(tmp_path: Path) -> None:
    """Jobs share a run up to the largest batch, and each gets exactly its rows."""
    version = loaded(tmp_path, graphs.scale(2.0))
    jobs = [job(version, np.full((1 + i % 3, 4), i, np.float32)) for i in range(12)]
    batches = list(form_batches(jobs))
    assert all(sum(j.rows for j in b) <= 8 for b in batches)
    assert len(batches) < 12
    for one in [o for b in batches for o in ran(*b)]:
        assert isinstance(one.result, JobResult)
        rows: Any = one.result.answer("")  # type: ignore[operator]
        assert np.array_equal(rows[0], one.feeds["x"] * 2)


def test_bad_neighbour_fails_alone(tmp_path: Path) -> None:
    """When a batch fails, its jobs are run one by one: only the bad one fails."""
    version = loaded(tmp_path, graphs.scale(2.0))
    good = [job(version, np.ones((1, 4), np.float32)) for _ in range(3)]
    bad = job(version, np.ones((1, 7), np.float32))
    outcomes = ran(*good, bad)
    assert [isinstance(o.result, CallError) for o in outcomes] == [False, False, False, True]


def test_violated_output_is_an_error_of_that_job_only(tmp_path: Path) -> None:
    """A job whose output is refused does not take the others with it."""

    def refuse(arrays: Any) -> JobResult:
        raise OutputViolation("no")

    version = loaded(tmp_path, graphs.scale(2.0))
    outcomes = ran(job(version, np.ones((1, 4), np.float32)), job(version, np.ones((1, 4), np.float32), refuse))
    assert isinstance(outcomes[0].result, JobResult)
    assert isinstance(outcomes[1].result, OutputViolation)


def test_post_processing_that_breaks_fails_alone(tmp_path: Path) -> None:
    """Whatever a post-processing library raises is that job's error, said as what it is, and its neighbours are answered."""

    def breaks(arrays: Any) -> JobResult:
        raise RuntimeError("/some/source.cpp:12")

    version = loaded(tmp_path, graphs.scale(2.0))
    outcomes = ran(job(version, np.ones((1, 4), np.float32), breaks), job(version, np.ones((1, 4), np.float32)))
    assert isinstance(outcomes[1].result, JobResult)
    assert str(outcomes[0].result) == "the model's outputs could not be turned into an answer: RuntimeError"


def test_retired_version_closes_with_its_last_lease(tmp_path: Path) -> None:
    """A session in use is never closed; a retired version gives no new lease."""
    closed = threading.Event()
    version = LoadedVersion(
        "m", 1, "00" * 32, 1, session_of(graphs.scale(2.0), tmp_path), ModelOptions(), 8, 0, 0, NO_GOLDEN, lambda v: closed.set()
    )
    assert version.acquire() and version.acquire()
    version.retire()
    version.release()
    assert not closed.is_set()
    assert not version.acquire()
    version.release()
    assert closed.is_set()


@pytest.mark.parametrize(
    ("dims", "shape", "problem"),
    [
        ((2, 2), (4,), ""),
        ((1,), (), ""),
        ((-1, 2), (-1, 2, 1), ""),
        ((2, -1, 3, -1), (-1, 6, -1), "different sizes"),
        ((2, -1, 3, -1), (2, -1, 1, 3, -1), ""),
        ((-1,), (2, -1), "different sizes"),
        ((-1, -1), (-1,), "variable dimensions"),
        ((4,), (5,), "different sizes"),
        ((-2,), (-2,), "negative dimension"),
    ],
)
def test_reshapes_that_can_be(dims: tuple[int, ...], shape: tuple[int, ...], problem: str) -> None:
    """Free dimensions correspond in order, and what stands between them has equally many elements."""
    found = problem_of(Reshape(dims, shape))
    assert (problem in found) if problem else found == ""


@pytest.mark.parametrize("batched", [True, False])
def test_reshaped_graph_answers_as_it_does_bare(batched: bool, tmp_path: Path) -> None:
    """Callers see dims and the graph its own shapes; the numbers are the same, in the same order, and none is copied on the way in."""
    bare = session_of(graphs.scale(3.0), tmp_path)
    given = Reshape((2, 2), (4,)) if batched else Reshape((-1, 2, 2), (-1, 4))
    seen = Reshaped(bare, {"x": given, "y": Reshape((4, 1), (4,)) if batched else Reshape((-1, 4, 1), (-1, 4))}, batched)
    assert [t.shape for t in (*seen.contract.inputs, *seen.contract.outputs)] == [(-1, 2, 2), (-1, 4, 1)]
    x = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    (y,) = seen.run({"x": x})
    assert y.shape == (3, 4, 1) and y.ravel().tolist() == (3 * x).ravel().tolist()
    assert np.shares_memory(seen._turn("x", x, True), x)
