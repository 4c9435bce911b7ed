"""Hot swap by files under load, and versions that must be refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.harness import graphs
from tests.harness.calls import Stub, infer_request, output
from tests.harness.load import Load
from tests.harness.product import Product, wait_for

X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """A product of its own: these tests change its models."""
    running = Product(tmp_path_factory.mktemp("swap"))
    graphs.scale(2.0, running.models / "m" / "1" / "model.onnx")
    graphs.scale(5.0, running.models / "quiet" / "1" / "model.onnx")
    with running:
        yield running


@pytest.fixture(scope="module")
def stub(product: Product) -> Stub:
    return Stub(product.channel())


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


def test_every_way_of_swapping_under_load(product: Product, stub: Stub) -> None:
    """Copied, moved in, flipped, replaced, written over, quick succession: no failed call, and always right numbers."""
    root = product.models / "m"
    data = {f: graphs.scale(f) for f in (2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0, 10.0)}
    expected = {hashlib.sha256(d).hexdigest(): X * np.float32(f) for f, d in data.items()}
    with Load(f"127.0.0.1:{product.ports['grpc']}", "m", 32, {"x": X}, expected) as load:
        (root / "2").mkdir()
        with (root / "2" / "model.onnx").open("wb") as file:
            for byte in data[3.0]:
                file.write(bytes([byte]))
                file.flush()
        serves(stub, 3)
        staging = product.folder / "staging"
        staging.mkdir()
        (staging / "model.onnx").write_bytes(data[4.0])
        staging.rename(root / "3")
        serves(stub, 4)
        os.symlink("2", root / "latest")
        serves(stub, 3)
        os.symlink("1", root / ".n")
        (root / ".n").rename(root / "latest")
        serves(stub, 2)
        (root / "latest").unlink()
        serves(stub, 4)
        (root / "3" / "new").write_bytes(data[6.0])
        (root / "3" / "new").rename(root / "3" / "model.onnx")
        serves(stub, 6)
        (root / "3" / "model.onnx").write_bytes(data[7.0])
        serves(stub, 7)
        for number, f in ((4, 8.0), (5, 9.0)):
            (root / str(number)).mkdir()
            (root / str(number) / "model.onnx").write_bytes(data[f])
        serves(stub, 9)
        product.vigil("models", "activate", "m", "4", "--reason", "test")
        assert factor(stub) == 8
        assert os.readlink(root / "latest") == "4"
        (root / "latest").unlink()
        serves(stub, 9)
        shutil.rmtree(root / "5")
        time.sleep(0.5)
        assert factor(stub) == 9
        (root / "6").mkdir()
        (root / "6" / "model.onnx").write_bytes(data[10.0])
        serves(stub, 10)
    assert load.result["error_count"] == 0, load.result["errors"][:3]
    assert load.result["wrong_count"] == 0, load.result["wrong"]
    assert len(load.result["answers"]) >= 8
    log = product.data / "audit" / "sidecar"
    tail = [json.loads(line) for line in product.vigil("audit", "tail", str(log), "-n", "100000", "--json").stdout.splitlines()]
    names = [t["name"] for t in tail]
    assert "serving_files_deleted" in names and names.count("version_switched") >= 10


def test_bad_versions_change_nothing(product: Product, stub: Stub) -> None:
    """Truncated, garbage, other contract, NaN-free but unreadable: refused with the reason, remembered, seen everywhere."""
    root = product.models / "quiet"
    good = graphs.scale(6.0)
    bad = {10: good[: len(good) // 2], 11: os.urandom(500), 12: graphs.other_contract()}
    for number, data in bad.items():
        (root / str(number)).mkdir()
        (root / str(number) / "model.onnx").write_bytes(data)
    assert "cannot load" in refused(stub, 10, "quiet")
    assert "cannot load" in refused(stub, 11, "quiet")
    assert "contract differs from version 1: input x:FP32[-1, 5]" in refused(stub, 12, "quiet")
    assert factor(stub, "quiet") == 5
    listed = {v["version"]: v for v in product.listed("quiet")["versions"]}
    assert listed[12]["state"] == "refused" and len(listed[12]["digest"]) == 64
    tail = product.vigil("audit", "tail", str(product.data / "audit" / "sidecar"), "-n", "1000", "--json").stdout
    recorded = [json.loads(line) for line in tail.splitlines()]
    told = [r for r in recorded if r["name"] == "version_refused" and r["detail"].get("model") == "quiet"]
    assert {r["detail"]["version"] for r in told} == {10, 11, 12}
    assert len(told) == 3, "a refused file is not tried again until its bytes change"
    (root / "11" / "model.onnx").write_bytes(graphs.scale(11.0))
    serves(stub, 11, "quiet")


def test_activating_a_bad_version_is_refused(product: Product, stub: Stub) -> None:
    """activate of a bad or missing version fails with the reason, and the old one keeps serving."""
    before = factor(stub, "quiet")
    done = product.vigil("models", "activate", "quiet", "12", check=False)
    assert done.returncode == 1 and "contract differs" in done.stderr and len(done.stderr.splitlines()) == 1
    done = product.vigil("models", "activate", "quiet", "99", check=False)
    assert done.returncode == 1 and "has no version 99" in done.stderr
    assert factor(stub, "quiet") == before
    (product.models / "quiet" / "latest").unlink(missing_ok=True)


def test_file_being_written_is_not_loaded(product: Product, stub: Stub) -> None:
    """A half-written file that pauses is left alone; finished, it serves."""
    data = graphs.scale(21.0)
    folder = product.models / "quiet" / "21"
    folder.mkdir()
    with (folder / "model.onnx").open("wb") as file:
        file.write(data[:40])
        file.flush()
        time.sleep(1.5)
        assert versions(stub, "quiet")[21][0] == "loading"
        file.write(data[40:])
    serves(stub, 21, "quiet")


def test_explicit_version_is_honoured_while_loaded(product: Product, stub: Stub) -> None:
    """version_policy keeps versions loaded; a named one answers, one that is not loaded is NOT_FOUND."""
    root = product.models / "kept"
    for number in (1, 2, 3):
        graphs.scale(float(number), root / str(number) / "model.onnx")
    (root / "config.pbtxt").write_text("max_batch_size: 8\nversion_policy { latest { num_versions: 2 } }\n")
    wait_for(lambda: "kept" in stub.models() and versions(stub, "kept").get(2, ("",))[0] == "standby", 20, "2 stands by")
    assert [factor(stub, "kept", v) for v in ("", "3", "2")] == [3, 3, 2]
    with pytest.raises(grpc.RpcError, match="version 1 is not at ready state"):
        factor(stub, "kept", "1")


def test_config_that_cannot_be_is_named(product: Product, stub: Stub) -> None:
    """Unknown and unsupported fields of config.pbtxt and vigil.toml refuse the version by name."""
    for name, file, text, said in (
        ("c1", "config.pbtxt", "max_batch: 4", "max_batch"),
        ("c2", "config.pbtxt", "sequence_batching { }", "'sequence_batching' is not supported"),
        ("c3", "vigil.toml", "speed = 1", "unknown key 'speed'"),
        ("c4", "vigil.toml", '[pipeline]\nkind = "magic"', "unknown pipeline 'magic'"),
        ("c5", "config.pbtxt", "max_batch_size: -3", "allowed is 0..1024"),
        ("c6", "vigil.toml", 'providers = [["cpu"]]', "unknown provider"),
        ("c7", "vigil.toml", "intra_op_threads = 99999999999", "allowed is 0..1024"),
        ("c8", "vigil.toml", "a = " + "[" * 5000, "vigil.toml"),
        ("c9", "vigil.toml", "[gates]\nspeed = 1", "unknown key 'gates.speed'"),
        ("c10", "vigil.toml", "[gates]\nbatch_difference_max = -1", "gates.batch_difference_max = -1: allowed is 0..1"),
        ("c11", "vigil.toml", "[gates]\nrun_ms_max = true", "wrong type"),
        ("c12", "vigil.toml", "[gates]\nrun_ms_max = 0.0001", "its largest batch takes"),
        ("c13", "vigil.toml", "[gates]\nwarmup_budget_s = 0", "not warm within 0"),
        ("c14", "config.pbtxt", "default_model_filename: 'net.onnx'", "only model.onnx is served"),
        ("c15", "config.pbtxt", "input { name: 'x' reshape { shape: [4] } }", "'input.reshape' is not supported"),
        ("c16", "config.pbtxt", "instance_group { kind: KIND_CPU gpus: [0] }", "'instance_group.gpus' is not supported"),
        ("c17", "config.pbtxt", "instance_group { count: 3 }", "instance_group.count is 3"),
        ("c18", "config.pbtxt", "max_batch_size: 4 input { name: 'x' data_type: TYPE_INT8 dims: [4] }", "the graph says FP32 [4]"),
        ("c19", "config.pbtxt", "max_batch_size: 4 input { name: 'x' dims: [5] }", "the graph says FP32 [4]"),
        ("c20", "config.pbtxt", "output { name: 'z' }", "the graph has no tensor 'z'"),
        ("c21", "config.pbtxt", "optimization { execution_accelerators { gpu_execution_accelerator { name: 'tensort' } } }", "tensort"),
        ("c22", "vigil.toml", '[pipeline]\nkind = "text-detection"\ntreshold = 0.9', "unknown key 'treshold'"),
        ("c23", "vigil.toml", '[pipeline]\nkind = "face-detection"\nthreshold = 3', "allowed is 0..1"),
        ("c24", "vigil.toml", "output_min = 5\noutput_max = 1", "no value is allowed"),
        ("c25", "vigil.toml", "output_max = nan", "no value is allowed"),
        ("c26", "vigil.toml", "intra_op_threads = true", "wrong type"),
        ("c27", "config.pbtxt", "max_batch_size: 0", ""),
    ):
        (product.models / name).mkdir()
        (product.models / name / file).write_text(text)
        graphs.scale(1.0, product.models / name / "1" / "model.onnx")
        wait_for(lambda n=name: n in stub.models(), 10, name)
        if not said:
            wait_for(lambda n=name: stub.models()[n].serving_version == 1, 10, name)
            continue
        assert said in refused(stub, 1, name)
        with pytest.raises(grpc.RpcError, match="has no available versions"):
            factor(stub, name)


def test_contract_change_is_a_gate_of_the_model(product: Product, stub: Stub) -> None:
    """A version with another contract is refused, unless the model's own gates allow it."""
    for name, allowed in (("strict", "false"), ("loose", "true")):
        (product.models / name).mkdir()
        (product.models / name / "vigil.toml").write_text(f"[gates]\nallow_contract_change = {allowed}\nrun_ms_max = 60000\n")
        graphs.scale(1.0, product.models / name / "1" / "model.onnx")
        wait_for(lambda n=name: n in stub.models() and stub.models()[n].serving_version == 1, 10, name)
        graphs.other_contract(product.models / name / "2" / "model.onnx")
    wait_for(lambda: stub.models()["loose"].serving_version == 2, 10, "the other contract")
    assert "contract differs from version 1" in refused(stub, 2, "strict")


