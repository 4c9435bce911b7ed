"""What tests of swaps and of the repository ask of a running product."""

from __future__ import annotations

import numpy as np

from tests.harness.calls import Stub, infer_request, output
from tests.harness.product import wait_for

__all__ = ["X", "factor", "refused", "serves", "versions"]

X = np.array([[1, 2, 3, 4]], np.float32)


def factor(stub: Stub, model: str = "m", version: str = "") -> float:
    return float(output(stub.infer(infer_request(model, {"x": X}, version)))[0, 0])


def serves(stub: Stub, value: float, model: str = "m") -> None:
    wait_for(lambda: factor(stub, model) == value, 20, f"{model} multiplies by {value}")


def versions(stub: Stub, model: str = "m") -> dict[int, tuple[str, str]]:
    names = {1: "loading", 2: "serving", 3: "standby", 4: "refused", 5: "retired"}
    return {v.version: (names[v.state], v.reason) for v in stub.models()[model].versions}


def refused(stub: Stub, number: int, model: str = "m") -> str:
    def look() -> str:
        state, reason = versions(stub, model).get(number, ("", ""))
        return reason if state == "refused" else ""

    return str(wait_for(look, 20, f"version {number} is refused"))
