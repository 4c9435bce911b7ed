"""The vigil command: verbs, JSON, exit codes, one-line errors."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.harness import graphs
from tests.harness.calls import Stub, infer_request
from tests.harness.product import ROOT, VIGIL, Product


def run(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run([*VIGIL, *arguments], capture_output=True, text=True, timeout=60, cwd=cwd, env=os.environ | environment)


def test_models_list(product: Product) -> None:
    """A table for people, the pinned form for programs."""
    listed = json.loads(product.vigil("models", "list", "--json").stdout)
    scale = next(m for m in listed if m["name"] == "scale")
    assert set(scale) == {"name", "serving_version", "versions"}
    assert scale["serving_version"] == 1
    assert set(scale["versions"][0]) == {"version", "digest", "state", "reason", "since"}
    assert scale["versions"][0]["state"] == "serving"
    assert "scale" in product.vigil("models", "list").stdout


def test_models_show(product: Product) -> None:
    """Contract, batching and state of one model; an unknown one is a one-line error."""
    shown = json.loads(product.vigil("models", "show", "scale", "--json").stdout)
    assert shown["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert shown["max_batch_size"] == 32 and shown["providers"] == ["CPUExecutionProvider"] and shown["safety_state"] == "NORMAL"
    assert json.loads(product.vigil("models", "show", "mixing", "--json").stdout)["max_batch_size"] == 0
    done = product.vigil("models", "show", "nope", check=False)
    assert done.returncode == 1 and "Request for unknown model" in done.stderr and len(done.stderr.splitlines()) == 1


def test_infer(product: Product, tmp_path: Path) -> None:
    """Tensors from files, outputs to files."""
    np.save(tmp_path / "x.npy", np.arange(4, dtype=np.float32).reshape(1, 4))
    done = product.vigil("infer", "scale", "--input", f"x={tmp_path / 'x.npy'}", "--output-dir", str(tmp_path / "out"), "--json")
    shown = json.loads(done.stdout)
    assert shown["version"] == "1" and len(shown["digest"]) == 64 and shown["vigil_audit_position"].startswith("sidecar/")
    assert np.load(tmp_path / "out" / "y.npy").tolist() == [[0, 2, 4, 6]]
    for bad, said in ((f"x={tmp_path}/missing.npy", "give a file written by numpy.save"), ("x", "needs NAME=FILE.npy")):
        failed = product.vigil("infer", "scale", "--input", bad, check=False)
        assert failed.returncode == 1 and said in failed.stderr


def test_reload(product: Product) -> None:
    """reload looks again and tells the versions; its record is a control answer."""
    assert "serving" in product.vigil("models", "reload", "scale", "--reason", "test").stdout
    tail = product.vigil("audit", "tail", str(product.data / "audit" / "sidecar"), "-n", "1000").stdout
    assert "control_answer" in tail


def test_safety_status(product: Product) -> None:
    """The state of the whole and each subject."""
    state = json.loads(product.vigil("safety", "status", "--json").stdout)
    assert state["state"] == "NORMAL" and {s["subject"] for s in state["subjects"]} >= {"sidecar", "model/scale"}


def test_audit_verify(product: Product, tmp_path: Path) -> None:
    """6 without a key, 3 with it while the log is being written, 4 for a damaged one with its record, 5 where there is none."""
    import shutil

    assert product.vigil("audit", "verify", check=False).returncode == 6
    keys = [x for log in ("gateway", "sidecar") for x in ("--key", str(product.data / "keys" / f"audit-{log}.pub"))]
    done = product.vigil("audit", "verify", *keys, check=False)
    assert done.returncode in (0, 3) and "verified" in done.stdout and "witnessed elsewhere" in done.stdout
    assert product.vigil("audit", "verify", "--key", str(tmp_path / "no.pub"), check=False).returncode == 2
    copy = tmp_path / "copy"
    shutil.copytree(product.data / "audit" / "sidecar", copy)
    segment = next(copy.glob("segment-*.vlog"))
    data = bytearray(segment.read_bytes())
    data[4096 + 88] ^= 1
    segment.write_bytes(data)
    done = product.vigil("audit", "verify", str(copy), check=False)
    assert done.returncode == 4 and "DAMAGED at record 1" in done.stdout
    go = subprocess.run([str(ROOT / "bin" / "auditverify"), str(copy)], capture_output=True, text=True)
    assert go.returncode == 4 and "record 1" in go.stdout
    (tmp_path / "none").mkdir()
    assert product.vigil("audit", "verify", str(tmp_path / "none"), check=False).returncode == 5
    assert subprocess.run([str(ROOT / "bin" / "auditverify"), str(tmp_path / "none")], capture_output=True).returncode == 5
    assert subprocess.run([str(ROOT / "bin" / "auditverify")], capture_output=True).returncode == 2


def test_audit_tail_shows_no_callers_control_characters(product: Product) -> None:
    """What a caller wrote cannot forge a line or move the cursor."""
    channel = product.channel()
    with pytest.raises(grpc.RpcError):
        Stub(channel).infer(infer_request("evil\n2026-01-01 gateway/777 DIA-1001 answer\x1b[2J", {"x": np.ones((1, 4), np.float32)}))
    shown = product.vigil("audit", "tail", "-n", "3").stdout
    assert "DIA-1001 answer" not in [line.split(" ", 2)[-1] for line in shown.splitlines()] and "\x1b" not in shown
    assert all(line[:2] == "20" and line.split(" ")[1].startswith(("gateway/", "sidecar/")) for line in shown.splitlines()), shown
    assert not any(line.startswith("2026-01-01 gateway/777") for line in shown.splitlines())
    assert product.vigil("audit", "tail", "-n", "0", check=False).returncode == 2
    assert product.vigil("audit", "tail", "/nonexistent", check=False).returncode == 1


def test_rotating_keys_leaves_records(product: Product) -> None:
    """Both logs have the control call with its reason, and go on under the new keys."""
    rows = json.loads(product.vigil("audit", "rotate-key", "--reason", "yearly, by plan", "--json").stdout)
    assert [r["log"] for r in rows] == ["gateway", "sidecar"]
    for row in rows:
        folder = str(product.data / "audit" / row["log"])
        records = [json.loads(x) for x in product.vigil("audit", "tail", folder, "-n", "50", "--json").stdout.splitlines()]
        assert [r for r in records if r["event"] == "DIA-1002" and r["detail"].get("reason") == "yearly, by plan"], row
        assert [r for r in records if r["event"] == "DIA-5006"]
        assert row["verifier_key"] in (product.data / "keys" / f"audit-{row['log']}.pub").read_text().split()


def test_a_data_folder_with_any_name_keeps_its_log(tmp_path: Path) -> None:
    """Brackets and stars in the path are no pattern: the log goes on over a restart."""
    product = Product(tmp_path / "a[1]*?")
    graphs.scale(2.0, product.models / "scale" / "1" / "model.onnx")
    for _ in range(2):
        with product:
            pass
    reports = product.auditverify()
    assert [r["boots"] for r in reports] == [2, 2] and [r["exit_code"] for r in reports] == [0, 0], reports


def test_config_show(tmp_path: Path) -> None:
    """Every key with its value and origin; an impossible value is exit code 2 with the key."""
    (tmp_path / "vigil.toml").write_text("[listen]\ngrpc_port = 9999\n")
    rows = {r["key"]: r for r in json.loads(run("config", "show", "--json", cwd=tmp_path, VIGIL_LISTEN_HTTP_PORT="7").stdout)}
    assert rows["listen.grpc_port"] == {"key": "listen.grpc_port", "value": 9999, "origin": "vigil.toml"}
    assert rows["listen.http_port"]["origin"] == "VIGIL_LISTEN_HTTP_PORT"
    assert rows["audit.durability"]["origin"] == "default"
    done = run("config", "show", "--set", "audit.durability=never", cwd=tmp_path)
    assert done.returncode == 2 and "process, interval, power" in done.stderr


def test_doctor(tmp_path: Path) -> None:
    """doctor checks this machine and says what to do about what is missing."""
    done = run("doctor", "--json", "--models", str(tmp_path / "none"), "--data-dir", str(tmp_path / "var"))
    checks = {c["check"]: c for c in json.loads(done.stdout)}
    assert done.returncode == 1
    assert "make setup" in checks[f"models in {tmp_path / 'none'}"]["problem"]
    assert checks["Python 3.11 or newer"]["ok"] and checks["vigil-gateway"]["ok"]


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("models",), ("models", "activate", "m", "x"), ("up", "--nonsense")])
def test_usage(arguments: tuple[str, ...]) -> None:
    """Wrong usage is exit code 2 with help on stderr."""
    done = run(*arguments)
    assert done.returncode == 2 and "usage" in done.stderr


def test_no_gateway() -> None:
    """Without a gateway the error says how to start one, in one line."""
    done = run("models", "list", "--target", "127.0.0.1:1")
    assert done.returncode == 1 and "vigil up" in done.stderr and len(done.stderr.splitlines()) == 1


def test_readme_client(product: Product, tmp_path: Path) -> None:
    """The client in the README runs as it stands, but for the model and port of this test."""
    import sys

    text = (ROOT / "README.md").read_text()
    code = text[text.index("```python") + 9 :]
    code = code[: code.index("```")]
    assert len([line for line in code.splitlines() if line.strip()]) <= 22
    code = (
        code.replace("127.0.0.1:8001", f"127.0.0.1:{product.ports['grpc']}")
        .replace("text-detection", "scale")
        .replace("(1, 3, 64, 64)", "(1, 4)")
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "sidecar/" in done.stdout


BAD_ARGUMENTS = (
    ("models", "activate", "scale", "-1"), ("models", "activate", "scale", str(1 << 64)), ("models", "show", "a\udcff"),
    ("infer", "scale", "--input", "x=ZIP"), ("infer", "scale", "--input", "x=EMPTY"), ("infer", "scale", "--input", "x=/dev/null"),
    ("infer", "scale", "--input", "x=GOOD", "--output-dir", "/proc/x"), ("infer", "scale", "--input", "x=GOOD", "--output-dir", "EMPTY"),
)  # fmt: skip


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS, ids=lambda a: " ".join(a).encode("ascii", "replace").decode())
def test_bad_arguments_are_told_in_a_line(product: Product, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Whatever is given: one line that names it, never a traceback."""
    files = {"ZIP": tmp_path / "x.npz", "EMPTY": tmp_path / "empty.npy", "GOOD": tmp_path / "x.npy"}
    np.savez(files["ZIP"], a=np.zeros(4))
    files["EMPTY"].write_bytes(b"")
    np.save(files["GOOD"], np.zeros((1, 4), np.float32))
    for name, path in files.items():
        arguments = tuple(a.replace(name, str(path)) for a in arguments)
    done = product.vigil(*arguments, check=False)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("vigil"), done.stderr


def test_broken_run_files_are_named(tmp_path: Path) -> None:
    """A broken note of a gateway's port is told, not guessed around."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "gateway.json").write_text("{")
    done = run("models", "list", "--data-dir", str(tmp_path))
    assert done.returncode == 1 and "cannot be understood" in done.stderr and len(done.stderr.splitlines()) == 1


def test_doctor_knows_a_file_from_a_folder(tmp_path: Path) -> None:
    """A data folder that is a file is a problem."""
    (tmp_path / "data").write_text("")
    done = run("doctor", "--data-dir", str(tmp_path / "data"), "--models", str(tmp_path))
    assert done.returncode == 1 and "is not a folder" in done.stdout