def test_odd_repository_entries(product: Product, stub: Stub) -> None:
    """Odd names, files, dangling and looping links, unreadable files: told, ignored or refused, and nothing else suffers."""
    root = product.models
    (root / "a file").write_text("x")
    (root / "sp ace").mkdir()
    (root / "ünïcode").mkdir()
    os.symlink("/nowhere/at/all", root / "dangling")
    os.symlink("loop", root / "loop")
    odd = root / "odd"
    graphs.scale(4.0, odd / "1" / "model.onnx")
    (odd / "0").mkdir()
    (odd / "01").mkdir()
    (odd / "-1").mkdir()
    (odd / "2").write_text("a file in place of a folder")
    (odd / "3").mkdir()
    (odd / "3" / "model.onnx").mkdir()
    os.symlink("model.onnx", odd / "3" / "x")
    (odd / "4").mkdir()
    os.symlink("model.onnx", odd / "4" / "model.onnx")
    os.symlink("../../m", odd / "latest")
    wait_for(lambda: "odd" in stub.models(), 20, "odd is seen")
    wait_for(lambda: stub.models()["odd"].serving_version == 1, 20, "its good version serves")
    assert factor(stub, "odd") == 4
    assert stub.models()["odd"].safety_state == "DEGRADED"
    assert "latest" in stub.models()["odd"].safety_reason
    (odd / "latest").unlink()
    wait_for(lambda: stub.models()["odd"].safety_state == "NORMAL", 20, "recovers when the link is gone")
    tail = product.vigil("audit", "tail", str(product.data / "audit" / "sidecar"), "-n", "1000", "--json").stdout
    ignored = {json.loads(line)["detail"].get("model") for line in tail.splitlines() if '"repository_entry_ignored"' in line}
    assert {"a file", "sp ace", "ünïcode"} <= ignored
    assert factor(stub, "m") > 0


