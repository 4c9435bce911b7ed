"""onnx's test cases of operators, served through the protocol: the outputs are those that onnx expects."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import grpc
import pytest

from tests.harness.calls import Stub
from tests.harness.node_cases import BFLOAT16, cases, infer, servable, write
from tests.harness.product import Product


def serve(folder: Path, every: int) -> tuple[int, list[str], Counter[str]]:
    """Serve each ``every``-th case; returns how many were equal, what was not, and what was left out by reason."""
    left_out: Counter[str] = Counter()
    chosen = []
    for case in cases(left_out)[::every]:
        if why := servable(case):
            left_out[why] += 1
        else:
            chosen.append(case)
            write(case, folder / "models")
    equal, wrong = 0, []
    with Product(folder, {"models.count_max": 4000}, start_timeout_s=600) as product:
        stub = Stub(product.channel())
        reasons = {m.name: m.versions[0].reason for m in stub.models().values() if m.versions}
        for case in chosen:
            if any(a.dtype == BFLOAT16 for a in (*case.inputs.values(), *case.outputs.values())):
                left_out["bfloat16: onnxruntime's Python has no such arrays"] += 1
                continue
            try:
                problems = infer(case, stub.infer)
            except grpc.RpcError as error:
                problems = [f"{error.code().name}: {error.details()} {reasons.get(case.name, '')}"]
            equal += not problems
            wrong += [f"{case.name}: {p}" for p in problems]
    print(f"{equal} cases equal, {len(wrong)} wrong; left out: {dict(left_out)}")
    return equal, wrong, left_out


def test_a_tenth_of_the_cases(tmp_path: Path) -> None:
    """Every tenth case, over all operators."""
    equal, wrong, _ = serve(tmp_path, 10)
    assert wrong == [] and equal >= 130


@pytest.mark.long
def test_all_cases(tmp_path: Path) -> None:
    """All cases of tensors that ONNX Runtime itself answers as expected."""
    equal, wrong, _ = serve(tmp_path, 1)
    assert wrong == [] and equal == 1375
