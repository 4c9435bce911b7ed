"""A reverse proxy as one stands before an HMI: TLS, a path prefix, and, where a test wants it, nothing more heard."""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
import ipaddress
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["Doorway", "certificate", "fingerprint"]


def certificate(folder: Path) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = folder / "door.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


def fingerprint(pem: Path) -> str:
    """SHA-256 of a certificate's public key, in base64."""
    public = x509.load_pem_x509_certificate(pem.read_bytes()).public_key()
    form = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(form).digest()).decode()


class Doorway:
    """Passes ``http(s)://127.0.0.1:PORT/PREFIX/...`` on to a plain port, which may change; one request a connection."""

    def __init__(self, target: Callable[[], int], prefix: str = "", pem: Path | None = None) -> None:
        self._target, self._prefix = target, prefix.encode()
        self._context = None
        if pem is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(pem)
        self.port = 0
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        started.wait(10)

    def close(self) -> None:
        """Take no more connections, and drop those that are."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self, started: threading.Event) -> None:
        async def listen() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
            self.port = int(server.sockets[0].getsockname()[1])
            started.set()

        self._loop.run_until_complete(listen())
        self._loop.run_forever()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    @staticmethod
    async def _end() -> None:
        under_way = asyncio.all_tasks() - {asyncio.current_task()}
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            first, *headers = head[:-4].split(b"\r\n")
            method, path, version = first.split(b" ")
            if not path.startswith(self._prefix):
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                await writer.drain()
                return
            inner_reader, inner = await asyncio.open_connection("127.0.0.1", self._target())
            kept = [h for h in headers if not h.lower().startswith(b"connection:")]
            line = b" ".join((method, path[len(self._prefix) :] or b"/", version))
            inner.write(b"\r\n".join([line, *kept, b"Connection: close"]) + b"\r\n\r\n")
            up = asyncio.create_task(self._pass(reader, inner))
            await self._pass(inner_reader, writer)
            up.cancel()
            inner.close()
        except (OSError, asyncio.IncompleteReadError, ValueError):
            pass
        finally:
            writer.close()

    @staticmethod
    async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while part := await source.read(65536):
            target.write(part)
            await target.drain()
