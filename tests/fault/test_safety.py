"""Faults of models and processes as the safety table answers them: degraded and told, recovered by proof, stopped until a reset."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as oip
from vigil.safety.v1 import safety_pb2 as safety

from tests.harness import graphs
from tests.harness.calls import INFER, Stub, infer_request, output
from tests.harness.product import Product, wait_for
from vigil_sidecar.audit.reader import read_records

X = np.array([[1, 2, 3, 4]], np.float32)
QUICK = {"safety.backoff_ms": 0, "safety.probe_interval_s": 0}


def states(stub: Stub) -> dict[str, str]:
    return {s.subject: safety.State.Name(s.state)[6:] for s in stub.state().subjects}


def history(product: Product, subject: str) -> list[tuple[str, str, str]]:
    lines = product.vigil("safety", "history", "--subject", subject, "--json").stdout.splitlines()
    return [(t["from"], t["event"], t["to"]) for t in map(json.loads, lines)]


def refused(stub: Stub, model: str, inputs: dict[str, Any]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as error:
        stub.infer(infer_request(model, inputs))
    return error.value


def reset(product: Product, *more: str, check: bool = True) -> Any:
    return product.vigil("safety", "reset", "--reason", "the cable was mended", "--by", "A. Tester", *more, check=check)


RECOVERED = [("DEGRADED", "ready", "RECOVERING"), ("RECOVERING", "probe_good", "NORMAL")]


def test_implausible_output_degrades_until_golden_runs_prove_it(tmp_path: Path) -> None:
    """The answer does not leave, the next ones say DEGRADED; after the back-off three golden runs bring Normal. NaN begets NaN."""
    product = Product(tmp_path, {"safety.backoff_ms": 700})
    graphs.with_nan(product.models / "log" / "1" / "model.onnx")
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        stub = Stub(product.channel())
        assert "not finite" in refused(stub, "log", {"x": X * np.nan}).details()
        assert states(stub)["model/log"] == "NORMAL"
        error = refused(stub, "log", {"x": -X})
        assert error.code() == grpc.StatusCode.INTERNAL and dict(error.trailing_metadata())["vigil-safety-state"] == "DEGRADED"
        degraded_s = time.monotonic()
        assert stub.unary(INFER, infer_request("log", {"x": X}), oip.ModelInferResponse)[1]["vigil-safety-state"] == "DEGRADED"
        assert stub.unary(INFER, infer_request("m", {"x": X}), oip.ModelInferResponse)[1]["vigil-safety-state"] == "NORMAL"
        expected = [("NORMAL", "implausible", "DEGRADED"), *RECOVERED]
        wait_for(lambda: history(product, "model/log")[1:] == expected, what="normal again")
        assert time.monotonic() - degraded_s > 0.3
    assert product.replayed() >= 8


def test_failing_calls_degrade(tmp_path: Path) -> None:
    """safety.errors_max failed runs within the window; one less does nothing."""
    product = Product(tmp_path, QUICK | {"safety.errors_max": 4})
    graphs.choosing(product.models / "c" / "1" / "model.onnx")
    with product:
        stub = Stub(product.channel())
        for _ in range(3):
            assert refused(stub, "c", {"i": np.array([9])}).code() == grpc.StatusCode.INTERNAL
        stub.infer(infer_request("c", {"i": np.array([1])}))
        assert states(stub)["model/c"] == "NORMAL"
        refused(stub, "c", {"i": np.array([9])})
        wait_for(lambda: history(product, "model/c")[1:] == [("NORMAL", "call_error", "DEGRADED"), *RECOVERED], what="degraded and back")


def test_slow_runs_degrade_and_slow_probes_cannot_block(tmp_path: Path) -> None:
    """Three runs beyond their limit degrade; golden runs that outlast their lease end it, each round later, and too many stop the model."""
    settings = {"safety.run_ms_max": 1, "safety.lease_ms": 10, "safety.rounds_max": 2, "safety.backoff_ms": 1, "safety.probe_interval_s": 0}
    product = Product(tmp_path, settings)
    graphs.gemm(24, 1024, product.models / "slow" / "1" / "model.onnx")
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        stub = Stub(product.channel())
        x = {"x": np.ones((1, 1024), np.float32)}
        for _ in range(3):
            stub.infer(infer_request("slow", x))
        wait_for(lambda: states(stub)["model/slow"] == "SAFE_STOP", what="stopped safely")
        changes = history(product, "model/slow")[1:]
        assert [to for _, _, to in changes] == ["DEGRADED", "RECOVERING", "DEGRADED", "RECOVERING", "SAFE_STOP"]
        assert {changes[2][1], changes[4][1]} <= {"lease_expired", "fault"}  # supervision may be the first to see the slow golden run
        error = refused(stub, "slow", x)
        assert (
            error.code() == grpc.StatusCode.UNAVAILABLE and "stopped safely" in error.details() and "vigil safety reset" in error.details()
        )
        assert np.array_equal(output(stub.infer(infer_request("m", {"x": X}))), X * 2)


def test_a_models_safe_stop_outlives_a_restart(tmp_path: Path) -> None:
    """Only a reset with a reason and a name leaves it, and both stand in the log."""
    product = Product(tmp_path, QUICK | {"safety.rounds_max": 1})
    graphs.with_nan(product.models / "log" / "1" / "model.onnx")
    with product:
        stub = Stub(product.channel())
        refused(stub, "log", {"x": -X})
        wait_for(lambda: history(product, "model/log")[2:] == RECOVERED, what="normal again")
        refused(stub, "log", {"x": -X})
        wait_for(lambda: states(stub)["model/log"] == "SAFE_STOP", what="stopped safely")
        assert product.vigil("safety", "status", check=False).stdout.startswith("whole: SAFE_STOP")
    with product:
        stub = Stub(product.channel())
        wait_for(lambda: states(stub).get("model/log") == "SAFE_STOP", what="still stopped")
        assert refused(stub, "log", {"x": X}).code() == grpc.StatusCode.UNAVAILABLE
        done = reset(product, "--subject", "model/other", check=False)
        assert done.returncode == 1 and "FAILED_PRECONDITION" in done.stderr
        assert "reset: model/log" in reset(product).stdout
        wait_for(lambda: states(stub)["model/log"] == "NORMAL", what="normal after the reset")
        stub.infer(infer_request("log", {"x": X}))
        assert "nothing is stopped safely" in reset(product, check=False).stderr
    [shown] = [r for r in (json.loads(x) for x in product.vigil("audit", "tail", str(product.data / "audit" / "sidecar"), "-n", "1000",
               "--json").stdout.splitlines()) if r["detail"].get("event") == "reset"]  # fmt: skip
    assert (shown["detail"]["by"], shown["detail"]["reason"]) == ("A. Tester", "the cable was mended")
    assert json.loads((product.data / "safety" / "sidecar.json").read_text())["stops"] == {}


def test_too_many_restarts_stop_the_sidecar_safely(tmp_path: Path) -> None:
    """The gateway stays and refuses with the reason, over a restart of everything, until a person resets it."""
    product = Product(tmp_path, {"supervisor.restart_count_max": 2, "supervisor.backoff_ms": 10})
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        stub = Stub(product.channel())
        gateway = product.pids()["gateway_pid"]
        for i in range(3):
            before = product.pids()["sidecar_pid"]
            os.kill(before, signal.SIGKILL)
            wait_for(lambda b=before: product.pids()["sidecar_pid"] != b, 60, f"restart {i + 1}")
            wait_for(lambda: states(stub)["sidecar"] not in ("DEGRADED", "STARTING"), 30, "it is back")
        assert states(stub)["sidecar"] == "SAFE_STOP" and product.pids()["gateway_pid"] == gateway
        assert "started again too often" in refused(stub, "m", {"x": X}).details()
        assert history(product, "sidecar")[-1][1:] == ("restarted", "SAFE_STOP")
    with product:
        stub = Stub(product.channel())
        assert states(stub)["sidecar"] == "SAFE_STOP"
        assert refused(stub, "m", {"x": X}).code() == grpc.StatusCode.UNAVAILABLE
        found = json.loads(reset(product, "--json").stdout)
        assert found["reset"] == ["sidecar"] and found["audit_position"].startswith("gateway/")
        wait_for(lambda: states(stub)["sidecar"] == "NORMAL", 20, "normal after the reset")
        assert np.array_equal(output(stub.infer(infer_request("m", {"x": X}))), X * 2)


def test_a_hung_sidecar_is_killed_and_replaced(tmp_path: Path) -> None:
    """Silence degrades; only supervisor.restart_after_ms later is the process killed, and its supervisor starts another."""
    product = Product(tmp_path, {"supervisor.restart_after_ms": 1500, "supervisor.backoff_ms": 0})
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        stub = Stub(product.channel())
        before = product.pids()["sidecar_pid"]
        os.kill(before, signal.SIGSTOP)
        wait_for(lambda: states(stub)["sidecar"] == "DEGRADED", what="degraded")
        degraded_s = time.monotonic()
        assert Path(f"/proc/{before}").exists()
        wait_for(lambda: product.pids()["sidecar_pid"] != before, 60, "another one")
        assert time.monotonic() - degraded_s > 0.7
        wait_for(lambda: states(stub)["sidecar"] == "NORMAL", 30, "normal again")
        assert np.array_equal(output(stub.infer(infer_request("m", {"x": X}))), X * 2)
    [killed] = [r for r in read_records(product.data / "audit" / "gateway") if r.header.event_id == 4007]
    assert str(before).encode() in killed.payload


def test_a_stop_that_cannot_be_kept_is_told_and_tried_again(tmp_path: Path) -> None:
    """And a stopped model is not forgotten with its folder; once it is reset, there is nothing left to judge."""
    product = Product(tmp_path, QUICK | {"safety.rounds_max": 0})
    graphs.with_nan(product.models / "log" / "1" / "model.onnx")
    kept, in_the_way = product.data / "safety" / "sidecar.json", product.data / "safety" / "sidecar.partial"
    in_the_way.mkdir(parents=True)
    with product:
        stub = Stub(product.channel())
        refused(stub, "log", {"x": -X})
        wait_for(lambda: states(stub)["model/log"] == "SAFE_STOP", what="stopped safely")
        assert not kept.exists()
        in_the_way.rmdir()
        wait_for(kept.exists, what="kept after all")
        shutil.rmtree(product.models / "log")
        time.sleep(1.5)
        assert states(stub)["model/log"] == "SAFE_STOP"
    [failed] = [r for r in read_records(product.data / "audit" / "sidecar") if r.header.event_id == 4009]
    assert b"latch" in failed.payload and b"model/log" in failed.payload
    with product:
        stub = Stub(product.channel())
        wait_for(lambda: states(stub).get("model/log") == "SAFE_STOP", what="still stopped")
        assert "reset: model/log" in reset(product).stdout
        wait_for(lambda: "model/log" not in states(stub), what="nothing is left to judge")


def test_pauses_of_the_gateway_or_of_all_are_no_fault_of_the_sidecar(tmp_path: Path) -> None:
    """Stopped for longer than all limits together, as a virtual machine is: nobody is killed, and calls go on afterwards."""
    product = Product(tmp_path, {"supervisor.restart_after_ms": 500, "supervisor.gateway_timeout_s": 60})
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        stub, pids = Stub(product.channel()), product.pids()
        for names in (("gateway_pid",), ("gateway_pid", "sidecar_pid", "supervisor_pid")):
            for name in names:
                os.kill(pids[name], signal.SIGSTOP)
            time.sleep(2.5)
            for name in reversed(names):
                os.kill(pids[name], signal.SIGCONT)
            wait_for(lambda: states(stub)["sidecar"] == "NORMAL", 20, "normal again")
            time.sleep(1.0)
        for _ in range(10):  # a tool that looks into the process
            os.kill(pids["sidecar_pid"], signal.SIGSTOP)
            time.sleep(0.02)
            os.kill(pids["sidecar_pid"], signal.SIGCONT)
            time.sleep(0.05)
            assert np.array_equal(output(stub.infer(infer_request("m", {"x": X}))), X * 2)
        assert product.pids() == pids
    assert not [r for r in read_records(product.data / "audit" / "gateway") if r.header.event_id == 4007]


def test_a_look_that_takes_long_is_no_fault(tmp_path: Path) -> None:
    """A file of 3 GiB to be copied and hashed; the sidecar is not taken for dead meanwhile."""
    product = Product(tmp_path, {"supervisor.restart_after_ms": 300})
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        stub, pids = Stub(product.channel()), product.pids()
        big = product.models / "big" / "1" / "model.onnx"
        big.parent.mkdir(parents=True)
        with big.open("wb") as file:
            file.truncate(3 << 30)
        wait_for(lambda: states(stub).get("model/big") == "DEGRADED", 100, "looked at, and refused")
        assert states(stub)["sidecar"] == "NORMAL" and product.pids() == pids


@pytest.mark.parametrize("name", ["gateway", "sidecar"])
def test_a_kept_stop_that_cannot_be_read_stops(tmp_path: Path, name: str) -> None:
    """What is unknown is not taken for safe; a reset heals the file."""
    product = Product(tmp_path)
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    (product.data / "safety").mkdir(parents=True)
    (product.data / "safety" / f"{name}.json").write_text('{"version": 1, "stops"')
    with product:
        stub = Stub(product.channel())
        wait_for(lambda: "SAFE_STOP" in states(stub).values(), what="stopped safely")
        error = refused(stub, "m", {"x": X})
        assert error.code() == grpc.StatusCode.UNAVAILABLE and "cannot be read" in error.details()
        reset(product)
        wait_for(lambda: set(states(stub).values()) == {"NORMAL"}, what="normal")
        wait_for(lambda: np.array_equal(output(stub.infer(infer_request("m", {"x": X}))), X * 2), what="served again")
    with product:
        assert "SAFE_STOP" not in states(Stub(product.channel())).values()


def test_reset_needs_a_reason_a_name_and_a_trusted_listener(tmp_path: Path) -> None:
    product = Product(tmp_path)
    with product:
        stub = Stub(product.channel())
        for request, field in ((safety.ResetRequest(by="x"), "reason"), (safety.ResetRequest(reason="x"), "by")):
            with pytest.raises(grpc.RpcError) as error:
                stub.unary("/vigil.safety.v1.SafetyService/Reset", request, safety.ResetResponse)
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT and field in error.value.details()
        assert product.vigil("safety", "reset", check=False).returncode == 2


def spin(stub: Stub, n: int, timeout_s: float = 60.0) -> Any:
    return stub.infer(infer_request("spin", {"n": np.array([n])}), timeout_s=timeout_s)


def test_a_run_that_does_not_end_is_noticed_while_it_runs(tmp_path: Path) -> None:
    """Its model is Degraded while native code still runs; when it ends in time, golden runs bring Normal without a restart."""
    product = Product(tmp_path, QUICK | {"safety.run_ms_max": 300, "supervisor.restart_after_ms": 60000})
    graphs.spinning(product.models / "spin" / "1" / "model.onnx")
    with product:
        stub, pid = Stub(product.channel()), product.pids()["sidecar_pid"]
        start = time.monotonic()
        spin(stub, 20)
        each_s = (time.monotonic() - start) / 20
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(spin, stub, int(4 / each_s))
            wait_for(lambda: states(stub)["model/spin"] == "DEGRADED", 20, "degraded")
            assert not call.done()
            time.sleep(0.3)
            assert states(stub)["model/spin"] == "DEGRADED" and states(stub)["sidecar"] == "NORMAL"
            call.result(60)
        wait_for(lambda: states(stub)["model/spin"] == "NORMAL", 20, "normal again")
        assert [t[1] for t in history(product, "model/spin")[1:]] == ["fault", "ready", "probe_good"]
        assert product.pids()["sidecar_pid"] == pid
    [expired] = [r for r in read_records(product.data / "audit" / "sidecar") if r.header.event_id == 4008]
    assert b"run/spin" in expired.payload and b"end has not come" in expired.payload


def test_a_run_that_hangs_for_good_has_the_sidecar_replaced(tmp_path: Path) -> None:
    """Only the end of the process ends native code: supervision stops, the gateway kills, callers hear of it at once, service returns."""
    product = Product(tmp_path, QUICK | {"safety.run_ms_max": 300, "supervisor.restart_after_ms": 700, "supervisor.backoff_ms": 0})
    graphs.spinning(product.models / "spin" / "1" / "model.onnx")
    with product:
        stub, pid = Stub(product.channel()), product.pids()["sidecar_pid"]
        with pytest.raises(grpc.RpcError) as error:
            spin(stub, 1 << 40)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        wait_for(lambda: product.pids()["sidecar_pid"] != pid, 60, "another sidecar")
        wait_for(lambda: set(states(stub).values()) == {"NORMAL"} and "model/spin" in states(stub), 30, "normal again")
        spin(stub, 1)
    [killed] = [r for r in read_records(product.data / "audit" / "gateway") if r.header.event_id == 4007]
    assert b"its supervision stopped: run/spin" in killed.payload


def test_a_watcher_goes_on_where_it_was(tmp_path: Path) -> None:
    """What changed while nobody watched comes first; a token of another run, or none at all, is refused in words."""
    product = Product(tmp_path, QUICK)
    graphs.with_nan(product.models / "log" / "1" / "model.onnx")

    def watch(resume: str, count: int) -> list[safety.WatchResponse]:
        request = safety.WatchRequest(subjects=["model/log"], resume=resume)
        stream = product.channel().unary_stream(
            "/vigil.safety.v1.SafetyService/Watch", request_serializer=safety.WatchRequest.SerializeToString,
            response_deserializer=safety.WatchResponse.FromString,
        )(request, timeout=20)  # fmt: skip
        found = [next(stream) for _ in range(count)]
        stream.cancel()
        return found

    with product:
        stub = Stub(product.channel())
        lines = [json.loads(x) for x in product.vigil("safety", "history", "--subject", "model/log", "--json").stdout.splitlines()]
        seen = lines[-1]["resume"]
        refused(stub, "log", {"x": -X})
        wait_for(lambda: history(product, "model/log")[2:] == RECOVERED, what="degraded and back")
        first, *missed = watch(seen, 4)
        assert not first.HasField("transition")
        assert [m.transition.event for m in missed] == ["implausible", "ready", "probe_good"]
        assert [m.transition.event for m in watch(missed[0].transition.resume, 3)[1:]] == ["ready", "probe_good"]
        for token in ("x", "other/1", seen.split("/")[0] + "/99999", seen.split("/")[0] + "/-1"):
            with pytest.raises(grpc.RpcError) as error:
                watch(token, 1)
            assert error.value.code() == grpc.StatusCode.OUT_OF_RANGE and "watch anew" in error.value.details()


def test_counts_outlive_restarts_of_everything(tmp_path: Path) -> None:
    """Degradations of a model, restarts of the sidecar: told in each state, over a kill and over an orderly restart of the whole."""
    product = Product(tmp_path, QUICK | {"supervisor.backoff_ms": 0})
    graphs.with_nan(product.models / "log" / "1" / "model.onnx")

    def counted(stub: Stub, subject: str) -> tuple[int, int]:
        return next(((s.degraded, s.restarted) for s in stub.state().subjects if s.subject == subject), (0, 0))

    with product:
        stub = Stub(product.channel())
        for n in (1, 2):
            refused(stub, "log", {"x": -X})
            wait_for(lambda n=n: counted(stub, "model/log")[0] == n and states(stub)["model/log"] == "NORMAL", what=f"fallen {n} times")
        os.kill(product.pids()["sidecar_pid"], signal.SIGKILL)
        wait_for(lambda: counted(stub, "sidecar")[1] == 1 and counted(stub, "model/log")[0] == 2, what="counted after a kill")
        before = counted(stub, "sidecar")
    with product:
        stub = Stub(product.channel())
        wait_for(lambda: counted(stub, "model/log")[0] == 2, what="the model's count")
        assert counted(stub, "sidecar") == before