def test_config_that_is_a_fifo_blocks_nobody(product: Product, stub: Stub) -> None:
    """A pipe in place of a configuration file refuses that model; others go on swapping."""
    (product.models / "piped").mkdir()
    os.mkfifo(product.models / "piped" / "config.pbtxt")
    graphs.scale(1.0, product.models / "piped" / "1" / "model.onnx")
    wait_for(lambda: "piped" in stub.models(), 10, "seen")
    assert "not a regular file" in refused(stub, 1, "piped")
    graphs.scale(77.0, product.models / "beside" / "1" / "model.onnx")
    wait_for(lambda: "beside" in stub.models() and stub.models()["beside"].serving_version == 1, 10, "another model is loaded")
    assert factor(stub, "beside") == 77


def test_writers_of_model_files_do_not_kill(product: Product, stub: Stub) -> None:
    """Opening model files for writing while they are staged leaves the sidecar alive (a lease is broken then)."""
    before = product.pids()["sidecar_pid"]
    folders = [product.models / f"leased{i}" / "1" for i in range(10)]
    for folder in folders:
        graphs.scale(1.0, folder / "model.onnx")
    end = time.monotonic() + 4
    while time.monotonic() < end:
        for folder in folders:
            os.close(os.open(folder / "model.onnx", os.O_RDWR))
        os.utime(folders[0] / "model.onnx")
    assert product.pids()["sidecar_pid"] == before and factor(stub, "m") > 0


