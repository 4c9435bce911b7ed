"""Triton's model control modes: who decides what is loaded, and that a load is all or nothing."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as oip

from tests.harness import graphs
from tests.harness.calls import Stub, infer_request, output
from tests.harness.product import Product, wait_for
from vigil_sidecar.audit.reader import read_records

SERVICE = "/inference.GRPCInferenceService/"
X = np.ones((1, 4), np.float32)


def place(product: Product, name: str, factor: float, version: int = 1) -> Path:
    path = product.models / name / str(version) / "model.onnx"
    graphs.scale(factor, path)
    return path


def load(stub: Stub, name: str, **parameters: Any) -> None:
    request = oip.RepositoryModelLoadRequest(model_name=name)
    for key, value in parameters.items():
        if isinstance(value, bytes):
            request.parameters[key].bytes_param = value
        else:
            request.parameters[key].string_param = value
    stub.unary(SERVICE + "RepositoryModelLoad", request, oip.RepositoryModelLoadResponse, timeout_s=30)


def unload(stub: Stub, name: str) -> None:
    stub.unary(SERVICE + "RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name=name), oip.RepositoryModelUnloadResponse)


def index(stub: Stub) -> dict[tuple[str, str], tuple[str, str]]:
    found, _ = stub.unary(SERVICE + "RepositoryIndex", oip.RepositoryIndexRequest(), oip.RepositoryIndexResponse)
    return {(m.name, m.version): (m.state, m.reason) for m in found.models}


def factor(stub: Stub, name: str) -> float:
    return float(output(stub.infer(infer_request(name, {"x": X})))[0, 0])


def serves(stub: Stub, name: str) -> bool:
    try:
        return factor(stub, name) > 0
    except grpc.RpcError:
        return False


def refused(call: Any, *arguments: Any, **more: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as error:
        call(*arguments, **more)
    return error.value.code().name, error.value.details()


@pytest.fixture
def explicit(tmp_path: Path) -> Iterator[Product]:
    with Product(tmp_path, {"models.control": "explicit", "models.load": "a"}) as product:
        yield product


@pytest.fixture(autouse=True)
def models_first(tmp_path: Path) -> None:
    for name, value in (("a", 2.0), ("b", 3.0)):
        graphs.scale(value, tmp_path / "models" / name / "1" / "model.onnx")


def test_clients_decide(explicit: Product) -> None:
    """Only what is asked for is loaded, changed files count at the next load, and unloading ends it, all with records."""
    stub = Stub(explicit.channel())
    assert index(stub) == {("a", "1"): ("READY", ""), ("b", ""): ("", "")}
    assert refused(factor, stub, "b") == ("NOT_FOUND", "Request for unknown model: 'b' is not found")
    load(stub, "b")
    assert factor(stub, "b") == 3
    place(explicit, "b", 4.0)
    place(explicit, "a", 5.0, version=2)
    time.sleep(1.0)  # longer than files have to keep still
    assert (factor(stub, "a"), factor(stub, "b")) == (2, 3)
    load(stub, "b")
    assert (factor(stub, "a"), factor(stub, "b")) == (2, 4)
    load(stub, "a")
    assert factor(stub, "a") == 5
    unload(stub, "a")
    assert refused(factor, stub, "a") == ("NOT_FOUND", "Request for unknown model: 'a' is not found")
    assert index(stub)[("a", "")] == ("UNAVAILABLE", "unloaded")
    unload(stub, "a")
    unload(stub, "never-there")  # as in Triton
    load(stub, "a")
    assert factor(stub, "a") == 5
    kinds = [r.header.event_id for r in read_records(explicit.data / "audit" / "sidecar")]
    assert kinds.count(3009) == 1, "one model was unloaded"


def test_what_clients_decided_is_there_after_a_restart(explicit: Product) -> None:
    """A killed sidecar, and a machine that starts again, serve what was served: loads, overrides and unloads."""
    stub = Stub(explicit.channel())
    load(stub, "b", config='{"maxBatchSize": 8}', **{"file:1/model.onnx": graphs.scale(7.0)})
    unload(stub, "a")
    assert factor(stub, "b") == 7
    os.kill(explicit.pids()["sidecar_pid"], signal.SIGKILL)
    wait_for(lambda: serves(stub, "b"), 20, "b is back")
    assert factor(stub, "b") == 7 and "a" not in stub.models()
    assert explicit.stop() == 0
    explicit.start()
    stub = Stub(explicit.channel())
    assert factor(stub, "b") == 7 and "a" not in stub.models()
    load(stub, "b")
    assert factor(stub, "b") == 3
    assert [p.name for p in (explicit.data / "control").iterdir()] == ["models.json"], "an override that is over is deleted"


def test_a_load_that_fails_changes_nothing(explicit: Product) -> None:
    """Bad files, bad configurations and gates: the reason in Triton's words, and what served serves on without a gap."""
    stub = Stub(explicit.channel())
    load(stub, "b")
    before, stop, wrong = explicit.data / "control" / "models.json", threading.Event(), []

    def caller() -> None:
        mine = Stub(explicit.channel())
        while not stop.is_set():
            try:
                if factor(mine, "b") != 3:
                    wrong.append("another answer")
            except grpc.RpcError as error:
                wrong.append(error.details() or "")

    thread = threading.Thread(target=caller)
    thread.start()
    kept = before.read_text()
    try:
        config = '{"maxBatchSize": 8}'
        start = "load failed for model 'b': version 1 is at UNAVAILABLE state: "
        code, text = refused(load, stub, "b", config=config, **{"file:1/model.onnx": b"no model"})
        assert code == "INVALID_ARGUMENT" and text.startswith(start), text
        code, text = refused(load, stub, "b", config=config, **{"file:1/model.onnx": graphs.other_contract()})
        assert code == "INVALID_ARGUMENT" and "contract differs" in text and text.startswith(start), text
        code, text = refused(load, stub, "b", config='{"input": [{"name": "nope", "dataType": "TYPE_FP32", "dims": [4]}]}')
        assert code == "INVALID_ARGUMENT" and "the graph has no tensor 'nope'" in text, text
        code, text = refused(load, stub, "b", config='{"sequenceBatching": {}}')
        assert code == "INVALID_ARGUMENT" and "'sequence_batching' is not supported" in text, text
        (explicit.models / "b" / "2").mkdir()
        (explicit.models / "b" / "2" / "model.onnx").write_bytes(b"half a model")
        code, text = refused(load, stub, "b")
        assert code == "INVALID_ARGUMENT" and "version 2 is at UNAVAILABLE state" in text, text
        assert factor(stub, "b") == 3
    finally:
        stop.set()
        thread.join()
    assert wrong == [] and before.read_text() == kept
    assert [p.name for p in (explicit.data / "control").iterdir()] == ["models.json"]
    assert stub.models()["b"].safety_state == "NORMAL"
    shutil.rmtree(explicit.models / "b" / "2")
    code, text = refused(load, stub, "c")
    assert (code, text) == ("INVALID_ARGUMENT", "failed to load 'c', failed to poll from model repository")
    (explicit.models / "c" / "1").mkdir(parents=True)
    (explicit.models / "c" / "1" / "model.onnx").write_bytes(b"no model")
    assert "version 1 is at UNAVAILABLE state" in refused(load, stub, "c")[1]
    assert index(stub)[("c", "")][0] == "UNAVAILABLE" and "c" not in stub.models()


