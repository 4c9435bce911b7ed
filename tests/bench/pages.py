"""What open pages cost those who are served: a row of ``make bench``."""

from __future__ import annotations

import selectors
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigil.live.v1 import live_pb2 as live

from tests.harness import graphs
from tests.harness.calls import Stub, infer_request
from tests.harness.product import Product
from tests.harness.swaps import X

if TYPE_CHECKING:
    from tests.bench.run import Table

__all__ = ["OpenPages", "pages"]

PAGES = 20


class OpenPages:
    """Streams as pages have them: gRPC-Web over HTTP/1.1, one connection each, everything that comes read and thrown away."""

    def __init__(self, port: int, count: int) -> None:
        self.bytes = 0
        self._selector, self._end = selectors.DefaultSelector(), threading.Event()
        body = live.WatchRequest().SerializeToString()
        framed = bytes(1) + len(body).to_bytes(4, "big") + body
        head = (
            f"POST /vigil.live.v1.LiveService/Watch HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/grpc-web+proto\r\n"
            f"X-Grpc-Web: 1\r\nContent-Length: {len(framed)}\r\n\r\n"
        )
        self._sockets = []
        for _ in range(count):
            opened = socket.create_connection(("127.0.0.1", port))
            opened.sendall(head.encode() + framed)
            self._selector.register(opened, selectors.EVENT_READ)
            self._sockets.append(opened)
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        while not self._end.is_set():
            for key, _ in self._selector.select(0.2):
                data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                assert data, "the gateway ended a page's stream"
                self.bytes += len(data)

    def __enter__(self) -> OpenPages:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end.set()
        self._thread.join()
        for opened in self._sockets:
            opened.close()


def pages(table: Table, out: Path, load: Callable[..., dict[str, Any]], rounds: Callable[..., Any], ratio: Callable[..., float]) -> None:
    """Answers a second with 20 open pages, to those with none; rounds with and without in turn."""
    folder = out / "pages"
    shutil.rmtree(folder, ignore_errors=True)
    product = Product(folder)
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        request = infer_request("m", {"x": X}).SerializeToString()
        check = Stub(product.channel()).models()["m"].serving_digest.encode()
        read: list[int] = []

        def alone() -> dict[str, Any]:
            return load(product.ports["grpc"], request, 32, check)

        def beside() -> dict[str, Any]:
            with OpenPages(product.ports["http"], PAGES) as opened:
                result = load(product.ports["grpc"], request, 32, check)
            read.append(opened.bytes)
            return result

        without, with_pages = rounds(alone, beside)
        assert min(read) > PAGES * 1000, "the pages got nothing"
        shown = {"alone": [round(r["per_second"]) for r in without], "beside": [round(r["per_second"]) for r in with_pages], "read": read}
        table.add(f"beside {PAGES} open pages / without", ratio(with_pages, without), 0.97, shown)
