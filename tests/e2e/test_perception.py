"""Detect and Watch with a real model and real pictures."""

from __future__ import annotations

import io
import shutil
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from vigil.perception.v1 import perception_pb2 as perception

from tests.harness.calls import DETECT, Stub, details
from tests.harness.product import ROOT, Product, wait_for
from tests.unit.test_pipelines import png
from vigil_sidecar.audit.tensor_hash import frame_hash
from vigil_sidecar.audit.verify import read_records

PICTURES = ROOT / "build" / "pictures"
FACE = (PICTURES / "astronaut.png").read_bytes()


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    running = Product(tmp_path_factory.mktemp("perception"))
    shutil.copytree(ROOT / "models" / "face-detection", running.models / "face-detection")
    with running:
        yield running


@pytest.fixture(scope="module")
def stub(product: Product) -> Stub:
    return Stub(product.channel())


def detect(stub: Stub, source: str, encoded: bytes = FACE, **fields: Any) -> Any:
    return stub.detect(source, "face-detection", perception.Frame(encoded=encoded), **fields)


def refused(stub: Stub, code: grpc.StatusCode, event: str, text: str, **call: Any) -> dict[str, Any]:
    with pytest.raises(grpc.RpcError) as error:
        detect(stub, **call)
    assert error.value.code() == code and text in error.value.details(), error.value.details()
    found = details(error.value)
    assert found["info"]["event"] == event
    return found


def test_face_with_everything_beside_it(product: Product, stub: Stub) -> None:
    """An output names frame size, version, digest, quality, trace and its record, whose input hash is the frame's."""
    now = time.time_ns() // 1000
    output = detect(stub, "cam-a", time_us=now)
    assert len(output.boxes) == 1 and output.boxes[0].label == "face" and len(output.boxes[0].landmarks) == 5
    assert output.confidence == output.boxes[0].confidence > 0.8
    assert (output.frame_width, output.frame_height) == (512, 512)
    assert output.quality.kind == perception.QUALITY_KIND_NORMAL
    assert len(output.trace_id) == 32 and len(output.model_digest) == 64
    position = output.audit_position
    record = next(r for r in read_records(product.data / "audit" / position.log) if r.header.sequence == position.sequence)
    assert record.header.boot_id.hex() == position.boot
    assert record.header.input_hash == frame_hash(FACE, now, "cam-a")
    assert record.header.output_hash != bytes(32)


def test_raw_frames_give_the_same_boxes(stub: Stub) -> None:
    """Raw RGB of the same picture finds the same face."""
    pixels = np.asarray(Image.open(PICTURES / "astronaut.png").convert("RGB"))
    raw = perception.Frame(raw=perception.RawFrame(width=512, height=512, rgb=pixels.tobytes()))
    a, b = detect(stub, "cam-raw"), stub.detect("cam-raw", "face-detection", raw)
    assert [round(v.x_min, 3) for v in a.boxes] == [round(v.x_min, 3) for v in b.boxes]


def test_time_must_increase_per_source(stub: Stub) -> None:
    """Time running backwards is refused; a retry is not; a bad stamp from the future does not lock the source out."""
    now = time.time_ns() // 1000
    detect(stub, "cam-b", time_us=now, request_id="r1")
    detect(stub, "cam-b", time_us=now, request_id="r1")
    for time_us in (now, now - 1):
        found = refused(stub, grpc.StatusCode.INVALID_ARGUMENT, "DIA-2046", "is not after", source="cam-b", time_us=time_us)
        assert found["fields"] == ["capture_time_us"]
    refused(
        stub, grpc.StatusCode.INVALID_ARGUMENT, "DIA-2046", "capture_skew_max_s", source="cam-b", time_us=now + 3600 * 10**6
    )  # fmt: skip
    detect(stub, "cam-b", time_us=now + 1000)