def test_hidden_and_vanished_folders(product: Product, stub: Stub) -> None:
    """Folders with a leading dot or a bad name never serve, whatever is in them; a folder that comes and goes leaves nothing."""
    graphs.scale(1.0, product.models / ".incoming" / "1" / "model.onnx")
    graphs.scale(1.0, product.models / "bad name" / "1" / "model.onnx")
    (product.models / "ghost").mkdir()
    wait_for(lambda: "ghost" in stub.models(), 10, "ghost is seen")
    (product.models / "ghost").rmdir()
    wait_for(lambda: "ghost" not in stub.models(), 10, "ghost is forgotten")
    time.sleep(1)
    assert not {".incoming", "bad name", "ghost"} & stub.models().keys()
    assert "model/ghost" not in {s.subject for s in stub.state().subjects}


def test_repaired_version_can_be_activated_at_once(product: Product, stub: Stub) -> None:
    """A refusal that the bytes have outlived is not repeated."""
    root = product.models / "repaired"
    graphs.scale(1.0, root / "1" / "model.onnx")
    (root / "2").mkdir()
    (root / "2" / "model.onnx").write_bytes(b"garbage")
    wait_for(lambda: "repaired" in stub.models(), 10, "seen")
    refused(stub, 2, "repaired")
    os.symlink("1", root / "latest")
    graphs.scale(2.0, root / "2" / "model.onnx")
    assert product.vigil("models", "activate", "repaired", "2").returncode == 0
    assert factor(stub, "repaired") == 2
    (root / "3").mkdir()
    (root / "3" / "model.onnx").write_bytes(b"garbage")
    assert product.vigil("models", "activate", "repaired", "3", check=False).returncode == 1
    assert os.readlink(root / "latest") == "2", "a choice that was refused leaves the link as it was"


