"""Fixtures shared by the suites."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import graphs
from tests.harness.calls import Stub
from tests.harness.product import Product


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """A running product with small models: scale, log, mixing, strings, pairwise, slow."""
    running = Product(tmp_path_factory.mktemp("product"))
    fill(running.models)
    with running:
        yield running


@pytest.fixture(scope="module")
def stub(product: Product) -> Stub:
    """Typed calls to the gateway."""
    return Stub(product.channel())


def fill(models: Path) -> None:
    """The small models of the shared product."""
    graphs.scale(2.0, models / "scale" / "1" / "model.onnx")
    graphs.with_nan(models / "log" / "1" / "model.onnx")
    graphs.time_mixing(models / "mixing" / "1" / "model.onnx")
    graphs.identity_bytes(models / "strings" / "1" / "model.onnx")
    graphs.gemm(24, 1024, models / "slow" / "1" / "model.onnx")
    graphs.pairwise(models / "pairwise" / "1" / "model.onnx")
