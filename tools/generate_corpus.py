"""Write the corpus of valid and invalid messages that both languages' rules are run on.

For each client message and each of its rules: a message at the limit and one
beyond it. The expectation (which fields are violated) comes from how the
message was made, not from either implementation. Hand-written edges follow.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import Message
from inference import grpc_service_pb2 as oip
from validate import validate_pb2
from vigil.audit.v1 import service_pb2 as audit
from vigil.models.v1 import models_pb2 as models
from vigil.perception.v1 import perception_pb2 as perception
from vigil.safety.v1 import safety_pb2 as safety

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "conformance" / "corpus"
SIZE_MAX = 8192
Case = tuple[str, Message, list[str]]


def valid_messages() -> list[Message]:
    """One valid message of each type that a client can send, with nested messages filled."""
    infer = oip.ModelInferRequest(model_name="m", id="1")
    tensor = infer.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    tensor.contents.fp32_contents.extend([1, 2])
    tensor.parameters["p"].string_param = "v"
    infer.outputs.add(name="y").parameters["q"].int64_param = 3
    infer.parameters["priority"].uint64_param = 1
    load = oip.RepositoryModelLoadRequest(model_name="m")
    load.parameters["config"].string_param = "{}"
    unload = oip.RepositoryModelUnloadRequest(model_name="m")
    unload.parameters["unload_dependents"].bool_param = True
    trace = oip.TraceSettingRequest(model_name="m")
    trace.settings["trace_level"].value.append("OFF")
    log = oip.LogSettingsRequest()
    log.settings["log_info"].bool_param = True
    encoded = perception.DetectRequest(
        source_id="s", capture_time_us=1, model="m", min_confidence=0.5, frame=perception.Frame(encoded=b"\x89PNG")
    )
    raw = perception.DetectRequest(
        source_id="s", capture_time_us=1, model="m",
        frame=perception.Frame(raw=perception.RawFrame(width=1, height=1, rgb=b"abc")),
    )  # fmt: skip
    return [
        oip.ServerLiveRequest(), oip.ServerReadyRequest(), oip.ModelReadyRequest(name="m"), oip.ServerMetadataRequest(),
        oip.ModelMetadataRequest(name="m"), infer, oip.ModelConfigRequest(name="m"), oip.ModelStatisticsRequest(name="m"),
        oip.RepositoryIndexRequest(), load, unload, oip.SystemSharedMemoryStatusRequest(name="r"),
        oip.SystemSharedMemoryRegisterRequest(name="r", key="/k", byte_size=8), oip.SystemSharedMemoryUnregisterRequest(name="r"),
        oip.CudaSharedMemoryStatusRequest(name="r"), oip.CudaSharedMemoryRegisterRequest(name="r", raw_handle=b"h", byte_size=8),
        oip.CudaSharedMemoryUnregisterRequest(name="r"), trace, log, encoded, raw, perception.WatchRequest(source_id="s"),
        models.ListModelsRequest(), models.GetModelRequest(name="m"), models.ActivateVersionRequest(name="m", version=1, reason="r"),
        audit.CheckpointRequest(log=audit.LOG_GATEWAY), audit.RotateKeyRequest(log=audit.LOG_GATEWAY, reason="r"),
        audit.SearchRequest(log=audit.LOG_SIDECAR, trace_id="0" * 32, model="m", event_ids=[1001], tenant="t", page_size=1, page_token="p"),
        audit.GetRequest(position="gateway/1"), audit.ProveRequest(position="gateway/1"),
        audit.VerifyRangeRequest(log=audit.LOG_GATEWAY, trusted_keys=["k"]),
        models.ReloadModelRequest(name="m", reason="r"), safety.GetRequest(), safety.WatchRequest(subjects=["sidecar"]),
    ]  # fmt: skip


def copy_of(message: Message) -> Message:
    twin = type(message)()
    twin.CopyFrom(message)
    return twin


def scalars(kind: str, rules: Any) -> Iterator[tuple[str, Any, bool]]:
    """Values at and beyond each limit: (label, value, whether it is valid)."""
    one = getattr(rules, kind)
    if kind in ("string", "bytes"):
        fill, wide = ("a", "é") if kind == "string" else (b"a", b"\xff")
        if one.HasField("max_len") and one.max_len <= SIZE_MAX:
            yield "max_len", fill * one.max_len, True
            yield "max_len_wide", wide * one.max_len, True
            yield "above_max_len", fill * (one.max_len + 1), False
            yield "far_above_max_len", wide * (one.max_len * 2 + 1), False
        if one.HasField("min_len"):
            yield "min_len", fill * max(1, one.min_len), True
            yield "empty", fill * 0, one.min_len == 0
        if kind == "string":
            for label, text in (("newline", "a\n"), ("slash", "../a"), ("space", " "), ("null", "a\0b"), ("emoji", "\U0001f600")):
                # a pattern of the contract is one of hex digits so far: none of these fits it
                yield label, text, not one.HasField("pattern") and not (one.HasField("min_len") and one.min_len > len(text))
        return
    step = 0.25 if kind in ("float", "double") else 1
    for name, inside, outside in (("gt", step, 0), ("gte", 0, -step), ("lt", -step, 0), ("lte", 0, step)):
        if one.HasField(name):
            limit = getattr(one, name)
            yield f"{name}_inside", limit + inside, True
            if limit + outside >= 0 or not kind.startswith("u"):
                yield f"{name}_outside", limit + outside, False


def places(message: Message, path: str = "") -> Iterator[tuple[list[Any], str]]:
    """Every nested message that is set, as (steps to it, its path)."""
    yield [], path
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for key in value:
                    for steps, inner in places(value[key], f"{path}{field.name}[{key}]."):
                        yield [(field.name, key), *steps], inner
        elif field.is_repeated:
            for steps, inner in places(value[0], f"{path}{field.name}[0]."):
                yield [(field.name, 0), *steps], inner
        else:
            for steps, inner in places(value, f"{path}{field.name}."):
                yield [(field.name, None), *steps], inner


def walk(message: Any, steps: list[Any]) -> Any:
    for name, key in steps:
        message = getattr(message, name) if key is None else getattr(message, name)[key]
    return message


def cases_of(base: Message) -> Iterator[Case]:
    kind = base.DESCRIPTOR.name
    yield f"{kind}-valid", base, []
    for steps, path in places(base):
        target = walk(base, steps)
        for field in target.DESCRIPTOR.fields:
            rules = field.GetOptions().Extensions[validate_pb2.rules]
            label = f"{kind}-{path.replace('[', '_').replace(']', '')}{field.name}"
            yield from field_cases(base, steps, path, field, rules, label)


def field_cases(base: Message, steps: list[Any], path: str, field: Any, rules: Any, label: str) -> Iterator[Case]:
    """Messages for one field's rules."""
    here = path + field.name
    which = rules.WhichOneof("type")
    if field.message_type is not None and rules.message.required:
        twin = copy_of(base)
        walk(twin, steps).ClearField(field.name)
        yield f"{label}-missing", twin, [here]
    if which == "repeated":
        items = rules.repeated.items
        if field.message_type is None and rules.repeated.HasField("max_items") and rules.repeated.max_items <= 4096:
            value: Any = {"string": "a", "bytes": b"a"}.get(field_kind(field), 1)
            for extra, violated in ((0, []), (1, [here])):
                twin = copy_of(base)
                if field.name == "shape" or field.name == "subjects" or field.name == "raw_input_contents" or field.name == "value":
                    del getattr(walk(twin, steps), field.name)[:]
                    getattr(walk(twin, steps), field.name).extend([value] * (rules.repeated.max_items + extra))
                    yield f"{label}-items{extra}", twin, violated
        if rules.repeated.HasField("items") and field.message_type is None and getattr(walk(base, steps), field.name):
            for name, item, good in scalars("string", items):
                twin = copy_of(base)
                getattr(walk(twin, steps), field.name)[0] = item
                yield f"{label}-item_{name}", twin, [] if good else [here + "[0]"]
        return
    if which == "map":
        for extra, violated in ((0, []), (1, [here])):
            twin = copy_of(base)
            entries = getattr(walk(twin, steps), field.name)
            missing = rules.map.max_pairs + extra - len(entries)
            for i in range(missing):
                entries[f"k{i}"].SetInParent()
            yield f"{label}-pairs{extra}", twin, violated
        return
    if which in ("string", "bytes", "float", "double", "int32", "int64", "uint32", "uint64"):
        target = walk(base, steps)
        oneof = field.containing_oneof
        if oneof is not None and target.WhichOneof(oneof.name) != field.name:
            return
        for name, value, good in scalars(which, rules):
            twin = copy_of(base)
            setattr(walk(twin, steps), field.name, value)
            yield f"{label}-{name}", twin, [] if good else [here]


