"""A loaded version's configuration in Triton's form, completed from the graph, and its statistics."""

from __future__ import annotations

from typing import Any

from inference import grpc_service_pb2 as oip
from inference.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from vigil_sidecar.engine.contract import TensorSpec
from vigil_sidecar.engine.reshape import Reshape
from vigil_sidecar.registry.statistics import Durations
from vigil_sidecar.registry.version import LoadedVersion
from vigil_sidecar.server.queue_config import write_queue

__all__ = ["configuration", "statistics"]

_ON_GPU = frozenset({"cuda", "tensorrt"})


def _tensor(into: Any, t: TensorSpec, batched: bool, reshape: Reshape | None) -> None:
    into.name = t.name
    into.data_type = DataType.Value("TYPE_STRING" if t.datatype == "BYTES" else "TYPE_" + t.datatype)
    dims = t.shape[1:] if batched else t.shape
    into.dims.extend(dims or (1,))  # a configuration has no shape without axes: it says [1], reshaped
    if not dims:
        into.reshape.SetInParent()
    if reshape is not None:
        into.reshape.shape.extend(reshape.shape)
        into.reshape.SetInParent()


def configuration(version: LoadedVersion) -> ModelConfig:
    """What config.pbtxt would say of a version, each thing as it is."""
    options = version.options
    largest = options.max_batch_size
    if largest is None:
        largest = version.max_batch_size if version.max_batch_size > 1 else 0
    out = ModelConfig(
        name=version.model, platform="onnxruntime_onnx", backend="onnxruntime", max_batch_size=largest, default_model_filename="model.onnx"
    )
    if options.policy.kind == "all":
        out.version_policy.all.SetInParent()
    elif options.policy.kind == "specific":
        out.version_policy.specific.versions.extend(options.policy.versions)
    else:
        out.version_policy.latest.num_versions = options.policy.count
    for t in version.session.contract.inputs:
        _tensor(out.input.add(), t, largest > 0, options.reshapes.get(t.name))
    for t in version.session.contract.outputs:
        said_of = out.output.add(label_filename=options.label_files.get(t.name, ""))
        _tensor(said_of, t, largest > 0, options.reshapes.get(t.name))
    out.instance_group.add(name=version.model, kind=ModelInstanceGroup.KIND_CPU, count=options.instances)
    accelerators = out.optimization.execution_accelerators
    for name in options.providers:
        if name in _ON_GPU:
            accelerators.gpu_execution_accelerator.add(name=name)
        elif name != "cpu":
            accelerators.cpu_execution_accelerator.add(name=name)
    if not accelerators.ByteSize():
        out.ClearField("optimization")
    if largest > 1:
        out.dynamic_batching.SetInParent()
        if (queue := options.queue) is not None:
            write_queue(queue, out)
    for sample in options.warmup:
        said = out.model_warmup.add(name=sample.name, batch_size=sample.batch_size, count=sample.count)
        for name, given in sample.inputs.items():
            tensor: Any = said.inputs[name]
            tensor.data_type = DataType.Value("TYPE_STRING" if given.datatype == "BYTES" else "TYPE_" + given.datatype)
            tensor.dims.extend(given.shape)
            if given.data is not None:
                tensor.input_data_file = given.file
            else:
                setattr(tensor, given.fill + "_data", True)
    for key, value in options.parameters.items():
        out.parameters[key].string_value = value
    return out


def _duration(d: Durations) -> oip.StatisticDuration:
    return oip.StatisticDuration(count=d.times, ns=d.ns)


def statistics(version: LoadedVersion) -> oip.ModelStatistics:
    """What a version has done since it was loaded."""
    s = version.statistics
    out = oip.ModelStatistics(
        name=version.model, version=version.text, last_inference=s.last_ms, inference_count=s.inferences, execution_count=s.executions,
        inference_stats=oip.InferStatistics(
            success=_duration(s.success), fail=_duration(s.fail), queue=_duration(s.queue), compute_input=_duration(s.inputs),
            compute_infer=_duration(s.infer), compute_output=_duration(s.outputs), cache_hit=_duration(Durations()),
            cache_miss=_duration(Durations()),
        ),
    )  # fmt: skip
    for size, (inputs, infer, outputs) in sorted(s.sizes.copy().items()):
        out.batch_stats.add(
            batch_size=size, compute_input=_duration(inputs), compute_infer=_duration(infer), compute_output=_duration(outputs)
        )
    return out
