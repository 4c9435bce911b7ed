"""Holding, failing and answering real system calls of a running product, without privileges.

A launcher puts a seccomp filter before the product's processes that asks this
process about each write, each force to disk and each look at the clock's quality
(seccomp_unotify(2), Linux 5.5). ``SystemCalls`` answers: let it through, keep it
waiting, fail it with an errno, or say how good the clock is. The product and its
kernel are real; only that answer is late, bad or another one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import socket
import struct
import sys
import threading
from types import TracebackType

__all__ = ["SystemCalls"]

_NUMBERS = {
    "x86_64": {"pwrite64": 18, "fsync": 74, "fdatasync": 75, "fallocate": 285, "adjtimex": 159, "clock_adjtime": 305},
    "aarch64": {"pwrite64": 68, "fsync": 82, "fdatasync": 83, "fallocate": 47, "adjtimex": 171, "clock_adjtime": 266},
}[platform.machine()]
_DISK = ("pwrite64", "fsync", "fdatasync", "fallocate")
_SECCOMP = {"x86_64": 317, "aarch64": 277}[platform.machine()]
_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[platform.machine()]
_TIMEX_MAXERROR, _TIMEX_STATUS = 24, 40
_RECEIVE, _ANSWER, _CONTINUE = 0xC0502100, 0xC0182101, 1
_NOTIFICATION, _RESPONSE = struct.Struct("<QIIiIQ6Q"), struct.Struct("<QqiI")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _install() -> int:
    """Put the filter before this process and its children; return the listener."""
    allow, ask = 0x7FFF0000, 0x7FC00000
    numbers = list(_NUMBERS.values())
    code = [(0x20, 0, 0, 4), (0x15, 0, len(numbers) + 1, _ARCH), (0x20, 0, 0, 0)]
    code += [(0x15, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    code += [(0x06, 0, 0, allow), (0x06, 0, 0, ask)]
    buffer = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *c) for c in code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    program = _Program(len(code), ctypes.addressof(buffer))
    listener = libc.syscall(_SECCOMP, 1, 1 << 3, ctypes.byref(program))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp user notification")
    return int(listener)


class SystemCalls:
    """Answers the questions of one product's filter. Use as a context manager."""

    def __init__(self) -> None:
        self._here, self._there = socket.socketpair()
        self._there.set_inheritable(True)
        self._lock = threading.Lock()
        self._rule: tuple[str, frozenset[str], int] | None = None
        self._held: list[int] = []
        self._clock: tuple[int, int] | None = None
        self._listener = -1
        self._over = threading.Event()
        self.touched = 0
        """How many calls were held or failed."""

    @property
    def launcher(self) -> list[str]:
        """What to put before a command."""
        return [sys.executable, "-m", "tests.harness.syscalls", str(self._there.fileno())]

    @property
    def passed(self) -> tuple[int, ...]:
        """File descriptors that the command must inherit."""
        return (self._there.fileno(),)

    def __enter__(self) -> SystemCalls:
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
        self._over.set()
        self._there.close()
        self._thread.join(10)
        self._here.close()

    def hold(self, path: str, *names: str) -> None:
        """Keep calls waiting, from now on, on files whose path has this part."""
        self._set((path, frozenset(names or _DISK), 0))

    def fail(self, path: str, error: int, *names: str) -> None:
        """Fail calls, from now on, on files whose path has this part."""
        self._set((path, frozenset(names or _DISK), error))

    def clock(self, status: int, maxerror_us: int) -> None:
        """Let the kernel's clock have this status and bound of its error (adjtimex(2)), from now on."""
        with self._lock:
            self._clock = status, maxerror_us

    def release(self) -> None:
        """Let everything through, the held ones too."""
        self._set(None)

    def _set(self, rule: tuple[str, frozenset[str], int] | None) -> None:
        with self._lock:
            self._rule, held = rule, self._held
            self._held = []
        for one in held:
            self._answer(one, 0)

    def _answer(self, question: int, error: int) -> None:
        response = _RESPONSE.pack(question, 0, -error, 0 if error else _CONTINUE)
        try:
            fcntl.ioctl(self._listener, _ANSWER, response)
        except OSError as problem:
            if problem.errno not in (errno.ENOENT, errno.EINPROGRESS):  # its process was killed meanwhile
                raise

    def _listen(self) -> None:
        _, descriptors, _, _ = socket.recv_fds(self._here, 1, 1)
        if not descriptors:
            return
        self._listener = descriptors[0]
        names = {number: name for name, number in _NUMBERS.items()}
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while not self._over.is_set():
            events = poll.poll(200)
            if not events:
                continue
            if not events[0][1] & select.POLLIN:
                break  # the last process is gone
            question = bytearray(_NOTIFICATION.size)
            try:
                fcntl.ioctl(self._listener, _RECEIVE, question, True)
            except OSError as problem:
                if problem.errno in (errno.ENOENT, errno.EINTR):
                    continue
                raise
            number, pid, _, call, _, _, *arguments = _NOTIFICATION.unpack(question)
            if names[call] in ("adjtimex", "clock_adjtime"):
                self._tell_clock(number, pid, arguments[names[call] == "clock_adjtime"])
            else:
                self._decide(number, pid, names[call], arguments[0])
        os.close(self._listener)

    def _tell_clock(self, question: int, pid: int, address: int) -> None:
        with self._lock:
            clock = self._clock
        if clock is None:
            self._answer(question, 0)
            return
        with open(f"/proc/{pid}/mem", "r+b", 0) as memory:
            for offset, form, value in ((_TIMEX_MAXERROR, "<q", clock[1]), (_TIMEX_STATUS, "<i", clock[0])):
                memory.seek(address + offset)
                memory.write(struct.pack(form, value))
        fcntl.ioctl(self._listener, _ANSWER, _RESPONSE.pack(question, 0, 0, 0))

    def _decide(self, question: int, pid: int, name: str, descriptor: int) -> None:
        try:
            path = os.readlink(f"/proc/{pid}/fd/{descriptor & 0xFFFFFFFF}")
        except OSError:
            path = ""
        with self._lock:
            rule = self._rule
            hit = rule is not None and rule[0] in path and name in rule[1]
            self.touched += hit
            if hit and rule is not None and not rule[2]:
                self._held.append(question)
                return
        self._answer(question, rule[2] if hit and rule is not None else 0)


def main() -> None:
    """``python -m tests.harness.syscalls FD COMMAND…``: filter, hand over the listener, become the command."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    socket.send_fds(channel, [b"x"], [_install()])
    channel.close()
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