def field_kind(field: Any) -> str:
    return {field.TYPE_STRING: "string", field.TYPE_BYTES: "bytes"}.get(field.type, "number")


def hand_written() -> Iterator[Case]:
    """Edges that no rule's limit gives."""
    nan = perception.DetectRequest(source_id="s", capture_time_us=1, model="m", frame=perception.Frame(encoded=b"x"))
    for label, value, good in (
        ("nan", float("nan"), True),
        ("inf", float("inf"), False),
        ("minus_inf", float("-inf"), False),
        ("minus_zero", -0.0, True),
    ):
        twin = copy_of(nan)
        twin.min_confidence = value
        yield f"hand-confidence_{label}", twin, [] if good else ["min_confidence"]
    yield "hand-everything_wrong", perception.DetectRequest(min_confidence=2, request_id="r" * 129), [
        "source_id", "capture_time_us", "frame", "model", "min_confidence", "request_id"]  # fmt: skip
    yield (
        "hand-frame_without_content",
        perception.DetectRequest(source_id="s", capture_time_us=1, model="m", frame=perception.Frame()),
        ["frame.content"],
    )
    yield "hand-empty_infer", oip.ModelInferRequest(), ["model_name"]
    deep = oip.ModelInferRequest(model_name="m")
    for i in range(3):
        tensor = deep.inputs.add(name="" if i == 1 else "x", datatype="FP32" if i != 2 else "")
        tensor.parameters["p"].string_param = "v"
    yield "hand-second_and_third_input", deep, ["inputs[1].name", "inputs[2].datatype"]
    yield (
        "hand-negative_time",
        perception.DetectRequest(source_id="s", capture_time_us=-1, model="m", frame=perception.Frame(encoded=b"x")),
        ["capture_time_us"],
    )
    yield (
        "hand-shapes_are_semantic",
        oip.ModelInferRequest(model_name="m", inputs=[oip.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[-5])]),
        [],
    )
    big = perception.DetectRequest(source_id="s", capture_time_us=1, model="m")
    big.frame.raw.width, big.frame.raw.height, big.frame.raw.rgb = 2**32 - 1, 0, b""
    yield "hand-raw_frame_all_wrong", big, ["frame.raw.width", "frame.raw.height", "frame.raw.rgb"]


def main() -> int:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    seen: set[str] = set()
    count = 0
    for case in [c for m in valid_messages() for c in cases_of(m)] + list(hand_written()):
        label, message, violated = case
        while label in seen:
            label += "_2"
        seen.add(label)
        head = f"# message: {message.DESCRIPTOR.full_name}\n# violated: {' '.join(violated)}\n"
        (FOLDER / f"{label}.txtpb").write_text(head + text_format.MessageToString(message, as_utf8=True), encoding="utf-8")
        count += 1
    print(f"{count} messages")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
