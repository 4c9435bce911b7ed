"""Verbs that ask a running gateway."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import numpy as np
from google.protobuf import json_format, text_format
from inference import grpc_service_pb2 as oip
from inference.model_config_pb2 import ModelConfig
from vigil.models.v1 import models_pb2 as models
from vigil.perception.v1 import perception_pb2 as perception

from vigil_sidecar.cli.client import connect
from vigil_sidecar.cli.pictures import draw
from vigil_sidecar.engine.datatypes import NUMPY, decode_bytes, encode_bytes
from vigil_sidecar.errors import CommandFailed

__all__ = [
    "detect",
    "infer",
    "models_activate",
    "models_config",
    "models_list",
    "models_load",
    "models_reload",
    "models_show",
    "models_unload",
    "when",
]

_MODELS = "/vigil.models.v1.ModelsService/"
_TYPES = {dtype: name for name, dtype in NUMPY.items()}


def when(us: int) -> str:
    """Microseconds since 1970 as a UTC time."""
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="milliseconds") if us else ""


def _model(m: models.Model) -> dict[str, Any]:
    return {
        "name": m.name,
        "serving_version": m.serving_version,
        "versions": [
            {
                "version": v.version, "digest": v.digest, "state": models.VersionState.Name(v.state)[14:].lower(),
                "reason": v.reason, "since": when(v.since_us),
            }
            for v in m.versions
        ],
    }  # fmt: skip


def _print_models(found: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
        return
    print(f"{'MODEL':24} {'VERSION':>8} {'STATE':9} {'DIGEST':12} SINCE / REASON")
    for m in found:
        for v in m["versions"]:
            print(f"{m['name']:24} {v['version']:>8} {v['state']:9} {v['digest'][:12]:12} {v['since']} {v['reason']}")
        if not m["versions"]:
            print(f"{m['name']:24} {'-':>8}")


def models_list(args: argparse.Namespace) -> int:
    """vigil models list"""
    reply, _ = connect(args).call(_MODELS + "ListModels", models.ListModelsRequest(), models.ListModelsResponse)
    _print_models([_model(m) for m in reply.models], args.json)
    return 0


def models_show(args: argparse.Namespace) -> int:
    """vigil models show NAME"""
    reply, _ = connect(args).call(_MODELS + "GetModel", models.GetModelRequest(name=args.name), models.GetModelResponse)
    m = reply.model
    shown = _model(m) | {
        "serving_digest": m.serving_digest, "generation": m.generation, "max_batch_size": m.max_batch_size,
        "batch_difference": m.batch_difference, "runs_inline": m.runs_inline, "providers": list(m.providers),
        "pipeline": m.pipeline, "safety_state": m.safety_state, "safety_reason": m.safety_reason,
        "inputs": [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in m.inputs],
        "outputs": [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in m.outputs],
    }  # fmt: skip
    if args.json:
        print(json.dumps(shown))
        return 0
    for key, value in shown.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            print(f"{key}:")
            for item in value:
                print("  " + "  ".join(f"{k} {v}" for k, v in item.items() if v != ""))
        else:
            print(f"{key}: {value}")
    return 0


def models_config(args: argparse.Namespace) -> int:
    """vigil models config NAME"""
    request = oip.ModelConfigRequest(name=args.name, version=str(args.version or ""))
    reply, _ = connect(args).call("/inference.GRPCInferenceService/ModelConfig", request, oip.ModelConfigResponse)
    if args.json:
        print(json_format.MessageToJson(reply.config, preserving_proto_field_name=True))
    else:
        print(text_format.MessageToString(reply.config), end="")
    return 0


def models_activate(args: argparse.Namespace) -> int:
    """vigil models activate NAME VERSION"""
    request = models.ActivateVersionRequest(name=args.name, version=args.version, reason=args.reason)
    reply, _ = connect(args).call(_MODELS + "ActivateVersion", request, models.ActivateVersionResponse)
    _print_models([_model(reply.model)], args.json)
    return 0


def models_reload(args: argparse.Namespace) -> int:
    """vigil models reload NAME"""
    request = models.ReloadModelRequest(name=args.name, reason=args.reason)
    reply, _ = connect(args).call(_MODELS + "ReloadModel", request, models.ReloadModelResponse)
    _print_models([_model(reply.model)], args.json)
    return 0


def models_load(args: argparse.Namespace) -> int:
    """vigil models load NAME"""
    request = oip.RepositoryModelLoadRequest(model_name=args.name)
    if args.override is not None:
        try:
            config = text_format.Parse(args.override.read_text(), ModelConfig())
        except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
            raise CommandFailed(f"--override {args.override}: {error}") from None
        request.parameters["config"].string_param = json_format.MessageToJson(config)
    client = connect(args)
    client.call("/inference.GRPCInferenceService/RepositoryModelLoad", request, oip.RepositoryModelLoadResponse)
    reply, _ = client.call(_MODELS + "GetModel", models.GetModelRequest(name=args.name), models.GetModelResponse)
    _print_models([_model(reply.model)], args.json)
    return 0


def models_unload(args: argparse.Namespace) -> int:
    """vigil models unload NAME"""
    request = oip.RepositoryModelUnloadRequest(model_name=args.name)
    connect(args).call("/inference.GRPCInferenceService/RepositoryModelUnload", request, oip.RepositoryModelUnloadResponse)
    print(json.dumps({"unloaded": args.name}) if args.json else f"{args.name} is unloaded")
    return 0


def infer(args: argparse.Namespace) -> int:
    """vigil infer NAME --input NAME=FILE.npy"""
    request = oip.ModelInferRequest(model_name=args.name, model_version=args.version or "")
    for pair in args.input:
        name, mark, file = pair.partition("=")
        if not mark:
            raise CommandFailed(f"--input {pair}: needs NAME=FILE.npy")
        try:
            array = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise CommandFailed(f"--input {pair}: {error}; give a file written by numpy.save") from None
        if not isinstance(array, np.ndarray):
            raise CommandFailed(f"--input {pair}: it holds several arrays; give a file written by numpy.save")
        if array.dtype.kind in "US":
            datatype, raw = "BYTES", encode_bytes([str(x) for x in array.ravel().tolist()])
        else:
            array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            datatype, raw = _TYPES.get(array.dtype, str(array.dtype)), array.tobytes()
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(raw)
    reply, beside = connect(args).call("/inference.GRPCInferenceService/ModelInfer", request, oip.ModelInferResponse)
    outputs = []
    for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True):
        shape = tuple(output.shape)
        if output.datatype == "BYTES":
            array = np.array(decode_bytes(raw, int(np.prod(shape)), output.name)).reshape(shape)
        else:
            array = np.frombuffer(raw, NUMPY[output.datatype]).reshape(shape)
        file = None
        if args.output_dir:
            file = str(args.output_dir / f"{output.name.replace('/', '_')}.npy")
            try:
                args.output_dir.mkdir(parents=True, exist_ok=True)
                np.save(file, array)
            except OSError as error:
                raise CommandFailed(f"--output-dir {args.output_dir}: {error.strerror}") from None
        outputs.append({"name": output.name, "datatype": output.datatype, "shape": list(shape), "file": file, "array": array})
    shown = {
        "model": reply.model_name, "version": reply.model_version,
        "digest": reply.parameters["vigil_model_digest"].string_param, **{k.replace("-", "_"): v for k, v in beside.items()},
    }  # fmt: skip
    if args.json:
        listed = [{k: v for k, v in o.items() if k != "array"} | ({} if o["file"] else {"data": o["array"].tolist()}) for o in outputs]
        print(json.dumps(shown | {"outputs": listed}))
        return 0
    print("  ".join(f"{k} {v}" for k, v in shown.items()))
    for o in outputs:
        print(f"{o['name']} {o['datatype']} {o['shape']} {o['file'] or ''}")
        if not o["file"]:
            print(np.array2string(o["array"], threshold=32))
    return 0


def detect(args: argparse.Namespace) -> int:
    """vigil detect IMAGE... --model NAME"""
    client = connect(args)
    results: list[dict[str, Any]] = []
    source = args.source or f"vigil-detect-{os.getpid()}"
    stems = Counter(image.stem for image in args.image)
    for number, image in enumerate(args.image):
        try:
            data = image.read_bytes()
        except OSError as error:
            raise CommandFailed(f"{image}: {error.strerror}") from None
        request = perception.DetectRequest(
            source_id=source, capture_time_us=time.time_ns() // 1000, model=args.model, min_confidence=args.min_confidence,
            frame=perception.Frame(encoded=data),
        )  # fmt: skip
        reply, beside = client.call("/vigil.perception.v1.PerceptionService/Detect", request, perception.DetectResponse)
        o = reply.output
        target = None
        if args.out:
            one_of_several = f"-{number + 1}" if stems[image.stem] > 1 else ""
            target = args.out / f"{image.stem}{one_of_several}-{args.model}.png"
            try:
                draw(image, o, target)
            except OSError as error:
                raise CommandFailed(f"--out {args.out}: {error.strerror or error}") from None
        boxes = [
            {
                "x_min": b.x_min, "y_min": b.y_min, "x_max": b.x_max, "y_max": b.y_max,
                "confidence": b.confidence, "label": b.label,
            }
            for b in o.boxes
        ]  # fmt: skip
        results.append(
            {
                "image": str(image), "model": o.model, "version": o.model_version, "digest": o.model_digest,
                "width": o.frame_width, "height": o.frame_height, "boxes": boxes, "picture": str(target) if target else None,
                "trace_id": o.trace_id, "audit_position": beside.get("vigil-audit-position", ""),
            }
        )  # fmt: skip
    if args.json:
        print(json.dumps(results))
        return 0
    for r in results:
        best = max((b["confidence"] for b in r["boxes"]), default=0.0)
        print(
            f"{r['image']}: {len(r['boxes'])} boxes, best {best:.2f}, {r['model']} v{r['version']} {r['digest'][:12]} {r['picture'] or ''}"
        )
    return 0
