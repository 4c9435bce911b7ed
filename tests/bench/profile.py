"""``make profile``: where the processor time of a small call goes in both processes, as flame graphs and as a budget.

The gateway's samples are its own (pprof), the sidecar's those of py-spy; the time of a call is what the
kernel counted of each process over the calls of the load, shared out by the samples.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.growth import DOUBLE, SMALL
from tests.bench.pictures import flame
from tests.bench.run import OUT, build, load, product
from tests.harness.product import ROOT

IN_FLIGHT = (1, 32, 256)
SECONDS, WARM_S = 8, 2
Stacks = Counter[tuple[str, ...]]
Steps = Sequence[tuple[str, str]]
"""Pairs of a pattern for a frame, and the step it belongs to; of a stack's frames the innermost that one matches decides."""

GATEWAY: Steps = (
    (r"rules\.", "rules: decode and check"),
    (r"link\.\(\*Client\)\.readAll|link\.\(\*frameReader\)", "link: replies in"),
    (r"internal/link\.", "link: calls out"),
    (r"internal/flow\.|internal/fair\.|internal/figures\.|internal/telemetry\.", "flow: admission, metrics, traces, trailers"),
    (r"loopyWriter", "HTTP/2 out"),
    (r"http2Server\)\.HandleStreams", "HTTP/2 in"),
    (r"grpc\.\(\*Server\)|internal/edge\.", "gRPC: the call and its metadata"),
    (r"runtime\.gcBgMarkWorker|runtime\.bgsweep|runtime\.bgscavenge", "collector"),
    (r"runtime\.(mcall|schedule|park_m|findRunnable|mstart|sysmon)", "scheduler"),
)
SIDECAR: Steps = (
    (r"FrameReader", "link: frames in"),
    (r"_Replies|encode_reply|replies_frame|Connection\.(send|put)|Connection\._send", "link: replies out"),
    (r"Recorder|AuditWriter\.append|AuditWriter\._append|AuditWriter\._commit|Processor\._entry", "record"),
    (r"Sealer|_sync_loop|build_index|Pruner|_record_anchors", "log: forced, sealed, indexed (own threads)"),
    (r"Session\.run", "ONNX Runtime"),
    (r"TensorForm\.answer|TensorForm\._answer", "answers: slices, output hashes, bytes"),
    (r"TensorForm\.stack|form_batches|run_batch|_run_alone|_feeds", "batches: formed, stacked, finite"),
    (r"InferForms|Processor\._prepare|Revalidation", "requests: recognised, input hashes"),
    (r"Sidecar\.(batch|begin|ended)|VersionStatistics|BatchStatistics", "statistics, metrics, safety"),
    (r"LinkServer\._take|Processor|Dispatcher", "calls: checked, taken, answered"),
    (r"_beat|supervis|_watch|_look|Condition\.wait|Event\.wait", "heartbeats and supervision"),
)


def _cpu_us(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1e4


def _short(frame: str) -> str:
    """A function's name as the last part of its package's path, but ours whole."""
    frame = frame.strip().removesuffix(" (inline)")
    return frame.removeprefix("vigil/gateway/") if frame.startswith("vigil/") else re.sub(r"^[^(]*/", "", frame)


def _gateway(metrics: int) -> Stacks:
    """The gateway's own samples over some seconds."""
    file = OUT / "gateway.pprof"
    url = f"http://127.0.0.1:{metrics}/debug/pprof/profile?seconds={SECONDS - 2 * WARM_S}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        file.write_bytes(answer.read())
    command = ["go", "tool", "pprof", "-traces", "-unit=ms", str(ROOT / "bin" / "vigil-gateway"), str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: Stacks = Counter()
    for block in text.split("-----------+")[1:]:
        lines = [line for line in block.splitlines()[1:] if not re.match(r" *[\w.]+: ", line)]  # without labels
        head = re.match(r" *([\d.]+)ms +(.*)", lines[0]) if lines else None
        if head is None:
            assert not "".join(lines).strip(), block
            continue
        frames = [_short(f) for f in (head[2], *lines[1:]) if f.strip()]
        found[tuple(reversed(frames))] += round(float(head[1]))
    return found


def _sidecar(pid: int) -> Stacks:
    """What py-spy sees of the sidecar's threads that run, over some seconds."""
    file = OUT / "sidecar.folded"
    command = [
        "py-spy", "record", "--pid", str(pid), "--duration", str(SECONDS - 2 * WARM_S), "--rate", "500", "--format", "raw",
        "--nonblocking", "--output", str(file),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"py-spy could not look at the sidecar (it needs root, or kernel.yama.ptrace_scope = 0): {done.stderr.strip()}")
    found: Stacks = Counter()
    for line in file.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [re.sub(r" \(.*\)$", "", f) for f in stack.split(";") if not f.startswith(("Thread._bootstrap", "Thread.run"))]
        found[tuple(f for f in frames if f) or ("native",)] += int(count)
    return found


def budget(stacks: Stacks, steps: Steps, us: float) -> dict[str, float]:
    """A call's microseconds by step."""
    found: Counter[str] = Counter()
    for stack, count in stacks.items():
        named = next((step for frame in reversed(stack) for pattern, step in steps if re.search(pattern, frame)), "other")
        found[named] += count
    total = max(1, sum(found.values()))
    return {step: round(us * count / total, 1) for step, count in found.most_common()}


def main() -> int:
    """Profile each load; the last lines say where the files are."""
    build()
    result: dict[str, Any] = {}
    for n in IN_FLIGHT:
        with product(f"profile-{n}", {}) as p:
            pids = p.pids()
            for name in ("gateway", "sidecar"):
                done: list[dict[str, Any]] = []
                before = {who: _cpu_us(pids[f"{who}_pid"]) for who in ("gateway", "sidecar")}
                thread = threading.Thread(target=lambda d=done, q=n: d.append(load(p.ports["grpc"], SMALL, q, DOUBLE, SECONDS)))
                thread.start()
                threading.Event().wait(WARM_S)
                stacks = _gateway(pids["metrics"]) if name == "gateway" else _sidecar(pids["sidecar_pid"])
                thread.join()
                us = (_cpu_us(pids[f"{name}_pid"]) - before[name]) / done[0]["calls"]
                steps = budget(stacks, GATEWAY if name == "gateway" else SIDECAR, us)
                result[f"{name}, {n} in flight"] = {"us": round(us, 1), "per_second": round(done[0]["per_second"]), "steps": steps}
                flame(OUT / f"flame-{name}-{n}.svg", f"{name}, {n} in flight: {us:.0f} us of processor time a call", stacks)
                print(f"{name}, {n} in flight: {us:.0f} us a call ({done[0]['per_second']:.0f} calls a second)")
                for step, value in steps.items():
                    print(f"  {value:7.1f}  {step}")
    (OUT / "profile.json").write_text(json.dumps(result, indent=1))
    print(f"{OUT}/profile.json, {OUT}/flame-*.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
