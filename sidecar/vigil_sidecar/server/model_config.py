"""config.pbtxt and a model's vigil.toml, read into plain options."""

from __future__ import annotations

import math
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from inference.model_config_pb2 import DataType, ModelConfig

from vigil_sidecar.engine.contract import TensorSpec
from vigil_sidecar.engine.reshape import Reshape, problem_of
from vigil_sidecar.engine.session import PROVIDER_NAMES
from vigil_sidecar.errors import CandidateRefused
from vigil_sidecar.pipelines.catalogue import make_pipeline
from vigil_sidecar.registry.options import ModelOptions, VersionPolicy
from vigil_sidecar.server.ladder_config import read_ladder
from vigil_sidecar.server.queue_config import read_queue
from vigil_sidecar.server.ragged_config import read_ragged
from vigil_sidecar.server.warmup_config import read_warmup

__all__ = ["read_options"]

_FILE_BYTES_MAX = 1 << 20
_INSTANCES_MAX = 64
_SUPPORTED: dict[str, frozenset[str]] = {
    "": frozenset(
        ("name", "platform", "backend", "default_model_filename", "max_batch_size", "input", "output", "version_policy",
         "instance_group", "optimization", "parameters", "model_warmup", "dynamic_batching")
    ),
    "input": frozenset(("name", "data_type", "dims", "format", "reshape")),
    "output": frozenset(("name", "data_type", "dims", "label_filename", "reshape")),
    "input.reshape": frozenset(("shape",)), "output.reshape": frozenset(("shape",)),
    "dynamic_batching": frozenset(
        ("preferred_batch_size", "max_queue_delay_microseconds", "preserve_ordering", "priority_levels", "default_priority_level",
         "default_queue_policy", "priority_queue_policy")
    ),
    "instance_group": frozenset(("name", "kind", "count")), "optimization": frozenset(("execution_accelerators",)),
    "optimization.execution_accelerators": frozenset(("gpu_execution_accelerator", "cpu_execution_accelerator")),
    "optimization.execution_accelerators.gpu_execution_accelerator": frozenset(("name",)),
    "optimization.execution_accelerators.cpu_execution_accelerator": frozenset(("name",)),
}  # fmt: skip
"""Fields that count, by the path of their message; version_policy, queue policies, model_warmup and parameters count whole."""
_TOML_KEYS: dict[str, type | tuple[type, ...]] = {
    "pipeline": dict, "finite_inputs": bool, "finite_outputs": bool, "output_min": (int, float), "output_max": (int, float),
    "gates": dict, "ladder": dict, "batching": dict, "providers": list, "intra_op_threads": int,
}  # fmt: skip
_GATES: dict[str, tuple[type | tuple[type, ...], float]] = {
    "allow_contract_change": (bool, 1), "warmup_budget_s": ((int, float), 3600),
    "run_ms_max": ((int, float), 3_600_000), "batch_difference_max": ((int, float), 1.0),
}  # fmt: skip
"""Type and largest value of each gate."""