def test_empty_file_does_not_keep_the_start(tmp_path: Path) -> None:
    """An empty model.onnx is waited for, then refused; the rest is ready meanwhile."""
    product = Product(tmp_path)
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    (product.models / "empty" / "1").mkdir(parents=True)
    (product.models / "empty" / "1" / "model.onnx").touch()
    with product:
        stub = Stub(product.channel())
        assert factor(stub) == 2
        assert refused(stub, 1, "empty") == "model.onnx is empty"


def test_missing_provider_falls_back_and_is_told(product: Product, stub: Stub) -> None:
    """Providers in order: what this build does not have is passed over with a record that says why, and CPU serves."""
    (product.models / "gpu").mkdir()
    (product.models / "gpu" / "vigil.toml").write_text('providers = ["tensorrt", "cuda", "cpu"]\n')
    graphs.scale(3.0, product.models / "gpu" / "1" / "model.onnx")
    wait_for(lambda: "gpu" in stub.models() and stub.models()["gpu"].serving_version == 1, 20, "gpu serves")
    assert factor(stub, "gpu") == 3 and list(stub.models()["gpu"].providers) == ["CPUExecutionProvider"]
    tail = product.vigil("audit", "tail", str(product.data / "audit" / "sidecar"), "-n", "1000", "--json").stdout
    told = [r for r in map(json.loads, tail.splitlines()) if r["name"] == "provider_fallback"]
    assert [r["detail"]["reason"].split(":")[0] for r in told] == ["tensorrt", "cuda"]


