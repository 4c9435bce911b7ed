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
from tests.harness.calls import Stub
from tests.harness.load import Load
from tests.harness.product import Product, wait_for
from tests.harness.swaps import X, factor, refused, serves, versions


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


def test_every_way_of_swapping_under_load(product: Product, stub: Stub) -> None:
    """Copied, moved in, flipped, replaced, written over, quick succession: no failed call, and always right numbers."""
    root = product.models / "m"
    data = {f: graphs.scale(f) for f in (2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0, 10.0)}
    expected = {hashlib.sha256(d).hexdigest(): X * np.float32(f) for f, d in data.items()}
    with Load(product, "m", 32, {"x": X}, expected) as load:
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