def _read(path: Path) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        if path.is_symlink():  # what it says is not known, and it may be a limit
            raise CandidateRefused(f"{path.name} is a link that leads nowhere") from None
        return None
    except OSError as error:
        raise CandidateRefused(f"{path.name} cannot be read: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CandidateRefused(f"{path.name} is not a regular file")
        data = os.read(descriptor, _FILE_BYTES_MAX + 1)
    except OSError as error:
        raise CandidateRefused(f"{path.name} cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if len(data) > _FILE_BYTES_MAX:
        raise CandidateRefused(f"{path.name} is larger than {_FILE_BYTES_MAX} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise CandidateRefused(f"{path.name} is not UTF-8 text") from None


def _pbtxt(text: str, model: str, folder: Path) -> dict[str, Any]:
    try:
        config = text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        raise CandidateRefused(f"config.pbtxt: {error}") from None
    _only_supported(config, "")
    if config.name not in ("", model):
        raise CandidateRefused(f"config.pbtxt: name is '{config.name}', the folder is '{model}'")
    if config.backend not in ("", "onnxruntime") or config.platform not in ("", "onnxruntime_onnx"):
        raise CandidateRefused(f"config.pbtxt: backend '{config.backend or config.platform}' is not onnxruntime")
    if not 0 <= config.max_batch_size <= 1024:
        raise CandidateRefused(f"config.pbtxt: max_batch_size is {config.max_batch_size}, allowed is 0..1024")
    out: dict[str, Any] = {
        "max_batch_size": config.max_batch_size,
        "parameters": {k: v.string_value for k, v in config.parameters.items()},
    }
    policy = config.version_policy.WhichOneof("policy_choice")
    if policy == "all":
        out["policy"] = VersionPolicy("all")
    elif policy == "specific":
        out["policy"] = VersionPolicy("specific", versions=tuple(config.version_policy.specific.versions))
        if any(n < 1 for n in config.version_policy.specific.versions):
            raise CandidateRefused("config.pbtxt: version_policy.specific names a version below 1")
    elif policy == "latest":
        out["policy"] = VersionPolicy("latest", max(1, config.version_policy.latest.num_versions))
    accelerators = config.optimization.execution_accelerators
    names = [a.name for a in (*accelerators.gpu_execution_accelerator, *accelerators.cpu_execution_accelerator)]
    if names:
        out["providers"] = tuple(names)
    for group in config.instance_group:
        if group.kind not in (group.KIND_AUTO, group.KIND_CPU):
            raise CandidateRefused("config.pbtxt: the field 'instance_group.kind' supports KIND_CPU and KIND_AUTO")
        if not 0 <= group.count <= _INSTANCES_MAX:
            raise CandidateRefused(f"config.pbtxt: instance_group.count is {group.count}, allowed is 1..{_INSTANCES_MAX} (0: 1)")
    unknown = [n for n in names if n not in PROVIDER_NAMES]
    if unknown:
        raise CandidateRefused(f"config.pbtxt: unknown execution accelerator '{unknown[0]}'; known are {', '.join(PROVIDER_NAMES)}")
    if config.default_model_filename not in ("", "model.onnx"):
        raise CandidateRefused(f"config.pbtxt: default_model_filename is '{config.default_model_filename}', only model.onnx is served")
    out["tensors"], out["reshapes"] = _tensors(config), _reshapes(config)
    out["label_files"] = {o.name: o.label_filename for o in config.output if o.label_filename}
    out["labels"] = {o.name: _labels(folder, o.name, o.label_filename) for o in config.output if o.label_filename}
    out["instances"] = sum(max(1, group.count) for group in config.instance_group) or 1
    if out["instances"] > _INSTANCES_MAX:
        raise CandidateRefused(f"config.pbtxt: instance_group has {out['instances']} instances in all, allowed are {_INSTANCES_MAX}")
    if config.HasField("dynamic_batching"):
        if config.dynamic_batching.preserve_ordering and out["instances"] > 1:
            raise CandidateRefused("config.pbtxt: dynamic_batching.preserve_ordering needs an instance_group.count of 1")
        out["queue"] = read_queue(config)
    out["warmup"] = read_warmup(config, folder)
    return out


def _only_supported(message: Any, path: str) -> None:
    """Raise for the first field that would have no effect."""
    known = _SUPPORTED.get(path)
    if known is None:
        return
    for field, value in message.ListFields():
        inner = f"{path}.{field.name}" if path else field.name
        if field.name not in known:
            raise CandidateRefused(f"config.pbtxt: the field '{inner}' is not supported")
        if field.message_type is not None:
            for one in value if field.is_repeated else (value,):
                _only_supported(one, inner)


def _labels(folder: Path, output: str, name: str) -> tuple[str, ...]:
    """Labels of an output's classes, one a line."""
    if "/" in name or name.startswith("."):
        raise CandidateRefused(f"config.pbtxt: output '{output}': label_filename '{name}' is no file of the model's folder")
    text = _read(folder / name)
    if text is None:
        raise CandidateRefused(f"config.pbtxt: output '{output}': the label file {name} does not exist")
    return tuple(line.rstrip("\r") for line in text.rstrip("\n").split("\n"))


def _tensors(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """What the file says of inputs and outputs; the graph must agree (``ModelOptions.contradiction``)."""
    out = []
    said: list[Any] = [*config.input, *config.output]
    for t in said:
        datatype = DataType.Name(t.data_type).removeprefix("TYPE_")
        datatype = "BYTES" if datatype == "STRING" else datatype
        out.append(TensorSpec(t.name, "" if datatype == "INVALID" else datatype, tuple(t.dims)))
    return tuple(out)


def _reshapes(config: ModelConfig) -> dict[str, Reshape]:
    out = {}
    said: list[Any] = [*config.input, *config.output]
    for t in said:
        if t.HasField("reshape"):
            out[t.name] = Reshape(tuple(t.dims), tuple(t.reshape.shape))
            if problem := problem_of(out[t.name]):
                raise CandidateRefused(f"config.pbtxt: '{t.name}': {problem}")
    return out


def _gates(table: dict[str, Any]) -> dict[str, Any]:
    for key, value in table.items():
        if key not in _GATES:
            raise CandidateRefused(f"vigil.toml: unknown key 'gates.{key}'; known are {', '.join(_GATES)}")
        kind, most = _GATES[key]
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise CandidateRefused(f"vigil.toml: gates.{key} = {value!r} has the wrong type")
        number: Any = value
        if not 0 <= number <= most:
            raise CandidateRefused(f"vigil.toml: gates.{key} = {value!r}: allowed is 0..{most:g}")
    return table


def _toml(text: str) -> dict[str, Any]:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CandidateRefused(f"vigil.toml: {error}") from None
    for key, value in content.items():
        if key not in _TOML_KEYS:
            raise CandidateRefused(f"vigil.toml: unknown key '{key}'; known are {', '.join(_TOML_KEYS)}")
        if not isinstance(value, _TOML_KEYS[key]) or (isinstance(value, bool) and not key.startswith("finite_")):
            raise CandidateRefused(f"vigil.toml: {key} = {value!r} has the wrong type")
    out: dict[str, Any] = {k: v for k, v in content.items() if k not in ("pipeline", "providers", "gates", "ladder", "batching")}
    out |= _gates(content.get("gates", {}))
    if "ladder" in content:
        out["ladder"] = read_ladder(content["ladder"])
    if "batching" in content:
        out["ragged"] = read_ragged(content["batching"])
    if "providers" in content:
        unknown = [p for p in content["providers"] if not isinstance(p, str) or p not in PROVIDER_NAMES]
        if unknown:
            raise CandidateRefused(f"vigil.toml: unknown provider {unknown[0]!r}; known are {', '.join(PROVIDER_NAMES)}")
        out["providers"] = tuple(content["providers"])
    if not 0 <= content.get("intra_op_threads", 0) <= 1024:
        raise CandidateRefused(f"vigil.toml: intra_op_threads = {content['intra_op_threads']}: allowed is 0..1024")
    low, high = content.get("output_min", -math.inf), content.get("output_max", math.inf)
    if not low <= high:  # not a number is neither
        raise CandidateRefused(f"vigil.toml: output_min = {low}, output_max = {high}: no value is allowed")
    if "pipeline" in content:
        options = dict(content["pipeline"])
        kind = options.pop("kind", None)
        make_pipeline(str(kind), options)
        out |= {"pipeline": kind, "pipeline_options": options, "finite_inputs": True}
        out["finite_inputs"] = bool(content.get("finite_inputs", True))
    return out


def read_options(folder: Path, model: str) -> ModelOptions:
    """Options of a model with its files in ``folder``; raises ``CandidateRefused`` naming the file and field."""
    values: dict[str, Any] = {}
    pbtxt = _read(folder / "config.pbtxt")
    if pbtxt is not None:
        values |= _pbtxt(pbtxt, model, folder)
    toml = _read(folder / "vigil.toml")
    if toml is not None:
        values |= _toml(toml)
    if values.get("pipeline") is not None and values.get("instances", 1) > 1:
        raise CandidateRefused("config.pbtxt: instance_group.count must be 1 with a pipeline: frames of a source have an order")
    return ModelOptions(**values)
