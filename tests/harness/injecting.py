"""A product in which faults are injected: the one of the quick campaign in the tests, and of `make campaign`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.harness import graphs
from tests.harness.product import ROOT, VIGIL, Product

__all__ = ["MODEL", "injected_product"]

MODEL = "scale"
_SETTINGS = {
    "safety.injection": "true", "supervisor.restart_count_max": 100_000, "supervisor.backoff_ms": 0, "safety.rounds_max": 100_000,
    "safety.probe_interval_s": 0.3, "safety.backoff_max_ms": 200, "safety.run_ms_max": 200, "limits.calls_in_flight_max": 64,
}  # fmt: skip
"""Falls and restarts come often and must not add up to Safe stop; limits are low so that a burst reaches them."""
_LADDER = "output_min = -1000.0\noutput_max = 1000.0\n[ladder]\nlast_good_ms = 60000\noutputs.y.fill = 0.0\n"


def injected_product(folder: Path) -> Product:
    """The product, not started, with one small model that has a ladder and plausible limits."""
    product = Product(folder, dict(_SETTINGS))
    graphs.scale(2.0, product.models / MODEL / "1" / "model.onnx")
    (product.models / MODEL / "vigil.toml").write_text(_LADDER)
    return product


def main() -> int:
    """Start it and run the campaign with the arguments given; the report goes to build/campaign."""
    import subprocess
    import tempfile

    _, more = argparse.ArgumentParser().parse_known_args()
    out = ROOT / "build" / "campaign"
    with tempfile.TemporaryDirectory(prefix="vigil-campaign-") as folder, injected_product(Path(folder)) as product:
        command = [*VIGIL, "safety", "campaign", "--model", MODEL, "--data-dir", str(product.data), "--out", str(out), *more]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
