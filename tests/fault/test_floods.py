"""HTTP/2 misused against both listeners: good callers are served, memory is bounded, nothing ends."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from vigil.audit.v1.audit_pb2 import CallPayload

from tests.harness import graphs
from tests.harness.calls import Stub, infer_request
from tests.harness.product import ROOT, Product
from vigil_sidecar.audit.verify import read_records

X = np.arange(4, dtype=np.float32).reshape(1, 4)
LASTS_S = 2
IN_FLIGHT = 100 << 20
RESIDENT_KIB = (256 << 10) + 3 * (IN_FLIGHT >> 10)
"""Of the gateway, through all floods: what it is itself, and bytes in flight with their copies."""


@pytest.fixture(scope="module")
def floodtool() -> str:
    tool = ROOT / "build" / "floodtool"
    subprocess.run(["go", "build", "-o", str(tool), "./floodtool"], cwd=ROOT / "gateway-go", check=True)
    return str(tool)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    product = Product(tmp_path_factory.mktemp("floods"), {"limits.bytes_in_flight_max": IN_FLIGHT, "limits.message_bytes_max": 8 << 20})
    graphs.scale(2.0, product.models / "scale" / "1" / "model.onnx")
    with product:
        yield product


def resident_kib(pid: int) -> int:
    return int(next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")).split()[1])


FLOODS = {
    "rapid-reset": {},
    "settings": {},
    "ping": {},
    "empty-data": {},
    "continuation": {},
    "window-update": {},
    "unread": {"connections": 4, "streams": 100},
    "unfinished": {"connections": 4, "streams": 100, "announced": 8 << 20},
    "slow": {"connections": 1000},
}


@pytest.mark.parametrize("door", ["grpc", "http"])
@pytest.mark.parametrize("kind", FLOODS)
def test_good_callers_are_served_meanwhile(product: Product, floodtool: str, tmp_path: Path, kind: str, door: str) -> None:
    stub = Stub(product.channel())
    good = infer_request("scale", {"x": X})
    stub.infer(good)
    large = tmp_path / "request"
    large.write_bytes(infer_request("scale", {"x": np.ones((1 << 18, 4), np.float32)}).SerializeToString())
    pids, most = product.pids(), 0
    options = [f"-{k}={v}" for k, v in ({"connections": 2, "request": large} | FLOODS[kind]).items()]
    command = [floodtool, "-kind", kind, "-address", f"127.0.0.1:{product.ports[door]}", "-lasts", f"{LASTS_S}s", *options]
    flood = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    served = 0
    while flood.poll() is None:
        answer = stub.infer(good, timeout_s=20)
        assert np.array_equal(np.frombuffer(answer.raw_output_contents[0], "<f4"), X[0] * 2)
        served, most = served + 1, max(most, resident_kib(pids["gateway_pid"]))
    out, err = flood.communicate()
    assert flood.returncode == 0, err
    sent = json.loads(out)
    print(kind, door, sent, "served", served, "MiB", most >> 10)
    assert sent["frames"] > 50 and served > 1
    assert product.pids() == pids
    assert most < RESIDENT_KIB
    if (kind, door) == ("unfinished", "grpc"):
        assert any("unfinished messages" in t and "is ended (limits.bytes_in_flight_max)" in t for t in refusals(product))


def test_who_brings_nothing_else_is_ended(product: Product, floodtool: str) -> None:
    """After 5 s in which a connection mostly had to wait; the record says why."""
    address = f"127.0.0.1:{product.ports['grpc']}"
    done = subprocess.run([floodtool, "-kind", "settings", "-address", address, "-lasts", "9s"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and json.loads(done.stdout)["connections"] > 1, done
    assert any("nothing but control frames is ended" in text for text in refusals(product))


def refusals(product: Product) -> list[str]:
    """Texts of the refusals for a limit in the gateway's log."""
    found = [r for r in read_records(product.data / "audit" / "gateway") if r.header.event_id == 2043]
    return [CallPayload.FromString(r.payload).message for r in found]


def test_a_stream_may_carry_any_number_of_messages(product: Product) -> None:
    """What was whole is not held: one stream carries more in all than may be held at a time."""
    large = infer_request("scale", {"x": np.ones((1 << 18, 4), np.float32)}).SerializeToString()
    count = IN_FLIGHT // len(large) + 10
    call = product.channel().stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    assert sum(1 for _ in call((large for _ in range(count)), timeout=120)) == count