def test_a_load_is_what_the_files_say(explicit: Product) -> None:
    """Lower versions, versions that are gone and overrides of other numbers take effect; what the policy keeps is all there."""
    stub = Stub(explicit.channel())
    place(explicit, "b", 8.0, version=2)
    load(stub, "b")
    assert factor(stub, "b") == 8
    load(stub, "b", config="{}", **{"file:1/model.onnx": graphs.scale(5.0)})
    assert (factor(stub, "b"), stub.models()["b"].serving_version) == (5, 1)
    load(stub, "b", config="{}", **{"file:9/model.onnx": graphs.scale(6.0)})
    assert (factor(stub, "b"), stub.models()["b"].serving_version) == (6, 9)
    load(stub, "b")
    assert (factor(stub, "b"), stub.models()["b"].serving_version) == (8, 2)
    shutil.rmtree(explicit.models / "b" / "2")
    load(stub, "b")
    assert (factor(stub, "b"), stub.models()["b"].serving_version) == (3, 1)
    (explicit.models / "b" / "config.pbtxt").write_text("version_policy { all { } }")
    for version in (2, 3):
        place(explicit, "b", 10.0 + version, version)
    load(stub, "b")
    answers = [float(output(stub.infer(infer_request("b", {"x": X}, str(v))))[0, 0]) for v in (1, 2, 3)]
    assert answers == [3, 12, 13]
    place(explicit, "b", 99.0, version=1)
    (explicit.models / "b" / "2" / "model.onnx").write_bytes(b"no model")
    code, text = refused(load, stub, "b")
    assert code == "INVALID_ARGUMENT" and "version 2 is at UNAVAILABLE state" in text
    again = [float(output(stub.infer(infer_request("b", {"x": X}, str(v))))[0, 0]) for v in (1, 2, 3)]
    assert again == answers, "a good version of a load that failed serves nothing"
    place(explicit, "b", 22.0, version=2)
    load(stub, "b")
    assert [float(output(stub.infer(infer_request("b", {"x": X}, str(v))))[0, 0]) for v in (1, 2, 3)] == [99, 22, 13]