BROKEN = [
    ("broken", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "neither a JPEG nor a PNG"),
    ("bomb", png(60000, 60000), "8192 a side"),
    ("many pixels", png(8000, 8000), "limits.frame_pixels_max"),
    ("truncated", FACE[: len(FACE) // 2], "cannot be decoded"),
]


@pytest.mark.parametrize(("what", "data", "text"), BROKEN, ids=[b[0] for b in BROKEN])
def test_broken_pictures(stub: Stub, what: str, data: bytes, text: str) -> None:
    """Broken pictures and bombs are refused with the limit, do not use up the time, and hurt nobody."""
    now = time.time_ns() // 1000
    refused(stub, grpc.StatusCode.INVALID_ARGUMENT, "DIA-2054", text, source="cam-" + what, encoded=data, time_us=now)
    assert len(detect(stub, "cam-" + what, time_us=now).boxes) == 1


def test_rules_and_nan(stub: Stub) -> None:
    """A zero-size raw frame breaks the contract; NaN, which rules let through, is refused too."""
    with pytest.raises(grpc.RpcError) as error:
        stub.detect("c", "face-detection", perception.Frame(raw=perception.RawFrame(width=0, height=1, rgb=b"")))
    assert details(error.value)["fields"] == ["frame.raw.width", "frame.raw.rgb"]
    found = refused(stub, grpc.StatusCode.INVALID_ARGUMENT, "DIA-2041", "min_confidence", source="c", min_confidence=float("nan"))
    assert found["fields"] == ["min_confidence"]


def test_watch_sends_outputs_of_its_source(product: Product, stub: Stub) -> None:
    """A watcher gets each output of its source, in order, and no other's."""
    received: list[Any] = []
    call = stub.channel.unary_stream(
        "/vigil.perception.v1.PerceptionService/Watch",
        request_serializer=perception.WatchRequest.SerializeToString,
        response_deserializer=perception.WatchResponse.FromString,
    )(perception.WatchRequest(source_id="cam-w"), timeout=60)

    def read() -> None:
        try:
            received.extend(m.output.capture_time_us for m in call)
        except grpc.RpcError as error:
            received.append(error.code())

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.5)
    sent = []
    for _ in range(4):
        sent.append(detect(stub, "cam-w").capture_time_us)
        detect(stub, "cam-other")
    wait_for(lambda: len(received) == 4, 10, "all outputs")
    call.cancel()
    reader.join(10)
    assert received[:4] == sent and received[4:] == [grpc.StatusCode.CANCELLED]


def test_client_that_leaves_midway(product: Product, stub: Stub) -> None:
    """Calls whose clients disconnect leave nothing behind; the next good call works."""
    for _ in range(20):
        channel = product.channel()
        future = channel.unary_unary(DETECT)
        request = perception.DetectRequest(
            source_id="gone", capture_time_us=time.time_ns() // 1000, model="face-detection", frame=perception.Frame(encoded=FACE)
        )
        future.future(request.SerializeToString(), timeout=20)
        channel.close()
    assert len(detect(stub, "cam-after").boxes) == 1
    wait_for(lambda: "vigil_queue_depth 0" in metrics(product), 20, "no call is left in flight")


def metrics(product: Product) -> str:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{product.ports['metrics']}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def test_plausibility_limits_hold_for_boxes(product: Product, stub: Stub) -> None:
    """A graph's output beyond the model's limits gives no boxes, as it gives no tensors."""
    folder = product.models / "strict"
    shutil.copytree(ROOT / "models" / "face-detection", folder)
    (folder / "vigil.toml").write_text((folder / "vigil.toml").read_text().replace("[pipeline]", "output_max = 0.01\n[pipeline]", 1))
    wait_for(lambda: "strict" in stub.models() and stub.models()["strict"].serving_version == 1, 20, "strict")
    with pytest.raises(grpc.RpcError, match="the most plausible is 0\\.01") as error:
        stub.detect("cam-s", "strict", perception.Frame(encoded=FACE))
    assert details(error.value)["info"]["event"] == "DIA-2048"
    shutil.rmtree(folder)


def test_an_older_retry_is_no_violation(stub: Stub) -> None:
    """Of a source's latest frames each may be sent again under its request id, even after later ones."""
    now = time.time_ns() // 1000
    for i in range(3):
        detect(stub, "cam-retry", time_us=now + i, request_id=f"r{i}")
    assert detect(stub, "cam-retry", time_us=now, request_id="r0").capture_time_us == now
    refused(stub, grpc.StatusCode.INVALID_ARGUMENT, "DIA-2046", "is not after", source="cam-retry", time_us=now, request_id="other")


def test_a_slow_watcher_loses_the_oldest_and_is_told(stub: Stub) -> None:
    """A reader that stops reading is not cut off: it gets the latest outputs, and how many it missed."""
    call = stub.channel.unary_stream(
        "/vigil.perception.v1.PerceptionService/Watch",
        request_serializer=perception.WatchRequest.SerializeToString,
        response_deserializer=perception.WatchResponse.FromString,
    )(perception.WatchRequest(source_id="cam-slow"), timeout=120)
    packed = io.BytesIO()
    Image.new("RGB", (64, 64)).save(packed, "PNG")
    small = packed.getvalue()
    time.sleep(0.5)
    sent = [detect(stub, "cam-slow", small).capture_time_us for _ in range(700)]
    received, dropped = [], 0
    for message in call:
        received.append(message.output.capture_time_us)
        dropped += message.dropped
        if received[-1] == sent[-1]:
            break
    call.cancel()
    assert received == sorted(received) and len(received) + dropped == len(sent) and received[0] == sent[0], (len(received), dropped)
