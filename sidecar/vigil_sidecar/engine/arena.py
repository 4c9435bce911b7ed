"""One arena for the memory of all graphs, which takes what is asked for and can be trimmed.

ONNX Runtime's own arenas, one a session, double what they take. One request that is too large has such an arena reserve
all that is left, and what a large one took stays until its session ends. Here every session uses one that this
process registered (``session.use_env_allocators``; OrtArenaCfg in onnxruntime_c_api.h).
"""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
import onnxruntime as ort

__all__ = ["TRIM_BYTES", "prepare", "session_options", "trim"]

TRIM_BYTES = 32 << 20
"""After a run whose outputs have so many bytes the arena is trimmed: to hash and to copy them takes longer."""
_SAME_AS_REQUESTED = 1
_IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a00100d"
)
"""y = x, one number of FP32 (onnx.proto): to trim, something must be run."""
_trimming = threading.Lock()


def session_options() -> Any:
    """Options of a session that uses the arena."""
    _register()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


@lru_cache(1)
def _register() -> None:
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    configuration = {
        "max_mem": 0, "arena_extend_strategy": _SAME_AS_REQUESTED, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1,
    }  # fmt: skip
    ort.create_and_register_allocator(info, ort.OrtArenaCfg(configuration))


@lru_cache(1)
def _trimmer() -> tuple[Any, Any, dict[str, Any]]:
    """A session, the options of a run that trims, and its input."""
    run = ort.RunOptions()
    run.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    one = {"x": np.zeros(1, np.float32)}
    session = ort.InferenceSession(_IDENTITY, session_options(), providers=["CPUExecutionProvider"])
    session.run(None, one)  # what the arena takes first it never gives back
    return session, run, one


def prepare() -> None:
    """Have the arena begin with something small. Before any other session, or a large model's first memory is kept."""
    with _trimming:
        _trimmer()


def trim() -> None:
    """Give what the arena holds and nobody uses back to the system. Any thread, beside running sessions; 0.05 to some ms.

    Never raises: it is called where memory is short, and what was answered before it stands.
    """
    with _trimming, suppress(Exception):
        session, run, one = _trimmer()
        session.run(None, one, run)
