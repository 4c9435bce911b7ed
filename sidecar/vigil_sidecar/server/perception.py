"""PerceptionService: frames in, boxes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from vigil.perception.v1.perception_pb2 import (
    QUALITY_KIND_NORMAL,
    QUALITY_KIND_RULE,
    Box,
    DetectRequest,
    DetectResponse,
    ListSourcesRequest,
    ListSourcesResponse,
    WatchRequest,
    WatchResponse,
)

from vigil_sidecar.audit.tensor_hash import frame_hash, tensor_hash
from vigil_sidecar.batching.job import Job, JobResult
from vigil_sidecar.engine.datatypes import encode_bytes
from vigil_sidecar.errors import Forbidden, OutputViolation, SemanticViolation
from vigil_sidecar.pipelines.catalogue import make_pipeline
from vigil_sidecar.pipelines.detection import DetectedBox, DetectionPipeline, check_boxes
from vigil_sidecar.pipelines.frames import FrameDecoder
from vigil_sidecar.registry.version import LoadedVersion
from vigil_sidecar.server.call import Call, Reply
from vigil_sidecar.server.open_inference import check_output, check_shape
from vigil_sidecar.streams.sources import SourceOrder, WatchHub

__all__ = ["Perception", "boxes_hash"]

Array = np.ndarray[Any, Any]
_WAIT_S = 0.25
_SOURCES_TOLD = 256


def boxes_hash(boxes: Sequence[DetectedBox]) -> bytes:
    """Output hash of a typed answer: see docs/audit-format.md, "Typed perception"."""
    corners = np.array([(b.x_min, b.y_min, b.x_max, b.y_max, b.confidence) for b in boxes], "<f4").reshape(-1, 5)
    points = [p for b in boxes for p in (*b.quadrilateral, *b.landmarks)]
    coordinates = np.array(points, "<f4").reshape(-1, 2)
    labels = encode_bytes([b.label for b in boxes])
    return tensor_hash(
        [
            ("boxes", "FP32", corners.shape, corners.tobytes()),
            ("labels", "BYTES", (len(boxes),), labels),
            ("points", "FP32", coordinates.shape, coordinates.tobytes()),
        ]
    )


class _Finish:
    """Boxes of one frame, checked, and the answer once the audit position is known."""

    __slots__ = ("call", "height", "hub", "pipeline", "request", "version", "width")

    def __init__(
        self, call: Call, request: DetectRequest, version: LoadedVersion, pipeline: DetectionPipeline,
        size: tuple[int, int], hub: WatchHub,
    ) -> None:  # fmt: skip
        self.call, self.request, self.version, self.pipeline, self.hub = call, request, version, pipeline, hub
        self.width, self.height = size

    def __call__(self, arrays: Sequence[Array]) -> JobResult:
        version = self.version
        for name, array in zip(version.outputs, arrays, strict=True):
            check_shape(name, array.shape, version)
            check_output(name, array, version)
        try:
            boxes = self.pipeline.boxes(arrays, self.width, self.height, self.request.min_confidence)
            check_boxes(boxes, self.width, self.height)
        except (ValueError, IndexError, TypeError, ArithmeticError) as error:
            raise OutputViolation(f"the outputs of model '{version.model}' are not of the pipeline's form: {error}") from None
        return JobResult(boxes_hash(boxes), lambda position: self._encode(boxes, position))

    def _encode(self, boxes: Sequence[DetectedBox], position: str) -> bytes:
        request, version = self.request, self.version
        response = DetectResponse()
        output = response.output
        output.source_id, output.capture_time_us = request.source_id, request.capture_time_us
        output.confidence = max((b.confidence for b in boxes), default=0.0)
        output.frame_width, output.frame_height = self.width, self.height
        output.model, output.model_version, output.model_digest = version.model, version.text, version.digest
        output.quality.kind = QUALITY_KIND_NORMAL
        if self.call.context.stands_for:
            output.quality.kind, output.quality.source = QUALITY_KIND_RULE, f"model {version.model}"
        output.trace_id = self.call.context.trace_id.hex()
        if position:
            log, boot, sequence = position.split("/")
            output.audit_position.log, output.audit_position.boot = log, boot
            output.audit_position.sequence = int(sequence)
        for b in boxes:
            box = Box(
                x_min=b.x_min, y_min=b.y_min, x_max=b.x_max, y_max=b.y_max, confidence=b.confidence, label=b.label
            )  # fmt: skip
            for x, y in b.quadrilateral:
                box.quadrilateral.add(x=x, y=y)
            for x, y in b.landmarks:
                box.landmarks.add(x=x, y=y)
            output.boxes.append(box)
        key = (self.call.context.tenant, request.source_id)
        self.hub.publish(key, (output, None))
        self.hub.publish((*key, "frames"), (output, request.frame))
        return response.SerializeToString()


class Perception:
    """Jobs for Detect, and streams for Watch. Any thread may call."""

    def __init__(self, decoder: FrameDecoder, order: SourceOrder, hub: WatchHub, frame_bytes_max: int, frames_remote: bool) -> None:
        """A picture larger than ``frame_bytes_max`` is left out of what watchers get; ``frames_remote``: who is not local gets them too."""
        self._decoder, self._order, self._hub = decoder, order, hub
        self._frame_bytes_max, self._frames_remote = frame_bytes_max, frames_remote

    def job(self, call: Call, request: DetectRequest, version: LoadedVersion) -> Job:
        """A checked job of one frame."""
        options = version.options
        if options.pipeline is None:
            text = f"model '{version.model}' has no pipeline; call ModelInfer, or set [pipeline] in its vigil.toml"
            raise SemanticViolation(text, [("model", "has no pipeline")])
        if not 0 <= request.min_confidence <= 1:  # NaN passes the contract's range rule in both languages
            text = f"min_confidence is {request.min_confidence}, allowed is 0..1"
            raise SemanticViolation(text, [("min_confidence", text)])
        pipeline = make_pipeline(options.pipeline, options.pipeline_options)
        pipeline.check(version.session.contract)
        frame = request.frame
        if frame.WhichOneof("content") == "raw":
            data = frame.raw.rgb
            image = self._decoder.raw(frame.raw.width, frame.raw.height, data)
        else:
            data = frame.encoded
            image = self._decoder.decode(data)
        self._order.accept(call.context.tenant, request.source_id, request.capture_time_us, request.request_id, call.context.asked_before)
        feeds = pipeline.prepare(image)
        height, width = image.shape[:2]
        names = tuple(version.outputs)
        key = (version, names, tuple((n, feeds[n].shape[1:]) for n in sorted(feeds)))
        rows = 1 if version.max_batch_size > 0 else 0
        finish = _Finish(call, request, version, pipeline, (width, height), self._hub)
        hashed = frame_hash(data, request.capture_time_us, request.source_id)
        return Job(call, version, rows, names, key, hashed, request.request_id, finish, request.source_id, feeds)

    def watch(self, call: Call, request: WatchRequest) -> None:
        """Send outputs of a source until the caller goes or the deadline passes; with pictures only the latest waits for a slow reader."""
        if request.frames and not (call.context.local or self._frames_remote):
            raise Forbidden("pictures are given on loopback listeners only (setting perception.frames_remote)")
        key: tuple[str, ...] = (call.context.tenant, request.source_id)
        if request.frames:
            key = (*key, "frames")
        subscription = self._hub.subscribe(key, 1 if request.frames else 0)
        call.on_cancel = subscription.close
        try:
            while not call.cancelled and not call.expired():
                item = subscription.get(_WAIT_S)
                if item is not None:
                    (output, frame), dropped = item
                    message = WatchResponse(output=output, dropped=dropped)
                    if frame is not None and frame.ByteSize() <= self._frame_bytes_max:
                        message.frame.CopyFrom(frame)
                    call.reply(call, Reply(message=message.SerializeToString(), more=True))
        finally:
            self._hub.unsubscribe(key, subscription)

    def sources(self, request: ListSourcesRequest, call: Call) -> ListSourcesResponse:
        """The sources of the caller's tenant."""
        response = ListSourcesResponse()
        for name, capture_time_us, idle_s in self._order.known(call.context.tenant, _SOURCES_TOLD):
            response.sources.add(source_id=name, capture_time_us=capture_time_us, idle_ms=max(0, round(idle_s * 1000)))
        return response
