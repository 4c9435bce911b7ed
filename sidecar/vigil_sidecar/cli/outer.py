"""The watchdogs outside: systemd's notify socket (sd_notify(3)) and a watchdog device (Documentation/watchdog/watchdog-api.rst)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

__all__ = ["OuterWatch"]

_DEVICE_GAP_S = 1.0
"""Between two signs of life for a device; the kernel's own default is a minute, boards have down to a few seconds."""


class OuterWatch:
    """Tells whoever watches the supervisor that it lives. One thread calls.

    ``alive`` is to be called often; it passes on what is due. When the calls stop, the
    watchers outside act by themselves: systemd restarts the unit, a device the machine.
    """

    def __init__(self, environment: Mapping[str, str], device: str, say: Callable[[str], None]) -> None:
        """``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` are systemd's. Raises ``OSError`` when the device cannot be opened."""
        self._say = say
        self._socket: socket.socket | None = None
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address[:1] in ("/", "@"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        microseconds, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
        meant = pid in ("", str(os.getpid()))
        self._gap_s = int(microseconds) / 2e6 if microseconds.isdigit() and int(microseconds) and meant else 0.0
        self._notified_s = self._fed_s = float("-inf")
        self._device = os.open(device, os.O_WRONLY | os.O_CLOEXEC) if device else -1

    def _notify(self, text: str) -> None:
        if self._socket is None:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            self._socket.sendto(text.encode(), address)
        except OSError as error:  # the watcher decides what a missing word means
            self._say(f"NOTIFY_SOCKET: {error.strerror}")

    def ready(self) -> None:
        """The service is up."""
        self._notify("READY=1\nSTATUS=ready")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._notify(f"STATUS={text}")

    def stopping(self) -> None:
        """The service ends in order."""
        self._notify("STOPPING=1\nSTATUS=stopping")

    def alive(self) -> None:
        """Everything under the supervisor is supervised and answers."""
        now_s = time.monotonic()
        if self._gap_s and now_s - self._notified_s >= self._gap_s:
            self._notified_s = now_s
            self._notify("WATCHDOG=1")
        if self._device >= 0 and now_s - self._fed_s >= _DEVICE_GAP_S:
            self._fed_s = now_s
            self._feed(b"1")

    def _feed(self, sign: bytes) -> None:
        try:
            os.write(self._device, sign)
        except OSError as error:  # it bites soon: that is what it is for
            self._say(f"supervisor.watchdog_device: {error.strerror}")

    def close(self, orderly: bool) -> None:
        """Let go of the device: after an orderly end it is told to stop (magic close), else it bites."""
        if self._device >= 0:
            if orderly:
                # SR-041
                self._feed(b"V")
            os.close(self._device)
            self._device = -1
        if self._socket is not None:
            self._socket.close()
            self._socket = None
