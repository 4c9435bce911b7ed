"""``vigil up``: gateway and sidecar under a small supervisor."""

from __future__ import annotations

import ctypes
import fcntl
import http.client
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vigil_sidecar.cli.outer import OuterWatch
from vigil_sidecar.errors import CommandFailed
from vigil_sidecar.settings_gen import Settings

__all__ = ["Supervisor", "gateway_binary"]

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.01
_STOP_S = 5.0
_STABLE_S = 0.2
_BACKOFF_MAX_S = 5.0


def gateway_binary() -> str:
    """Path of vigil-gateway: beside this installation, or on PATH."""
    for folder in (Path(sys.prefix).parent / "bin", Path(sys.prefix) / "bin", *map(Path, os.get_exec_path())):
        candidate = folder / "vigil-gateway"
        if os.access(candidate, os.X_OK):
            return str(candidate)
    raise CommandFailed("vigil-gateway was not found; run `make setup`, or put it on PATH")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class _Child:
    """One process with its restarts."""

    def __init__(self, name: str, command: Callable[[], list[str]], environment: dict[str, str]) -> None:
        self.name, self._command, self._environment = name, command, environment
        self.process: subprocess.Popen[bytes] | None = None
        self.restarts: deque[float] = deque()
        self.due = 0.0

    def start(self) -> None:
        """Start the process; its log goes to our stderr."""
        # A group of its own: Ctrl-C reaches the supervisor alone, which stops both in order.
        self.process = subprocess.Popen(
            self._command(), stdin=subprocess.DEVNULL, env=self._environment, preexec_fn=_die_with_parent, process_group=0
        )

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    def exited(self) -> int | None:
        """Exit status once it has ended."""
        return self.process.poll() if self.process else None


