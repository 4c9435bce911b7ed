"""Lifelines: files whose closing tells the gateway at once that this process ends.

The kernel frees a killed process's memory before it closes its files, which takes 5 to 50 ms
for a sidecar with models; but a thread that is not the last gives up at once what is its own.
So threads of no other use hold a FIFO each, in a table of files of their own (unshare(2),
CLONE_FILES). Of two, one is never the last.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import threading
from pathlib import Path

__all__ = ["LIFELINES", "hold_lifelines"]

LIFELINES = 2
_CLONE_FILES = 0x400
_FIRST_FD = 3
_START_TIMEOUT_S = 5.0


def hold_lifelines(folder: Path) -> list[str]:
    """Make the FIFOs ``sidecar.life0``, ... in a folder and hold them until the process ends; their names.

    Raises ``OSError`` where a thread may not have files of its own (some containers forbid unshare).
    Call it once in a process.
    """
    paths = [folder / f"sidecar.life{i}" for i in range(LIFELINES)]
    for path in paths:
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
    errors: list[OSError] = []
    collecting = gc.isenabled()
    gc.disable()  # an object that is destroyed by such a thread would close a file of this table, not of the process's
    try:
        for path in paths:
            held = threading.Event()
            threading.Thread(target=_hold, args=(os.fsencode(path), held, errors), name=path.name, daemon=True).start()
            if not held.wait(_START_TIMEOUT_S):
                raise OSError(f"{path.name} could not be held within {_START_TIMEOUT_S} s")
    finally:
        if collecting:
            gc.enable()
    if errors:
        raise errors[0]
    return [path.name for path in paths]


def _hold(path: bytes, held: threading.Event, errors: list[OSError]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # or a signal for the process would end the pause
    pause = libc.pause  # looked up before: nothing may be allocated, and so collected, once these files are ours
    if libc.unshare(_CLONE_FILES) != 0:
        number = ctypes.get_errno()
        errors.append(OSError(number, f"a thread with files of its own: {os.strerror(number)}"))
        held.set()
        return
    # SR-053
    os.closerange(_FIRST_FD, os.sysconf("SC_OPEN_MAX"))  # what the process closes must not stay open here
    try:
        os.open(path, os.O_RDWR)  # both ends, so that it does not wait for a reader
    except OSError as error:
        errors.append(error)
    held.set()
    while True:
        pause()
