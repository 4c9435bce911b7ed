"""Who watches the supervisor: a real notify socket, a stand-in for a watchdog device, and hangs of everything under them."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import graphs
from tests.harness.calls import Stub
from tests.harness.product import Product, wait_for
from vigil_safety import events_gen as events
from vigil_sidecar.audit.reader import read_records

WATCHDOG_S = 0.6


class Notified:
    """A notify socket as systemd has it."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(0.05)
        self.came: list[tuple[float, str]] = []

    def read(self, seconds: float) -> list[str]:
        """What comes within a time."""
        end, found = time.monotonic() + seconds, list[str]()
        while time.monotonic() < end:
            try:
                found += self.socket.recv(4096).decode().split("\n")
            except TimeoutError:
                continue
            self.came += [(time.monotonic(), x) for x in found[-1:]]
        return found

    def until(self, line: str, seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while line not in self.read(0.1):
            assert time.monotonic() < end, f"no {line}"


@pytest.fixture(params=["path", "abstract"])
def notified(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notified]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@vigil-{os.getpid()}"
    found = Notified(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
    yield found
    found.socket.close()


def test_notify_socket(tmp_path: Path, notified: Notified) -> None:
    """READY when calls are served, a sign of life twice per watchdog time, STOPPING; none while the supervisor itself stands still."""
    product = Product(tmp_path)
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        notified.until("READY=1")
        Stub(product.channel()).models()
        signs = notified.read(5 * WATCHDOG_S).count("WATCHDOG=1")
        assert 3 <= signs <= 12
        supervisor = product.pids()["supervisor_pid"]
        os.kill(supervisor, signal.SIGSTOP)
        notified.read(0.2)
        assert notified.read(2 * WATCHDOG_S) == []
        os.kill(supervisor, signal.SIGCONT)
        notified.until("WATCHDOG=1")
        os.kill(product.pids()["sidecar_pid"], signal.SIGKILL)  # its restart is the supervisor's own work: the unit lives
        assert notified.read(3 * WATCHDOG_S).count("WATCHDOG=1") >= 3
        assert product.stop() == 0
        assert "STOPPING=1" in notified.read(0.3)


def test_a_watchdog_meant_for_another_process_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Notified(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    with Product(tmp_path):
        found.until("READY=1")
        assert "WATCHDOG=1" not in found.read(1.0)


def test_a_gateway_that_hangs_is_killed_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers no health check; service returns by itself."""
    found = Notified(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    product = Product(tmp_path, {"supervisor.gateway_timeout_s": 2})
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        before = product.pids()["gateway_pid"]
        os.kill(before, signal.SIGSTOP)
        wait_for(lambda: product.pids()["gateway_pid"] != before, 60, "another gateway")
        stub = Stub(product.channel())
        wait_for(lambda: stub.models()["m"].serving_version == 1, 20, "served again")
        assert "answered no health check" in product.output.read_text()
        assert "STATUS=not ready" in found.read(0.3)


def test_watchdog_device(tmp_path: Path) -> None:
    """Fed each second while all is supervised; told to stop at an orderly end, and not when the supervisor is killed."""
    device = tmp_path / "watchdog"
    device.write_bytes(b"")
    product = Product(tmp_path, {"supervisor.watchdog_device": device})
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        fed = len(device.read_bytes())
        time.sleep(3.2)
        assert 1 <= len(device.read_bytes()) - fed <= 5
        assert product.stop() == 0
    content = device.read_bytes()
    assert content.endswith(b"V") and set(content[:-1]) == set(b"1")
    device.write_bytes(b"")
    product.start()
    os.kill(product.pids()["supervisor_pid"], signal.SIGKILL)
    assert product.process is not None
    product.process.wait(10)
    assert set(device.read_bytes()) == set(b"1")


def test_a_device_that_cannot_be_opened(tmp_path: Path) -> None:
    product = Product(tmp_path, {"supervisor.watchdog_device": tmp_path / "none"})
    product.start(wait=False)
    assert product.process is not None and product.process.wait(20) == 1
    assert "supervisor.watchdog_device" in product.log.read_text() and "No such file" in product.log.read_text()


def test_a_sidecar_that_stands_still_before_its_greeting_is_replaced(tmp_path: Path) -> None:
    """It listens and answers nothing to a gateway that was started anew: nobody else would see it."""
    product = Product(tmp_path, {"supervisor.restart_after_ms": 500, "supervisor.backoff_ms": 0})
    product.accounted = False
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        before = product.pids()
        os.kill(before["sidecar_pid"], signal.SIGSTOP)
        os.kill(before["gateway_pid"], signal.SIGKILL)
        wait_for(lambda: product.pids()["sidecar_pid"] != before["sidecar_pid"], 60, "another sidecar")
        wait_for(lambda: Stub(product.channel()).models()["m"].serving_version == 1, 30, "served again")
        killed = [r for r in read_records(product.data / "audit" / "gateway") if r.header.event_id == events.SIDECAR_KILLED]
        assert killed and b"no greeting" in killed[-1].payload
