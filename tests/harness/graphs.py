"""Small graphs for tests and the demonstration, made with onnx.helper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["gemm", "identity_bytes", "many", "other_contract", "pairwise", "rescaled", "scale", "time_mixing", "with_nan"]

IR_VERSION = 10
OPSET = 18


def _save(graph: onnx.GraphProto, path: Path | None) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    data = model.SerializeToString(deterministic=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return data


def scale(factor: float, path: Path | None = None, width: int = 4, rows: int | str = "N") -> bytes:
    """y = factor * x, x [rows, width] of FP32."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, width])
    weight = numpy_helper.from_array(np.array(factor, np.float32), "s")
    return _save(helper.make_graph([helper.make_node("Mul", ["x", "s"], ["y"])], "scale", [x], [y], [weight]), path)


def many(tensors: int, path: Path | None = None) -> bytes:
    """y0, y1, ... = twice x0, x1, ..., each [N, 4] of FP32."""
    weight = numpy_helper.from_array(np.array(2.0, np.float32), "s")
    xs, ys = ([helper.make_tensor_value_info(f"{v}{i}", TensorProto.FLOAT, ["N", 4]) for i in range(tensors)] for v in "xy")
    nodes = [helper.make_node("Mul", [f"x{i}", "s"], [f"y{i}"]) for i in range(tensors)]
    return _save(helper.make_graph(nodes, "many", xs, ys, [weight]), path)


def other_contract(path: Path | None = None) -> bytes:
    """Takes [N, 5] instead of [N, 4]."""
    return scale(1.0, path, width=5)


def with_nan(path: Path | None = None) -> bytes:
    """y = log(x): NaN for negative x."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    return _save(helper.make_graph([helper.make_node("Log", ["x"], ["y"])], "log", [x], [y]), path)


def choosing(path: Path | None = None) -> bytes:
    """y = one of two rows, chosen by i: any other i fails at run time."""
    i = helper.make_tensor_value_info("i", TensorProto.INT64, ["N"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    rows = numpy_helper.from_array(np.arange(8, dtype=np.float32).reshape(2, 4), "rows")
    return _save(helper.make_graph([helper.make_node("Gather", ["rows", "i"], ["y"])], "choosing", [i], [y], [rows]), path)


def spinning(path: Path | None = None) -> bytes:
    """Multiplies matrices n times: a run takes as long as its caller says (some milliseconds each)."""
    n = helper.make_tensor_value_info("n", TensorProto.INT64, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [512, 512])

    def matrix(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [512, 512])

    def flag(name: str, dtype: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, [])

    inside, outside = (
        [flag("i", TensorProto.INT64), flag("on", TensorProto.BOOL), matrix("a")],
        [flag("on_out", TensorProto.BOOL), matrix("b")],
    )
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["on_out"]), helper.make_node("MatMul", ["a", "w"], ["b"])], "body", inside, outside
    )
    weights = [numpy_helper.from_array(np.eye(512, dtype=np.float32), "w"), numpy_helper.from_array(np.array(True), "yes")]
    nodes = [helper.make_node("Squeeze", ["n"], ["count"]), helper.make_node("Loop", ["count", "yes", "w"], ["y"], body=body)]
    return _save(helper.make_graph(nodes, "spinning", [n], [y], weights), path)


def largest(path: Path | None = None) -> bytes:
    """The largest of x [N, L] of FP32: padding with zeros shows where all of it is negative."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "L"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])
    axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
    return _save(helper.make_graph([helper.make_node("ReduceMax", ["x", "axis"], ["y"], keepdims=0)], "largest", [x], [y], [axis]), path)


def sequence(path: Path | None = None, masked: bool = True) -> bytes:
    """Of x [N, L, 2] of FP32: y = 2 x, and the mean over the length; with a mask [N, L] of INT64 of what it leaves in."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "L", 2])
    mask = helper.make_tensor_value_info("mask", TensorProto.INT64, ["N", "L"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "L", 2])
    mean = helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["N", 2])
    weights = [numpy_helper.from_array(np.array(2, np.float32), "two"), numpy_helper.from_array(np.array([1], np.int64), "one")]
    nodes = [helper.make_node("Mul", ["x", "two"], ["y"])]
    if masked:
        weights.append(numpy_helper.from_array(np.array([2], np.int64), "last"))
        nodes += [
            helper.make_node("Cast", ["mask"], ["kept"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["kept", "last"], ["each"]),
            helper.make_node("Mul", ["x", "each"], ["counted"]),
            helper.make_node("ReduceSum", ["counted", "one"], ["sum"], keepdims=0),
            helper.make_node("ReduceSum", ["kept", "one"], ["count"], keepdims=1),
            helper.make_node("Div", ["sum", "count"], ["mean"]),
        ]
    else:
        nodes.append(helper.make_node("ReduceMean", ["x", "one"], ["mean"], keepdims=0))
    return _save(helper.make_graph(nodes, "sequence", [x, mask] if masked else [x], [y, mean], weights), path)


def filling(path: Path | None = None) -> bytes:
    """y = zeros of a shape that the caller names: it asks for as much memory as the caller says."""
    shape = helper.make_tensor_value_info("shape", TensorProto.INT64, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])
    return _save(helper.make_graph([helper.make_node("ConstantOfShape", ["shape"], ["y"])], "filling", [shape], [y]), path)


def time_mixing(path: Path | None = None) -> bytes:
    """y = x - mean of x over the first axis: its first axis is free, but rows influence each other."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", 4])
    axes = numpy_helper.from_array(np.array([0], np.int64), "axes")
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=1), helper.make_node("Sub", ["x", "m"], ["y"])]
    return _save(helper.make_graph(nodes, "mixing", [x], [y], [axes]), path)


def pairwise(path: Path | None = None) -> bytes:
    """sum = a + b of FP32 [N, D] with a free D: two inputs."""
    a, b, s = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", "D"]) for n in ("a", "b", "sum"))
    return _save(helper.make_graph([helper.make_node("Add", ["a", "b"], ["sum"])], "add", [a, b], [s]), path)


def identity_bytes(path: Path | None = None) -> bytes:
    """A string tensor that comes back as it is."""
    x = helper.make_tensor_value_info("x", TensorProto.STRING, ["N"])
    y = helper.make_tensor_value_info("y", TensorProto.STRING, ["N"])
    return _save(helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "strings", [x], [y]), path)


def gemm(layers: int, width: int, path: Path | None = None, seed: int = 1) -> bytes:
    """A chain of square products: 2 * layers * width^2 operations for each row."""
    rng = np.random.default_rng(seed)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])
    nodes, weights, last = [], [], "x"
    for i in range(layers):
        matrix = (rng.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"w{i}"))
        out = "y" if i == layers - 1 else f"h{i}"
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [out]))
        last = out
    return _save(helper.make_graph(nodes, "gemm", [x], [y], weights), path)


def rescaled(source: Path, factor: float, path: Path | None = None) -> bytes:
    """A packaged model exported again with its first output multiplied; the contract stays the same."""
    model = onnx.load(source)
    graph = model.graph
    name = graph.output[0].name
    inner = name + "_unscaled"
    for node in graph.node:
        for i, out in enumerate(node.output):
            if out == name:
                node.output[i] = inner
        for i, used in enumerate(node.input):
            if used == name:
                node.input[i] = inner
    graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "vigil_scale"))
    graph.node.append(helper.make_node("Mul", [inner, "vigil_scale"], [name]))
    data = model.SerializeToString(deterministic=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return data