class Supervisor:
    """Starts both, restarts with back-off and a limit, passes signals on, says each change in one line."""

    def __init__(self, settings: Settings, flags: dict[str, str], config: Path | None, ready_file: Path | None) -> None:
        self._settings, self._ready_file = settings, ready_file
        self._run = Path(settings.data_dir) / "run"
        self._flags, self._config = dict(flags), config
        self._stopping = False
        self._ready = False
        self._ports: dict[str, int] = {}
        self._heard_s = time.monotonic()
        self._asks: http.client.HTTPConnection | None = None
        self._listening = False
        """The gateway that runs now has its ports; until then it is starting."""
        environment = os.environ.copy()
        gateway, sidecar = gateway_binary(), [sys.executable, "-m", "vigil_sidecar.cli.main", "sidecar"]
        self._children = [
            _Child("sidecar", lambda: [*sidecar, *self._arguments()], environment),
            _Child("gateway", lambda: [gateway, *self._arguments()], environment),
        ]

    def _arguments(self) -> list[str]:
        arguments = ["--config", str(self._config)] if self._config else []
        for key, value in self._flags.items():
            arguments += ["--set", f"{key}={value}"]
        return arguments

    def _say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}.{int(time.time() * 1000) % 1000:03d} {text}", flush=True)

    def _signalled(self, number: int, _frame: Any) -> None:
        self._stopping = True

    def run(self) -> int:
        """Serve until a signal (0) or until restarts are used up (1)."""
        signal.signal(signal.SIGTERM, self._signalled)
        signal.signal(signal.SIGINT, self._signalled)
        try:
            self._run.mkdir(parents=True, exist_ok=True)
            self._lock_fd = os.open(self._run / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in ("gateway.json", "sidecar.json"):
                (self._run / name).unlink(missing_ok=True)
            if self._ready_file is not None:
                self._ready_file.unlink(missing_ok=True)
            if self._ready_file is not None and not self._ready_file.parent.is_dir():
                raise CommandFailed(f"--ready-file {self._ready_file}: there is no folder {self._ready_file.parent}")
        except BlockingIOError:
            raise CommandFailed(f"{self._run}: another `vigil up` runs there; stop it, or give --data-dir another folder") from None
        except OSError as error:
            raise CommandFailed(f"{self._run}: {error.strerror}; give --data-dir a folder that can be written") from None
        try:
            self._outer = OuterWatch(os.environ, self._settings.supervisor_watchdog_device, self._say)
        except OSError as error:
            device = self._settings.supervisor_watchdog_device
            raise CommandFailed(f"supervisor.watchdog_device = {device!r}: {error.strerror}") from None
        code = self._supervise()
        self._outer.stopping()
        self._stop()
        self._outer.close(orderly=code == 0)
        return code

    def _supervise(self) -> int:
        """Until a signal (0), or until restarts are used up (1)."""
        for child in self._children:
            child.start()
            self._say(f"{child.name} started, pid {child.pid}")
        deadline = time.monotonic() + self._settings.supervisor_start_timeout_s
        last_check = 0.0
        code = 0
        while not self._stopping:
            for child in self._children:
                if not self._watch(child):
                    code = 1
                    self._stopping = True
            now = time.monotonic()
            if now - last_check > (_STABLE_S if self._ready else 0.03):
                last_check = now
                self._check_ready()
            if not self._ports and now > deadline:
                self._say(f"not ready within {self._settings.supervisor_start_timeout_s} s (supervisor.start_timeout_s)")
                code, self._stopping = 1, True
            self._watch_gateway(now)
            time.sleep(_POLL_S)
        return code

    def _watch_gateway(self, now: float) -> None:
        """Pass on that all is supervised; a gateway that answers nothing is killed, and started again as any that ended."""
        gateway = self._children[1]
        silent_s = now - self._heard_s
        s = self._settings
        borne_s = s.supervisor_gateway_timeout_s if self._listening else s.supervisor_start_timeout_s
        if not self._ports or gateway.process is None or silent_s <= borne_s:
            self._outer.alive()
        elif gateway.exited() is None:
            why = f"answered no health check for {silent_s:.1f} s (supervisor.gateway_timeout_s)"
            if silent_s == math.inf:
                why = "says that a part of it stands still"
            self._say(f"gateway (pid {gateway.pid}) {why}; it is killed")
            # SR-040
            gateway.process.kill()
            self._heard_s = now

    def _watch(self, child: _Child) -> bool:
        """Restart a child that ended; False when it must not be restarted any more."""
        status = child.exited()
        if status is None:
            return True
        now = time.monotonic()
        s = self._settings
        if child.process is not None:
            how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"
            if status == 2 or (not self._ports and status == 1):
                self._say(f"{child.name} {how}; it cannot start, see its message")
                return False
            while child.restarts and now - child.restarts[0] > s.supervisor_restart_window_s:
                child.restarts.popleft()
            if len(child.restarts) >= s.supervisor_restart_count_max and child.name != "sidecar":  # that one the gateway stops safely
                self._say(
                    f"{child.name} {how}; {len(child.restarts)} restarts within {s.supervisor_restart_window_s} s "
                    "(supervisor.restart_count_max): giving up"
                )
                return False
            wait_s = min(_BACKOFF_MAX_S, s.supervisor_backoff_ms / 1000 * 2 ** min(16, len(child.restarts)))
            self._say(f"{child.name} {how}; restart {len(child.restarts) + 1} in {wait_s:.1f} s")
            child.restarts.append(now)
            child.due, child.process = now + wait_s, None
        return True

    def _restart_due(self) -> None:
        for child in self._children:
            if child.process is None and time.monotonic() >= child.due:
                child.start()
                self._heard_s = time.monotonic()
                self._say(f"{child.name} started, pid {child.pid}")

    def _health(self, port: int) -> bool:
        """One connection is kept: a listener whose places are all taken has none for a new one."""
        if self._asks is None or self._asks.port != port:
            self._hang_up()
            self._asks = http.client.HTTPConnection(self._settings.listen_host, port, timeout=1)
        try:
            self._asks.request("POST", "/grpc.health.v1.Health/Check", b"{}", {"Content-Type": "application/json"})
            answer = self._asks.getresponse()
            body = answer.read()
            if answer.status == http.HTTPStatus.SERVICE_UNAVAILABLE:  # its own supervision says that it has to be replaced
                self._heard_s = -math.inf
                return False
            self._heard_s = time.monotonic()
            return answer.status == 200 and json.loads(body).get("status") == "SERVING"
        except TimeoutError:
            self._hang_up()
            return False
        except (OSError, http.client.HTTPException, ValueError):
            self._heard_s = time.monotonic()  # whoever refuses a connection, or ends it, does not hang
            self._hang_up()
            return False

    def _hang_up(self) -> None:
        if self._asks is not None:
            self._asks.close()
            self._asks = None

    def _read(self, name: str) -> dict[str, int]:
        try:
            content: dict[str, int] = json.loads((self._run / name).read_text())
        except (OSError, ValueError):
            return {}
        return content

    def _check_ready(self) -> None:
        self._restart_due()
        gateway, sidecar = self._read("gateway.json"), self._read("sidecar.json")
        pids = [c.pid for c in self._children]
        self._listening = bool(pids[1]) and gateway.get("gateway_pid") == pids[1]
        serving = self._listening and self._health(gateway["http"])
        ready = serving and bool(pids[0]) and sidecar.get("sidecar_pid") == pids[0]
        if ready and (not self._ready or self._ports.get("sidecar_pid") != sidecar["sidecar_pid"]):
            self._ports = gateway | sidecar | {"supervisor_pid": os.getpid()}
            # A restarted process must come back under the port that clients know.
            self._flags |= {
                "listen.grpc_port": str(gateway["grpc"]), "listen.http_port": str(gateway["http"]),
                "listen.metrics_port": str(gateway["metrics"]), "listen.sidecar_grpc_port": str(sidecar["sidecar_grpc"]),
                "listen.sidecar_metrics_port": str(sidecar["sidecar_metrics"]),
            }  # fmt: skip
            self._write_ready()
            self._say(f"ready: grpc {gateway['grpc']}, http {gateway['http']}, metrics {gateway['metrics']}{self._page(gateway['http'])}")
            self._outer.ready()
        elif not ready and self._ready:
            self._say("not ready")
            self._outer.status("not ready")
        self._ready = ready

    def _page(self, port: int) -> str:
        """Where a person can look, as an address to click on."""
        host = self._settings.listen_host
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        return f"; look at http://{shown}:{port}/" if self._settings.web_page else ""

    def _write_ready(self) -> None:
        if self._ready_file is None:
            return
        temporary = self._ready_file.with_name(self._ready_file.name + ".partial")
        try:
            temporary.write_text(json.dumps(self._ports))
            temporary.rename(self._ready_file)
        except OSError as error:  # whoever waits for the file waits in vain, but nobody is served worse
            self._say(f"--ready-file {self._ready_file} cannot be written: {error.strerror}")

    def _stop(self) -> None:
        """Gateway first, so that it drains while the sidecar still answers."""
        for child in reversed(self._children):
            if child.process is None or child.exited() is not None:
                continue
            self._say(f"{child.name} is told to stop")
            child.process.send_signal(signal.SIGTERM)
            end = time.monotonic() + self._settings.gateway_drain_timeout_s + _STOP_S
            while child.exited() is None and time.monotonic() < end:
                self._outer.alive()
                time.sleep(_POLL_S)
            if child.exited() is None:
                self._say(f"{child.name} did not stop; it is killed")
                child.process.kill()
                child.process.wait()
        self._say("stopped")
