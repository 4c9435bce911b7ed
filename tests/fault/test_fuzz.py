"""Random and hostile requests at every door of the gateway: nothing breaks, and every reply has its record."""

from __future__ import annotations

import gzip
import http.client
import json
import random
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from google.protobuf.message import Message
from inference import grpc_service_pb2 as oip
from vigil.audit.v1 import service_pb2 as audit_pb2
from vigil.models.v1 import models_pb2
from vigil.perception.v1 import perception_pb2
from vigil.safety.v1 import safety_pb2

from tests.harness import graphs
from tests.harness.account import account
from tests.harness.calls import Stub, infer_request, output
from tests.harness.product import ROOT, Product, wait_for
from vigil_safety import events_gen as events
from vigil_sidecar.audit.reader import read_records

X = np.array([[1, 2, 3, 4]], np.float32)
CORPUS = ROOT / "tests" / "conformance" / "corpus"
MODULES = (oip, audit_pb2, models_pb2, perception_pb2, safety_pb2)
SHORT, LONG = 4000, 60000
STREAMS = {"ModelStreamInfer", "Watch", "VerifyRange"}
POSITION = "vigil-audit-position"


def methods() -> dict[str, list[str]]:
    """Full names of all methods by the full name of their request."""
    found: dict[str, list[str]] = {}
    for module in MODULES:
        for service in module.DESCRIPTOR.services_by_name.values():
            for m in service.methods:
                found.setdefault(m.input_type.full_name, []).append(f"/{service.full_name}/{m.name}")
    return found


