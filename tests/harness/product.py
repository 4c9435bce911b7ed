"""The real product as a user starts it: ``vigil up`` with its own folders and free ports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from tests.harness.account import account
from tests.harness.replies import Replies
from tests.harness.seen import note_seen
from tests.harness.syscalls import SystemCalls
from vigil_safety.replay import replay
from vigil_safety.table import machine_source
from vigil_sidecar.cli.safety import read_states

__all__ = ["ROOT", "Product", "wait_for"]

ROOT = Path(__file__).resolve().parents[2]
TARGETED = {
    ("safety", "status"),
    ("safety", "inject"),
    ("safety", "watch"),
    ("safety", "history"),
    ("safety", "reset"),
    ("audit", "checkpoint"),
    ("audit", "rotate-key"),
}
"""Verbs that ask a running gateway, beside whole groups of them."""
VIGIL = [sys.executable, "-m", "vigil_sidecar.cli.main"]


def wait_for(condition: Any, timeout_s: float = 20.0, what: str = "condition", every_s: float = 0.01) -> Any:
    """Wait until the condition gives something true, and return it."""
    end = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(every_s)


class Product:
    """One running product. Use as a context manager; ``stop`` returns the supervisor's exit code."""

    def __init__(
        self, folder: Path, settings: dict[str, Any] | None = None, start_timeout_s: float = 60.0, calls: SystemCalls | None = None
    ) -> None:
        self.folder, self.models, self.data = folder, folder / "models", folder / "var"
        self.models.mkdir(parents=True, exist_ok=True)
        self.settings, self._timeout_s, self._calls = settings or {}, start_timeout_s, calls
        self.ports: dict[str, int] = {}
        self.replies = Replies()
        self.accounted = True
        """Hold all replies against the logs at the end; False where a test takes records away."""
        self.process: subprocess.Popen[bytes] | None = None
        self.output = folder / "up.out"
        self.log = folder / "up.err"

    def start(self, wait: bool = True) -> Product:
        """Start and wait until it is ready."""
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        command = [*VIGIL, "up", "--models", str(self.models), "--data-dir", str(self.data), "--ready-file", str(ready)]
        for name in ("grpc", "http", "metrics", "sidecar-grpc", "sidecar-metrics"):
            command += [f"--{name}-port", "0"]
        for key, value in self.settings.items():
            command += ["--set", f"{key}={value}"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("VIGIL_")}
        with self.output.open("ab") as out, self.log.open("ab") as err:
            launcher, passed = (self._calls.launcher, self._calls.passed) if self._calls else ([], ())
            self.process = subprocess.Popen(
                launcher + command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, pass_fds=passed
            )
        if wait:
            wait_for(lambda: ready.exists() or self.process.poll() is not None, self._timeout_s, "ready file")
            if not ready.exists():
                raise AssertionError(f"did not start: {self.log.read_text()[-2000:]}{self.output.read_text()[-500:]}")
            self.ports = json.loads(ready.read_text())
        return self

    def pids(self) -> dict[str, int]:
        """Present process ids, from the ready file (written anew after a restart)."""
        return json.loads((self.folder / "ready.json").read_text())

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def __enter__(self) -> Product:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()
        note_seen(self.data / "audit")
        if kind is None:
            self.replayed()
        if kind is None and self.accounted and (self.replies.positions or self.replies.missing):
            found = account(self.data / "audit", self.replies.positions)
            assert found.wrong == [] and self.replies.missing == [], (found.wrong[:10], self.replies.missing[:10])

    def replayed(self) -> int:
        """Hold every recorded change of state against the table; returns how many there are."""
        count = 0
        for log in ("gateway", "sidecar"):
            if list((self.data / "audit" / log).glob("segment-*")):
                found = list(replay(machine_source(), read_states(self.data / "audit" / log)))
                wrong = [(r.place, r.subject, reason) for r, reason in found if reason]
                assert wrong == [], wrong[:5]
                count += len(found)
        return count

    def channel(self, port: str = "grpc") -> grpc.Channel:
        """A channel to the gateway, or to another port by its name."""
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        return self.replies.through(grpc.insecure_channel(f"127.0.0.1:{self.ports[port]}", options=options))

    def vigil(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command-line tool against this product."""
        command = [*VIGIL, *arguments]
        if arguments[0] in ("models", "infer", "detect") or arguments[:2] in TARGETED:
            command += ["--target", f"127.0.0.1:{self.ports['grpc']}"]
        else:
            command += ["--data-dir", str(self.data)]
        return subprocess.run(command, capture_output=True, text=True, check=check, timeout=120)

    def listed(self, model: str) -> dict[str, Any]:
        """One model as ``vigil models list --json`` tells it."""
        for m in json.loads(self.vigil("models", "list", "--json").stdout):
            if m["name"] == model:
                return m
        return {"name": model, "serving_version": 0, "versions": []}

    def auditverify(self) -> list[dict[str, Any]]:
        """Reports of the Go verifier on both logs, with both public keys trusted."""
        keys = [x for log in ("gateway", "sidecar") for x in ("--key", str(self.data / "keys" / f"audit-{log}.pub"))]
        folders = [str(self.data / "audit" / "gateway"), str(self.data / "audit" / "sidecar")]
        done = subprocess.run([str(ROOT / "bin" / "auditverify"), "--json", *keys, *folders], capture_output=True, text=True)
        return [json.loads(line) for line in done.stdout.splitlines()]
