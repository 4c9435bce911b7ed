"""A ladder's table: read, held against the graph, and told to the gateway."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.harness import graphs
from vigil_sidecar.engine.session import Session
from vigil_sidecar.engine.warmup import warm_up
from vigil_sidecar.errors import CandidateRefused, OrderViolation
from vigil_sidecar.registry.options import LadderOptions, ModelOptions
from vigil_sidecar.registry.registry import Model
from vigil_sidecar.registry.version import LoadedVersion
from vigil_sidecar.server.ladder import Ladders, check_ladder
from vigil_sidecar.server.ladder_config import read_ladder
from vigil_sidecar.streams.sources import SourceOrder


def loaded(path: Path, ladder: LadderOptions | None, make: Any = lambda p: graphs.scale(2.0, p), **options: Any) -> LoadedVersion:
    make(path)
    session = Session(path, ("cpu",), 1)
    warmth = warm_up(session, None, 8, 30.0)
    return LoadedVersion(
        "m", 1, "ab" * 32, 1, session, ModelOptions(ladder=ladder, **options), warmth.max_batch_size, warmth.run_s, 0.0, warmth.golden,
        lambda version: version.session.close(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("speed = 1", "unknown key 'ladder.speed'"),
        ("last_good_ms = -1", "ladder.last_good_ms = -1: allowed is 0..3600000"),
        ("last_good_ms = 3600001", "last_good_ms"),
        ("last_good_ms = nan", "last_good_ms"),
        ("last_good_ms = true", "last_good_ms"),
        ('fallback_model = "../m"', "ladder.fallback_model"),
        ("fallback_model = 1", "ladder.fallback_model"),
        ("outputs = 1", "ladder.outputs"),
        ("outputs.y = 1", "ladder.outputs.y"),
        ("outputs.y.fill = 1\noutputs.y.values = [1]", "either values or fill"),
        ("outputs.y.shape = [1]", "either values or fill"),
        ("outputs.y.values = [[1]]", "one flat list"),
        ("outputs.y.fill = 1\noutputs.y.shape = [-1]", "ladder.outputs.y.shape"),
        ("outputs.y.fill = 1\noutputs.y.kind = 2", "unknown key 'ladder.outputs.y.kind'"),
        ("boxes = [1]", "ladder.boxes[0]"),
        ("boxes = [{x_min = 0, y_min = 0, x_max = 1}]", "ladder.boxes[0].y_max = None"),
        ("boxes = [{x_min = 0, y_min = 0, x_max = 1.5, y_max = 1}]", "allowed is 0..1 (of the frame)"),
        ("boxes = [{x_min = 0.5, y_min = 0, x_max = 0.2, y_max = 1}]", "x_min <= x_max"),
        ("boxes = [{x_min = 0, y_min = 0, x_max = 1, y_max = 1, label = 3}]", "label"),
        ("boxes = [{x_min = 0, y_min = 0, x_max = 1, y_max = 1, colour = 3}]", "unknown key 'ladder.boxes[0].colour'"),
    ],
)
def test_bad_tables_are_named(text: str, named: str) -> None:
    with pytest.raises(CandidateRefused) as error:
        read_ladder(tomllib.loads(text))
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("outputs.z.fill = 1", "ladder.outputs.z: the graph has no such output"),
        ("outputs.y.values = [1, 2, 3]", "3 values, shape [4] has 4"),
        ("outputs.y = {fill = 1, shape = [5]}", "shape [5] is not of the graph's form [4]"),
        ('outputs.y.values = ["a", "b", "c", "d"]', "do not fit FP32"),
        ("outputs.y.fill = 1e300", "not finite"),
        ("outputs.y = {fill = 1, shape = []}", "is not of the graph's form"),
        ("outputs.y.fill = 11", "the most plausible is 10"),
        ("boxes = []", "has no [pipeline]"),
        ('fallback_model = "m"', "is the model itself"),
        ('fallback_model = "five"', "another contract"),
    ],
)
def test_what_does_not_fit_the_graph_is_named(tmp_path: Path, text: str, named: str) -> None:
    five = Model("five")
    five.serving = loaded(tmp_path / "five.onnx", None, graphs.other_contract)
    version = loaded(tmp_path / "m.onnx", read_ladder(tomllib.loads(text)), output_max=10.0)
    with pytest.raises(CandidateRefused) as error:
        check_ladder(version, {"five": five})
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("text", "make", "shape", "raw"),
    [
        ("outputs.y.fill = 2", lambda p: graphs.scale(2.0, p), [4], np.full(4, 2, np.float32).tobytes()),
        ("outputs.y.values = [1, 2.5, 3, 4]", lambda p: graphs.scale(2.0, p), [4], np.array([1, 2.5, 3, 4], np.float32).tobytes()),
        ("outputs.y = {fill = 1, shape = [2, 4]}", graphs.time_mixing, [2, 4], np.ones((2, 4), np.float32).tobytes()),
        ('outputs.y.fill = "bc"', graphs.identity_bytes, [], b"\2\0\0\0bc"),
    ],
)
def test_constants_are_told_as_bytes(tmp_path: Path, text: str, make: Any, shape: list[int], raw: bytes) -> None:
    """One row of a model that batches; the whole tensor of one that does not, with a shape where the graph leaves it open."""
    version = loaded(tmp_path / "m.onnx", read_ladder(tomllib.loads(text)), make)
    model = Model("m")
    model.serving = version
    check_ladder(version, {})
    ladders = Ladders()
    said = ladders.message([model])
    assert ladders.message([model]) is said
    one = said.ladders[0]
    assert (one.model, one.max_batch_size, [t.name for t in one.inputs]) == ("m", version.max_batch_size, list(version.inputs))
    assert (list(one.outputs[0].shape), one.outputs[0].raw) == (shape, raw)
    model.serving = None
    assert list(ladders.message([model]).ladders) == []


def test_a_stand_in_may_have_the_frame_that_the_model_had() -> None:
    """The model asked first has accepted its time; an older one stays refused."""
    order = SourceOrder(10, 60, 60, lambda: 0.0, lambda: 100.0)
    order.accept("t", "cam", 5, "")
    order.accept("t", "cam", 5, "", again=True)
    for time_us, again in ((5, False), (4, True)):
        with pytest.raises(OrderViolation):
            order.accept("t", "cam", time_us, "", again=again)
