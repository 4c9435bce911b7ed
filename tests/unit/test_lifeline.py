"""Lifelines: held in a table of files of their own, closed when the process ends, and nothing else is held by them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vigil_sidecar.server import lifeline

HOLDER = """
import socket, sys
from pathlib import Path
from vigil_sidecar.server.lifeline import hold_lifelines
ours, theirs = socket.socket(fileno=int(sys.argv[2])), None
print(*hold_lifelines(Path(sys.argv[1])), flush=True)
ours.close()
sys.stdin.read()
"""


def files_of(folder: Path) -> set[str]:
    return {os.readlink(f) for f in folder.iterdir() if f.is_symlink()}


def test_each_thread_holds_its_own_and_nothing_that_the_process_closes(tmp_path: Path) -> None:
    import socket

    here, there = socket.socketpair()
    with here, there:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), str(there.fileno())],
            pass_fds=[there.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        there.close()
        assert process.stdout is not None and process.stdin is not None
        names = process.stdout.readline().split()
        assert len(names) == lifeline.LIFELINES
        fifos = {str(tmp_path / name) for name in names}
        here.settimeout(10)
        assert here.recv(1) == b"", "a file that the process closed is held by a lifeline's thread"
        assert not fifos & files_of(Path(f"/proc/{process.pid}/fd")), "the process's own table holds a lifeline, so it closes late"
        held = [files_of(Path(f"/proc/{process.pid}/task/{t}/fd")) & fifos for t in os.listdir(f"/proc/{process.pid}/task")]
        assert sorted(len(h) for h in held if h) == [1] * len(names) and set().union(*held) == fifos
        readers = [os.open(f, os.O_RDONLY | os.O_NONBLOCK) for f in sorted(fifos)]
        assert select.select(readers, [], [], 0.1)[0] == [], "a lifeline ended although the process lives"
        process.send_signal(signal.SIGKILL)
        for reader in readers:
            assert select.select([reader], [], [], 10)[0] and os.read(reader, 1) == b""
            os.close(reader)
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_where_a_thread_may_not_have_its_own_files_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "_CLONE_FILES", 0x1)  # no such flag: refused as where unshare is forbidden
    with pytest.raises(OSError, match="a thread with files of its own: Invalid argument"):
        lifeline.hold_lifelines(tmp_path)