def test_files_that_do_not_settle_end_a_load(explicit: Product) -> None:
    """A file that somebody goes on writing ends the load at its deadline; then the model can be loaded and unloaded again."""
    stub = Stub(explicit.channel())
    with (explicit.models / "b" / "1" / "model.onnx").open("ab"):
        request = oip.RepositoryModelLoadRequest(model_name="b")
        with pytest.raises(grpc.RpcError) as error:
            stub.unary(SERVICE + "RepositoryModelLoad", request, oip.RepositoryModelLoadResponse, timeout_s=2)
        assert "still being" in error.value.details() or error.value.code().name == "DEADLINE_EXCEEDED"
    unload(stub, "b")
    load(stub, "b")
    assert factor(stub, "b") == 3


def test_what_was_decided_and_cannot_be_read_stops_the_start(explicit: Product) -> None:
    """A damaged list of loaded models is told, nothing of it is deleted, and the sidecar does not start without it."""
    stub = Stub(explicit.channel())
    load(stub, "b", config="{}", **{"file:1/model.onnx": graphs.scale(5.0)})
    assert explicit.stop() == 0
    decided = explicit.data / "control" / "models.json"
    whole = decided.read_text()
    decided.write_text(whole[:-5])
    with pytest.raises(AssertionError, match="says which models clients loaded and cannot be read"):
        explicit.start()
    decided.write_text(whole)
    explicit.start()
    assert factor(Stub(explicit.channel()), "b") == 5


BAD = [
    ({"config": "{"}, "is no configuration"),
    ({"config": '{"nope": 1}'}, "is no configuration"),
    ({"config": b"{}"}, "parameter 'config' has no effect"),
    ({"file:1/model.onnx": b"x"}, "without the parameter 'config'"),
    ({"config": "{}", "file:../model.onnx": b"x"}, "must be a file of a version"),
    ({"config": "{}", "file:1/../../x": b"x"}, "must be a file of a version"),
    ({"config": "{}", "file:/etc/x": b"x"}, "must be a file of a version"),
    ({"config": "{}", "file:vigil.toml": b"x"}, "and not config.pbtxt or vigil.toml"),
    ({"config": "{}", "file:latest": b"x"}, "must be a file of a version"),
    ({"speed": "9"}, "'speed' has no effect"),
    ({"config": '{"name": "b"}'}, "name is 'b', the folder is 'a'"),
]


def test_parameters_that_say_nothing_good(explicit: Product) -> None:
    """Each is refused by name, and leaves nothing behind."""
    stub = Stub(explicit.channel())
    for parameters, want in BAD:
        code, text = refused(load, stub, "a", **parameters)
        assert code == "INVALID_ARGUMENT" and want in text, (parameters, code, text)
    code, text = refused(load, stub, "../a")
    assert code == "INVALID_ARGUMENT"
    request = oip.RepositoryModelUnloadRequest(model_name="a")
    request.parameters["speed"].bool_param = True
    assert "'speed' is not known" in refused(stub.unary, SERVICE + "RepositoryModelUnload", request, oip.RepositoryModelUnloadResponse)[1]
    assert factor(stub, "a") == 2
    control = explicit.data / "control"
    assert not control.exists() or [p.name for p in control.iterdir() if p.suffix == ".d"] == []


def test_gates_are_the_integrators(explicit: Product) -> None:
    """A client that brings another graph does not bring other limits: the model's vigil.toml counts."""
    (explicit.models / "b" / "vigil.toml").write_text("output_max = 10.0\n")
    stub = Stub(explicit.channel())
    load(stub, "b", config="{}", **{"file:1/model.onnx": graphs.scale(100.0)})
    code, text = refused(factor, stub, "b")
    assert code == "INTERNAL" and "10" in text, text


CLIENT = """
import json, sys
import tritonclient.{form} as triton
from tritonclient.utils import InferenceServerException
c = triton.InferenceServerClient(sys.argv[1])
out = []
def states():
    found = c.get_model_repository_index()
    found = found.models if hasattr(found, "models") else found
    get = lambda m, k: m.get(k, "") if isinstance(m, dict) else getattr(m, k)
    return sorted((get(m, "name"), get(m, "state")) for m in found)
out.append(states())
c.load_model("b"); out.append(c.is_model_ready("b"))
config = json.dumps({{"backend": "onnxruntime", "max_batch_size": 4}})
c.load_model("b", config=config, files={{"file:1/model.onnx": open(sys.argv[2], "rb").read()}})
config = c.get_model_config("b"); config = config if isinstance(config, dict) else {{"max_batch_size": config.config.max_batch_size}}
out.append(config["max_batch_size"])
c.unload_model("b"); out.append(c.is_model_ready("b"))
try:
    c.load_model("nope"); out.append("no error")
except InferenceServerException as e:
    out.append([e.status(), e.message()])
out.append(states())
print(json.dumps(out))
"""


