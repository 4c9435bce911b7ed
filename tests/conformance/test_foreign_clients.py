"""Clients that others wrote, unchanged, against the product: KServe's, and NVIDIA's perf_analyzer."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import graphs
from tests.harness.environments import Missing, environment, perf_analyzer
from tests.harness.product import Product
from vigil_sidecar.audit.reader import read_records

pytestmark = pytest.mark.long

KSERVE = """
import asyncio, json, sys
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.inference_client import InferenceGRPCClient
from kserve.protocol.infer_type import RequestedOutput
base, x = "http://" + sys.argv[1], np.arange(8, dtype=np.float32).reshape(2, 4)

def tensor(binary):
    i = InferInput("x", list(x.shape), "FP32")
    i.set_data_from_numpy(x, binary_data=binary)
    return i

async def rest():
    c = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    out = [await c.is_server_live(base), await c.is_server_ready(base), await c.is_model_ready(base, "scale")]
    for binary in (False, True):
        wanted = [RequestedOutput("y", {"binary_data": binary})]
        r = await c.infer(base, InferRequest("scale", [tensor(binary)], request_id="7", request_outputs=wanted), model_name="scale")
        out += [r.outputs[0].as_numpy().tolist(), r.id]
    try:
        await c.infer(base, InferRequest("nope", [tensor(False)]), model_name="nope")
    except Exception as e:
        return out + [str(e)]

async def grpc():
    async with InferenceGRPCClient(sys.argv[2]) as c:
        out = [await c.is_server_live(), await c.is_server_ready(), await c.is_model_ready("scale")]
        for binary in (False, True):
            r = await c.infer(InferRequest("scale", [tensor(binary)], request_id="7"))
            out += [r.outputs[0].as_numpy().tolist(), r.id]
        try:
            await c.infer(InferRequest("nope", [tensor(False)]))
        except Exception as e:
            return out + [str(e)]

print(json.dumps([asyncio.run(rest()), asyncio.run(grpc())]))
"""


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    running = Product(tmp_path_factory.mktemp("foreign"))
    graphs.scale(2.0, running.models / "scale" / "1" / "model.onnx")
    with running:
        yield running


def test_kserve_inference_client(product: Product, tmp_path: Path) -> None:
    """KServe's Python client, by REST (JSON and binary) and gRPC: health, answers, ids, and Triton's words for an unknown model."""
    python = environment("kserve", ["kserve==0.21.0"]).parents[2] / "bin" / "python"
    targets = [f"127.0.0.1:{product.ports[p]}" for p in ("http", "grpc")]
    done = subprocess.run([str(python), "-c", KSERVE, *targets], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    y = [[0, 2, 4, 6], [8, 10, 12, 14]]
    for answers in json.loads(done.stdout.splitlines()[-1]):
        assert answers[:-1] == [True, True, True, y, "7", y, "7"]
        assert "Request for unknown model: 'nope' is not found" in answers[-1]


FORMS = {
    "grpc": ["-i", "grpc"],
    "grpc, shared memory": ["-i", "grpc", "--shared-memory", "system", "--output-shared-memory-size", "64"],
    "grpc, streaming": ["-i", "grpc", "--streaming"],
    "http": ["-i", "http"],
    "http, shared memory": ["-i", "http", "--shared-memory", "system", "--output-shared-memory-size", "64"],
}


@pytest.mark.parametrize("form", FORMS)
def test_perf_analyzer(product: Product, tmp_path: Path, form: str) -> None:
    """NVIDIA's load generator measures without an error; its counts of the server's are those of the records."""
    try:
        program, libraries = perf_analyzer()
    except Missing as error:
        pytest.skip(str(error))
    target = f"127.0.0.1:{product.ports['http' if 'http' in form else 'grpc']}"
    log = product.data / "audit" / "sidecar"
    before = sum(r.header.kind == 1 for r in read_records(log))
    command = [str(program), "-m", "scale", "-u", target, "-b", "2", "--concurrency-range", "4", *FORMS[form]]
    command += [
        "--measurement-mode",
        "count_windows",
        "--measurement-request-count",
        "400",
        "--stability-percentage",
        "999",
        "--max-trials",
        "3",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=os.environ | {"LD_LIBRARY_PATH": libraries}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counted = {name: int(n) for name, n in re.findall(r"(Request count|Inference count|Successful request count): (\d+)", done.stdout)}
    assert counted["Request count"] >= 400 and "rror" not in done.stdout.replace("standard", "")
    assert counted["Inference count"] == 2 * counted["Successful request count"]
    assert sum(r.header.kind == 1 for r in read_records(log)) - before >= counted["Successful request count"] > 0