def test_many_models_at_once(product: Product, stub: Stub) -> None:
    """Twenty models that change at the same time all swap."""
    for i in range(20):
        graphs.scale(float(i + 1), product.models / f"many{i}" / "1" / "model.onnx")
    wait_for(lambda: sum(m.serving_version == 1 for n, m in stub.models().items() if n.startswith("many")) == 20, 30, "all serve")
    threads = [
        threading.Thread(target=graphs.scale, args=(float(100 + i), product.models / f"many{i}" / "2" / "model.onnx")) for i in range(20)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i in range(20):
        serves(stub, 100 + i, f"many{i}")


def test_old_session_memory_comes_back(product: Product, stub: Stub) -> None:
    """Swapping a 64 MB model many times does not grow the sidecar: old sessions are closed."""

    def resident_mb() -> float:
        status = Path(f"/proc/{product.pids()['sidecar_pid']}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024

    root = product.models / "large"
    (root / "1").mkdir(parents=True)
    (root / "config.pbtxt").write_text("max_batch_size: 2\n")
    graphs.gemm(4, 2048, root / "1" / "model.onnx", seed=1)
    wait_for(lambda: "large" in stub.models() and stub.models()["large"].serving_version == 1, 60, "large serves")
    with_one = resident_mb()
    for number in range(2, 8):
        graphs.gemm(4, 2048, root / "next.onnx", seed=number)
        (root / str(number)).mkdir()
        (root / "next.onnx").rename(root / str(number) / "model.onnx")
        wait_for(lambda n=number: stub.models()["large"].serving_version == n, 60, f"version {number}")
    wait_for(lambda: resident_mb() < with_one + 100, 20, f"memory comes back to {with_one:.0f} MB + 100, is {resident_mb():.0f}")


def test_bad_choice_at_cold_start(tmp_path: Path) -> None:
    """When the chosen version is bad at a cold start, the highest good one serves, and the model is Degraded and says why."""
    product = Product(tmp_path)
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    graphs.scale(3.0, product.models / "m" / "2" / "model.onnx")
    (product.models / "m" / "3").mkdir()
    (product.models / "m" / "3" / "model.onnx").write_bytes(b"garbage")
    os.symlink("3", product.models / "m" / "latest")
    with product:
        stub = Stub(product.channel())
        assert factor(stub) == 3
        model = stub.models()["m"]
        assert model.safety_state == "DEGRADED"
        assert "chosen version 3 was refused" in model.safety_reason and "version 2 serves" in model.safety_reason
        assert product.vigil("safety", "status", check=False).returncode == 1
        product.vigil("models", "activate", "m", "2")
        wait_for(lambda: stub.models()["m"].safety_state == "NORMAL", 10, "a good choice recovers it")
        assert product.vigil("safety", "status").returncode == 0


@pytest.mark.parametrize("file", ["config.pbtxt", "vigil.toml"])
def test_half_written_settings_do_not_take_effect(product: Product, stub: Stub, file: str) -> None:
    """While a model's settings are written in two pieces, calls that both the old and the new ones allow go on."""
    name = f"half-{file.split('.')[0]}"
    folder = product.models / name
    graphs.scale(2.0, folder / "1" / "model.onnx")
    whole = "max_batch_size: 6\n" if file == "config.pbtxt" else "output_max = 100.0\n"
    half = "max_batch_size: " if file == "config.pbtxt" else "output_max = 1"
    (folder / file).write_text(whole.replace("6", "4").replace("100", "99"))
    wait_for(lambda: name in stub.models() and stub.models()[name].serving_version == 1, 10, name)
    x = np.full((4, 4), 3.0, np.float32)
    expected = {stub.models()[name].serving_digest: x * 2}
    with Load(f"127.0.0.1:{product.ports['grpc']}", name, 4, {"x": x}, expected, seconds_max=6) as load:
        for _ in range(2):
            with (folder / file).open("w") as f:
                f.write(half if half.strip()[-1] != ":" else "max_batch_size: 1")
                f.flush()
                time.sleep(0.7)
                f.seek(0)
                f.write(whole)
            time.sleep(0.5)
        time.sleep(0.5)
    assert load.result["error_count"] == 0 and load.result["wrong_count"] == 0 and load.result["total"] > 10, load.result


def test_a_version_that_the_policy_excludes_is_not_activated(product: Product, stub: Stub) -> None:
    """The answer names the versions that may serve, at once, and the link stays as it was."""
    folder = product.models / "policy"
    for number in (1, 2):
        graphs.scale(float(number), folder / str(number) / "model.onnx")
    (folder / "config.pbtxt").write_text("version_policy { specific { versions: [1] } }")
    wait_for(lambda: "policy" in stub.models() and stub.models()["policy"].serving_version == 1, 10, "policy")
    done = product.vigil("models", "activate", "policy", "2", check=False)
    assert done.returncode == 1 and "allows the versions 1, not 2" in done.stderr
    assert not (folder / "latest").is_symlink()
    (folder / "latest").symlink_to("2")
    wait_for(lambda: "excluded by version_policy" in stub.models()["policy"].safety_reason, 10, "told")
    assert stub.models()["policy"].serving_version == 1 and stub.models()["policy"].safety_state == "DEGRADED"
    (folder / "latest").unlink()
    wait_for(lambda: stub.models()["policy"].safety_state == "NORMAL", 10, "normal again")


def test_every_wrong_entry_is_told(product: Product, stub: Stub) -> None:
    """A version that is a file, links that lead nowhere or in circles, a wrong file name: each has an event that says so."""
    folder = product.models / "wrong"
    graphs.scale(2.0, folder / "1" / "model.onnx")
    (folder / "2").write_text("a file")
    (folder / "3").mkdir()
    (folder / "3" / "model.onnx").symlink_to("nowhere")
    (folder / "4").symlink_to("4")
    (folder / "5").mkdir()
    (folder / "5" / "net.onnx").write_bytes(b"x")
    said = [
        "version 2: not a folder",
        "version 3: model.onnx is a link that leads nowhere",
        "version 4: ",
        "version 5: net.onnx is not named",
    ]

    def told() -> bool:
        text = product.vigil("audit", "tail", str(product.data / "audit" / "sidecar"), "-n", "400").stdout
        return all(s in text for s in said)

    wait_for(told, 10, "all told")
    assert stub.models()["wrong"].serving_version == 1