@pytest.mark.parametrize("form", ["grpc", "http"])
def test_tritonclient_loads_and_unloads(explicit: Product, tmp_path: Path, form: str) -> None:
    """Triton's own clients, over gRPC and REST, find what they expect."""
    graph = tmp_path / "nine.onnx"
    graphs.scale(9.0, graph)
    target = f"127.0.0.1:{explicit.ports[form]}"
    done = subprocess.run([sys.executable, "-c", CLIENT.format(form=form), target, str(graph)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, ready, size, gone, error, last = json.loads(done.stdout)
    assert first == [["a", "READY"], ["b", ""]] and ready and size == 4 and not gone
    status = {"grpc": "StatusCode.INVALID_ARGUMENT", "http": "400"}[form]
    assert error == [status, "failed to load 'nope', failed to poll from model repository"]
    assert last == [["a", "READY"], ["b", "UNAVAILABLE"], ["nope", "UNAVAILABLE"]]


def test_rest_bodies(explicit: Product) -> None:
    """Files as base64; bodies that are no JSON, and files that are no base64, are refused by name."""

    def ask(body: bytes, path: str = "load") -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", explicit.ports["http"], timeout=30)
        connection.request("POST", f"/v2/repository/models/b/{path}", body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    files = {"config": "{}", "file:1/model.onnx": base64.b64encode(graphs.scale(6.0)).decode()}
    assert ask(json.dumps({"parameters": files}).encode()) == (200, {})
    assert factor(Stub(explicit.channel()), "b") == 6
    for body, want in (
        (b"{", "JSON"),
        (b'{"parameters": {"file:1/m": "@"}}', "not base64"),
        (b'{"parameters": {"config": [1]}}', "must be"),
    ):
        status, answer = ask(body)
        assert status == 400 and want in answer["error"], answer
    assert ask(b'{"parameters": {"unload_dependents": true}}', "unload") == (200, {})


def test_loads_that_meet(explicit: Product) -> None:
    """Many clients load, override and unload one model at once: one after the other, each with success."""
    outcomes: list[str] = []

    def worker(number: int) -> None:
        stub = Stub(explicit.channel())
        for turn in range(4):
            try:
                if (number + turn) % 4 == 3:
                    unload(stub, "b")
                else:
                    load(stub, "b", config="{}", **{"file:1/model.onnx": graphs.scale(float(10 + number))})
                outcomes.append("OK")
            except grpc.RpcError as error:
                outcomes.append(error.code().name)

    threads = [threading.Thread(target=worker, args=(n,)) for n in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    stub = Stub(explicit.channel())
    assert outcomes == ["OK"] * 24
    load(stub, "b")
    assert factor(stub, "b") == 3
    assert [p.name for p in (explicit.data / "control").iterdir()] == ["models.json"]


@pytest.mark.parametrize("mode", ["watch", "poll", "none"])
def test_files_decide(tmp_path: Path, mode: str) -> None:
    """In the other modes clients are refused, and files count at once, at the next poll, or when someone asks."""
    with Product(tmp_path, {"models.control": mode, "models.poll_interval_s": 1.0}) as product:
        stub = Stub(product.channel())
        assert (factor(stub, "a"), factor(stub, "b")) == (2, 3)
        place(product, "a", 8.0, version=2)
        if mode == "none":
            time.sleep(3.0)  # longer than a rescan
            assert factor(stub, "a") == 2
            assert product.vigil("models", "reload", "a").returncode == 0
        wait_for(lambda: factor(stub, "a") == 8, 10, "version 2 serves")
        for call in (load, unload):
            code, text = refused(call, stub, "a")
            assert code == "UNAVAILABLE" and text.startswith("explicit model load / unload is not allowed if polling is enabled"), text


def test_vigil_loads_and_unloads(explicit: Product) -> None:
    """The command does the same, with a config.pbtxt."""
    config = explicit.folder / "other.pbtxt"
    config.write_text("max_batch_size: 16\n")
    done = explicit.vigil("models", "load", "b", "--override", str(config), "--json")
    assert done.returncode == 0 and json.loads(done.stdout)[0]["serving_version"] == 1, done.stderr
    assert "max_batch_size: 16\n" in explicit.vigil("models", "config", "b").stdout
    config.write_text("max_batch_size: many\n")
    assert explicit.vigil("models", "load", "b", "--override", str(config), check=False).returncode == 1
    done = explicit.vigil("models", "unload", "b")
    assert (done.returncode, done.stdout) == (0, "b is unloaded\n")
    assert explicit.vigil("models", "show", "b", check=False).returncode != 0
