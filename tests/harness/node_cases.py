"""onnx's own test cases of operators: one graph each, with inputs and the outputs that are expected."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf import text_format
from inference import grpc_service_pb2 as oip
from inference.model_config_pb2 import DataType, ModelConfig

from vigil_sidecar.engine.datatypes import decode_bytes, encode_bytes

__all__ = ["BFLOAT16", "NodeCase", "cases", "infer", "servable", "write"]

BFLOAT16 = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
_TYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8", "int16": "INT16",
    "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64", "bfloat16": "BF16",
}  # fmt: skip
_DTYPES = {v: (BFLOAT16 if k == "bfloat16" else np.dtype(k)) for k, v in _TYPES.items()}


class NodeCase(NamedTuple):
    """One case. ``inputs`` and ``outputs`` are by name, in the graph's order."""

    name: str
    model: onnx.ModelProto
    inputs: dict[str, np.ndarray[Any, Any]]
    outputs: dict[str, np.ndarray[Any, Any]]
    rtol: float
    atol: float


def _datatype(array: Any) -> str:
    if array.dtype.kind in "OUS":
        return "BYTES"
    return _TYPES.get(str(array.dtype), "")


def _named(values: Any, infos: Any) -> dict[str, np.ndarray[Any, Any]] | None:
    """Arrays by name; None where one is no tensor."""
    out = {}
    if len(values) > len(infos):
        return None
    for value, info in zip(values, infos, strict=False):
        if not info.type.HasField("tensor_type") or isinstance(value, (list, tuple, dict)) or value is None:
            return None
        if isinstance(value, onnx.TensorProto):
            value = onnx.numpy_helper.to_array(value)
        out[info.name] = np.asarray(value)
    return out


def cases(skipped: Counter[str]) -> list[NodeCase]:
    """Every case of tensors whose datatypes the protocol has; what is left out is counted by reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    out = []
    for case in found:
        graph = case.model.graph
        inputs, outputs = _named(case.data_sets[0][0], graph.input), _named(case.data_sets[0][1], graph.output)
        if inputs is None or outputs is None:
            skipped["an input or output is a sequence, a map or an optional"] += 1
        elif not all(map(_datatype, (*inputs.values(), *outputs.values()))):
            skipped["a datatype that the protocol has not (4 and 8 bits, complex)"] += 1
        else:
            out.append(NodeCase(case.name.removeprefix("test_"), case.model, inputs, outputs, case.rtol, case.atol))
    return out


def equal(case: NodeCase, name: str, found: Any) -> str:
    """What is wrong with an output; empty when it is as expected."""
    want = case.outputs[name]
    found = np.asarray(found)
    if found.shape != want.shape:
        return f"{name}: shape {found.shape}, expected {want.shape}"
    if want.dtype.kind in "OUS":
        texts = [[x.decode() if isinstance(x, bytes) else str(x) for x in a.ravel().tolist()] for a in (found, want)]
        return "" if texts[0] == texts[1] else f"{name}: {texts[0][:3]}, expected {texts[1][:3]}"
    if found.dtype != want.dtype:
        return f"{name}: {found.dtype}, expected {want.dtype}"
    if want.dtype.kind == "f" or want.dtype == BFLOAT16:
        same = np.allclose(found.astype(np.float64), want.astype(np.float64), rtol=case.rtol, atol=case.atol, equal_nan=True)
    else:
        same = bool(np.array_equal(found, want))
    return "" if same else f"{name}: other values"


def servable(case: NodeCase) -> str:
    """Why ONNX Runtime by itself does not give what is expected; empty when it does."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        session = ort.InferenceSession(case.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        if any(a.dtype == BFLOAT16 for a in (*case.inputs.values(), *case.outputs.values())):
            return ""  # its Python has no such arrays: what is served is held against what is expected
        feeds = {n: a.astype(object) if a.dtype.kind in "US" else a for n, a in case.inputs.items()}
        found = session.run(list(case.outputs), feeds)
    except Exception as error:
        return f"onnxruntime: {str(error).split(' : ')[1][:20] if ' : ' in str(error) else type(error).__name__}"
    wrong = [w for n, a in zip(case.outputs, found, strict=True) if (w := equal(case, n, a))]
    return "onnxruntime: another result" if wrong else ""


def _raw(array: np.ndarray[Any, Any]) -> bytes:
    if array.dtype.kind in "OUS":
        return encode_bytes([x if isinstance(x, str) else x.decode() for x in array.ravel().tolist()])
    return np.ascontiguousarray(array).tobytes()


def write(case: NodeCase, models: Path) -> None:
    """Put the graph into a repository, and beside it what its model needs to be told.

    Whole numbers, and inputs behind the first, are often axes, shapes, indices or scales, which no made-up
    number is: they are named for warming up. Outputs that are expected not to be finite are allowed.
    """
    folder = models / case.name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(case.model.SerializeToString())
    if len(case.inputs) > 1 or any(a.dtype.kind in "iu" for a in case.inputs.values()):
        (folder / "warmup").mkdir()
        config = ModelConfig()
        sample = config.model_warmup.add(name="case", batch_size=1)
        for i, (name, array) in enumerate(case.inputs.items()):
            (folder / "warmup" / f"{i}.bin").write_bytes(_raw(array))
            given: Any = sample.inputs[name]
            given.data_type = DataType.Value("TYPE_" + _datatype(array).replace("BYTES", "STRING"))
            given.dims.extend(array.shape)
            given.input_data_file = f"{i}.bin"
        (folder / "config.pbtxt").write_text(text_format.MessageToString(config))
    if any(a.dtype.kind == "f" and not np.isfinite(a).all() for a in case.outputs.values()):
        (folder / "vigil.toml").write_text("finite_outputs = false\n")


def infer(case: NodeCase, call: Any) -> list[str]:
    """Serve the case by ``call(request) -> response``; returns what is wrong with its outputs."""
    request = oip.ModelInferRequest(model_name=case.name)
    for name, array in case.inputs.items():
        request.inputs.add(name=name, datatype=_datatype(array), shape=array.shape)
        request.raw_input_contents.append(_raw(array))
    response, wrong = call(request), []
    found = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        shape = tuple(output.shape)
        if output.datatype == "BYTES":
            array = np.array(decode_bytes(raw, int(np.prod(shape)), output.name), object).reshape(shape)
        else:
            array = np.frombuffer(raw, _DTYPES[output.datatype]).reshape(shape)
        found[output.name] = array
    for name in case.outputs:
        if name not in found:
            wrong.append(f"{name} is missing")
        elif problem := equal(case, name, found[name]):
            wrong.append(problem)
    return wrong