def corpus() -> list[tuple[list[str], bytes]]:
    """Messages of the shared corpus as bytes, with the methods that take them."""
    by_request, out = methods(), []
    for file in sorted(CORPUS.glob("*.txtpb")):
        lines = file.read_text().splitlines()
        package, name = lines[0].removeprefix("# message: ").rsplit(".", 1)
        message: Message = next(getattr(m, name) for m in MODULES if m.DESCRIPTOR.package == package)()
        text_format.Parse("\n".join(lines[2:]), message)
        out.append((by_request[f"{package}.{name}"], message.SerializeToString()))
    good = infer_request("m", {"x": X}).SerializeToString()
    return out + [(by_request["inference.ModelInferRequest"], good)] * (len(out) // 4)


class Fuzz:
    """Sends, and notes what came back."""

    def __init__(self, product: Product, seed: int) -> None:
        self.product, self.random = product, random.Random(seed)
        self.corpus, self.names = corpus(), [n for ns in methods().values() for n in ns]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{product.ports['grpc']}")
        self.unanswered = 0
        self.replies: list[tuple[str, str]] = []
        self.without: list[str] = []
        self.codes: Counter[str] = Counter()

    def damaged(self, data: bytes) -> bytes:
        """The bytes as they are, or with random faults."""
        r, out = self.random, bytearray(data)
        for _ in range(r.choice((0, 0, 0, 1, 1, 3, 20))):
            kind = r.randrange(5)
            at = r.randrange(len(out) + 1)
            if kind == 0 and out:
                out[at % len(out)] ^= 1 << r.randrange(8)
            elif kind == 1:
                out[at:at] = r.randbytes(r.choice((1, 4, 200)))
            elif kind == 2:
                del out[at : at + r.choice((1, 8, 100))]
            elif kind == 3:
                out[at:at] = out[at // 2 : at]
            else:
                out[at:at] = bytes([r.choice((0xFF, 0x80, 0x7F, 0x0A, 0x00))]) * r.choice((1, 10))
        return bytes(out)

    def trace(self) -> str:
        r = self.random
        good = f"00-{r.randbytes(16).hex()}-{r.randbytes(8).hex()}-0{r.randrange(2)}"
        return r.choice((good, good, "", "00-0-0-0", "ff-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 300))

    def one(self) -> None:
        """One request at one door."""
        taken_by, data = self.random.choice(self.corpus)
        name = self.random.choice(taken_by) if self.random.random() < 0.9 else self.random.choice((*self.names, "/a.B/C", "/", "/x"))
        data = self.damaged(data)
        if self.random.random() < 0.6:
            self.native(name, data)
        else:
            self.web(name, data)

    def native(self, name: str, data: bytes) -> None:
        r = self.random
        timeout = r.choice((20, 20, 20, 20, 0.0005, 0.005))
        streamed = name.rsplit("/", 1)[-1] in STREAMS
        metadata = [("traceparent", self.trace()), ("vigil-tenant", r.choice(("", "t", "x" * 500)))]
        try:
            if streamed:
                stream = self.channel.unary_stream(name)(data, timeout=min(timeout, 1.0), metadata=metadata)
                for _ in stream:
                    break
                stream.cancel()
                self.unanswered += 1  # it may have been refused meanwhile, with a record
                return
            future = self.channel.unary_unary(name).future(data, timeout=timeout, metadata=metadata)
            if r.random() < 0.05:
                future.cancel()
            future.result()
            self.note(name, "OK", dict(future.trailing_metadata()))
        except grpc.FutureCancelledError:
            self.unanswered += 1
        except grpc.RpcError as error:
            self.note(name, error.code().name, dict(error.trailing_metadata() or ()))

    def note(self, name: str, code: str, beside: dict[str, Any]) -> None:
        self.codes[code] += 1
        if POSITION in beside:
            self.replies.append((beside[POSITION], code))
        elif code == "OK" or (code == "DEADLINE_EXCEEDED" and name.rsplit("/", 1)[-1] in STREAMS):
            return  # a stream that lasted until its caller's deadline: it is no call, those in it have their records
        elif "vigil-safety-state" in beside or code in ("UNKNOWN", "INTERNAL", "DATA_LOSS"):
            self.without.append(f"{name}: {code}")
        else:  # made up by the client's own library: deadline, cancelled, a path that it does not send
            self.unanswered += 1

    def web(self, name: str, data: bytes) -> None:
        r = self.random
        kind = r.choice(
            ("application/proto", "application/json", "application/grpc-web+proto", "application/connect+proto", "text/plain", "")
        )
        if kind == "application/json":
            data = r.choice(
                (data, b"{}", b"{", b'{"modelName":"m"}', json.dumps({"modelName": "m", "id": "i" * r.choice((1, 257))}).encode())
            )
        elif "grpc-web" in kind or "connect" in kind:
            data = bytes([r.choice((0, 0, 0, 1, 0x80))]) + struct.pack(">I", r.choice((len(data), len(data), 5, 1 << 31))) + data
        headers = {"Content-Type": kind, "traceparent": self.trace()}
        if r.random() < 0.1:
            headers["Content-Encoding"] = r.choice(("gzip", "br", "identity"))
            data = gzip.compress(data) if r.random() < 0.5 else data
        connection = http.client.HTTPConnection("127.0.0.1", self.product.ports["http"], timeout=2)
        try:
            connection.request("POST", name, data, headers)
            answer = connection.getresponse()
            body = answer.read() if name.rsplit("/", 1)[-1] not in STREAMS else b""
        except (TimeoutError, http.client.HTTPException, ConnectionError):
            self.unanswered += 1
            return
        finally:
            connection.close()
        self.codes[f"HTTP {answer.status}"] += 1
        beside = {k.lower().removeprefix("trailer-"): v for k, v in answer.getheaders()}
        if POSITION not in beside and (at := body.find(b"vigil-audit-position: ")) >= 0:
            beside[POSITION] = body[at:].split(b": ", 1)[1].split(b"\r")[0].decode()
        if POSITION in beside:
            self.replies.append((beside[POSITION], ""))
        elif name.rsplit("/", 1)[-1] in STREAMS:
            self.unanswered += 1
        elif answer.status != 200:
            self.without.append(f"{name} {kind}: HTTP {answer.status} {body[:80]!r}")


def run(folder: Path, count: int, seed: int) -> None:
    settings = {"audit.refusals_per_s": 1000000, "limits.calls_in_flight_max": 64, "audit.read_timeout_s": 5, "audit.readers_max": 4}
    with Product(folder, settings) as product:
        graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
        stub = Stub(product.channel())
        wait_for(lambda: "m" in stub.models() and stub.models()["m"].serving_version == 1, 20, "m serves")
        before, fuzz = product.pids(), Fuzz(product, seed)
        for _ in range(count):
            fuzz.one()
        assert product.pids() == before, "a process was restarted"
        assert np.array_equal(output(stub.infer(infer_request("m", {"x": X}))), X * 2)
        assert product.stop() == 0
        text = product.log.read_text()
        assert "Traceback" not in text and "panic" not in text and "internal error" not in text
        found = account(product.data / "audit", fuzz.replies)
        print(f"\n{count} requests, seed {seed}: {dict(fuzz.codes)}, {fuzz.unanswered} without a reply; {found.recorded} recorded")
        assert fuzz.without == [] and found.wrong == []
        assert found.recorded + found.aggregated.total() == len(fuzz.replies) > count / 2
        surplus = found.final - found.recorded - 1  # the last one asked if all is well
        assert 0 <= surplus <= fuzz.unanswered, "records of calls that nobody made"
        assert not {"UNKNOWN", "DATA_LOSS"} & fuzz.codes.keys()
        for log in ("gateway", "sidecar"):  # INTERNAL is right for a model whose output is not finite
            assert not [r for r in read_records(product.data / "audit" / log) if r.header.event_id == events.INTERNAL_ERROR]
        assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "HTTP 200", "HTTP 400"} <= fuzz.codes.keys()


def test_random_requests(tmp_path: Path) -> None:
    """A few thousand requests over native gRPC, Connect and gRPC-Web, by all methods, most of them damaged."""
    run(tmp_path, SHORT, 20261125)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_random_requests(tmp_path: Path) -> None:
    """The same for longer, with seeds that were never tried."""
    run(tmp_path, LONG, random.randrange(1 << 30))
