"""The model repository: settings of models, odd entries, links."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from tests.harness import graphs
from tests.harness.calls import Stub
from tests.harness.load import Load
from tests.harness.product import Product, wait_for
from tests.harness.swaps import factor, refused


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


def warmup(given: str, name: str = "x") -> str:
    """A config.pbtxt with one sample to warm up with."""
    return (
        f"max_batch_size: 4 model_warmup {{ name: 's' batch_size: 2 inputs {{ key: '{name}' value {{ data_type: TYPE_FP32 {given} }} }} }}"
    )


CONFIGS = [
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
    ("c15", "config.pbtxt", "input { name: 'x' dims: [2] reshape { shape: [4] } }", "'x': dims [2] and reshape [4] have different sizes"),
    ("c16", "config.pbtxt", "instance_group { kind: KIND_CPU gpus: [0] }", "'instance_group.gpus' is not supported"),
    ("c17", "config.pbtxt", "instance_group { count: 65 }", "instance_group.count is 65, allowed is 1..64"),
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
    ("c28", "config.pbtxt", "max_batch_size: 8 dynamic_batching { preferred_batch_size: [4, 9] }", "has 9, allowed is 1..8"),
    ("c29", "config.pbtxt", "max_batch_size: 8 dynamic_batching { priority_levels: 2 }", "default_priority_level is 0, allowed is 1..2"),
    ("c30", "config.pbtxt", "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 9999999 }", "allowed is 0..1000000"),
    (
        "c31",
        "config.pbtxt",
        "max_batch_size: 8 instance_group { count: 2 } dynamic_batching { preserve_ordering: true }",
        "preserve_ordering needs an instance_group.count of 1",
    ),
    ("c32", "config.pbtxt", "max_batch_size: 8 dynamic_batching { }", ""),
    ("c33", "config.pbtxt", warmup("dims: [4] random_data: true", "y"), "has no input 'x'"),
    ("c34", "config.pbtxt", warmup("dims: [4]"), "says neither zero_data, random_data nor input_data_file"),
    ("c35", "config.pbtxt", warmup("dims: [4] input_data_file: 'none.bin'"), "warmup/none.bin cannot be read"),
    ("c36", "config.pbtxt", warmup("dims: [4] input_data_file: '../config.pbtxt'"), "no name of a file in the folder warmup"),
    ("c37", "config.pbtxt", warmup("dims: [-1] zero_data: true"), "must all be known"),
    ("c38", "config.pbtxt", warmup("dims: [5] zero_data: true"), "warm-up failed"),
    ("c39", "config.pbtxt", warmup("dims: [4] zero_data: true").replace("FP32", "INT8"), "is INT8, the graph says FP32"),
    (
        "c40",
        "config.pbtxt",
        warmup("dims: [4] zero_data: true").replace("size: 2", "size: 9"),
        "has the batch_size 9",
    ),
    (
        "c44",
        "config.pbtxt",
        "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 900 "
        "default_queue_policy { default_timeout_microseconds: 800 } }",
        "every call may wait 900",
    ),
    ("c45", "config.pbtxt", warmup("dims: [2000000000] zero_data: true"), "allowed are 67108864"),
    ("c42", "config.pbtxt", "output { name: 'y' label_filename: 'none.txt' }", "the label file none.txt does not exist"),
    ("c43", "config.pbtxt", "output { name: 'y' label_filename: '../m/x' }", "is no file of the model's folder"),
    ("c46", "config.pbtxt", "response_cache { enable: true }", "'response_cache' is not supported"),
    (
        "c47",
        "config.pbtxt",
        "max_batch_size: 8 dynamic_batching { priority_levels: 2 default_priority_level: 1 "
        "priority_queue_policy { key: 3 value { max_queue_size: 1 } } }",
        "priority_queue_policy is of level 3, allowed is 1..2",
    ),
    ("c48", "config.pbtxt", "instance_group { count: 40 } instance_group { count: 40 }", "has 80 instances in all"),
    ("c41", "config.pbtxt", warmup("dims: [4] zero_data: true"), ""),
]


def test_config_that_cannot_be_is_named(product: Product, stub: Stub) -> None:
    """Unknown and unsupported fields of config.pbtxt and vigil.toml refuse the version by name."""
    for name, file, text, said in CONFIGS:
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
    with Load(product, name, 4, {"x": x}, expected, seconds_max=6) as load:
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
