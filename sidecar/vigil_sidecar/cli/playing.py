"""vigil play: pictures of a folder as the frames of a source, at a steady pace."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from vigil.models.v1 import models_pb2 as models
from vigil.perception.v1 import perception_pb2 as perception

from vigil_sidecar.cli.client import Client, connect
from vigil_sidecar.errors import CommandFailed

__all__ = ["play"]

_SUFFIXES = (".jpg", ".jpeg", ".png")
_CALL_S = 10.0
_TOLD_S = 1.0


def _pictures(folder: Path) -> list[Path]:
    try:
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)
    except OSError as error:
        raise CommandFailed(f"{folder}: {error.strerror}") from None
    if not found:
        raise CommandFailed(f"{folder} has no picture ({', '.join(_SUFFIXES)})")
    return found


def _model(client: Client, name: str | None) -> str:
    """The model asked for, or the only one that takes pictures."""
    if name:
        return name
    reply, _ = client.call("/vigil.models.v1.ModelsService/ListModels", models.ListModelsRequest(), models.ListModelsResponse)
    able = [m.name for m in reply.models if m.pipeline != "tensor"]
    if len(able) != 1:
        raise CommandFailed(f"say which --model finds the boxes; those that take pictures: {', '.join(able) or 'none'}")
    return able[0]


def _paced(fps: float, count: int | None) -> Iterator[int]:
    """Frame numbers, each when it is due; a call that takes too long delays those after it, and none is sent twice."""
    due_s, number = time.monotonic(), 0
    while count is None or number < count:
        time.sleep(max(0.0, due_s - time.monotonic()))
        yield number
        number += 1
        due_s = max(due_s + 1 / fps, time.monotonic() - 1 / fps)


def _words(source: str, answered: int, degraded: int, failed: int) -> str:
    return f"{source}: {answered} answered, {degraded} by stand-ins, {failed} failed"


def play(args: argparse.Namespace) -> int:
    """vigil play FOLDER --source NAME --fps F: until interrupted, or --count frames are sent."""
    if not 0 < args.fps <= 1000:
        raise CommandFailed(f"--fps is {args.fps:g}, must be above 0 and at most 1000")
    if args.count is not None and args.count < 1:
        raise CommandFailed(f"--count is {args.count}, must be at least 1")
    client, pictures = connect(args), _pictures(args.folder)
    model = _model(client, args.model)
    answered, degraded, failed, last, began_s, told_s = 0, 0, 0, "", time.monotonic(), time.monotonic()
    quiet = args.json or not sys.stderr.isatty()
    try:
        for number in _paced(args.fps, args.count):
            picture = pictures[number % len(pictures)]
            try:
                data = picture.read_bytes()
                request = perception.DetectRequest(
                    source_id=args.source, capture_time_us=time.time_ns() // 1000, model=model, min_confidence=args.min_confidence,
                    frame=perception.Frame(encoded=data),
                )  # fmt: skip
                reply, _ = client.call("/vigil.perception.v1.PerceptionService/Detect", request, perception.DetectResponse, _CALL_S)
                answered += 1
                degraded += reply.output.quality.kind != perception.QUALITY_KIND_NORMAL
            except (CommandFailed, OSError) as error:  # a camera goes on, whatever becomes of a frame
                failed += 1
                if (why := str(error).partition(" [")[0]) != last:  # each has another trace behind it
                    last = why
                    print(f"{'' if quiet else chr(10)}vigil: {picture}: {error}", file=sys.stderr)
            now_s = time.monotonic()
            if not quiet and now_s - told_s >= _TOLD_S:
                told_s = now_s
                rate = (answered + failed) / (now_s - began_s)
                print(f"\r{_words(args.source, answered, degraded, failed)}, {rate:.1f} frames/s", end="", file=sys.stderr)
    except KeyboardInterrupt:
        pass
    took_s = max(time.monotonic() - began_s, 1e-9)
    told = {
        "source": args.source, "model": model, "answered": answered, "degraded": degraded, "failed": failed, "seconds": round(took_s, 3),
    }  # fmt: skip
    if not quiet:
        print(file=sys.stderr)
    print(json.dumps(told) if args.json else f"{_words(args.source, answered, degraded, failed)} in {took_s:.1f} s")
    return 0 if answered else 1
