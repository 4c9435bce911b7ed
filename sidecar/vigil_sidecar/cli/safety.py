"""The verbs of ``vigil safety``: status, watch, history, reset; simulate and replay, which need nothing running."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from vigil.audit.v1.audit_pb2 import StatePayload
from vigil.safety.v1 import safety_pb2 as safety

from vigil_safety import events_gen as events
from vigil_safety.core import TableError, load_table
from vigil_safety.replay import Gap, Recorded, replay
from vigil_safety.simulate import SimulationError, simulate
from vigil_safety.table import machine_source
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.reader import LogDamaged, read_records
from vigil_sidecar.cli.auditing import folders_of
from vigil_sidecar.cli.client import connect
from vigil_sidecar.cli.verbs import when
from vigil_sidecar.errors import CommandFailed, SettingsError

__all__ = ["read_states", "safety_history", "safety_replay", "safety_reset", "safety_simulate", "safety_status", "safety_watch"]

_SERVICE = "/vigil.safety.v1.SafetyService/"
_RESETS_MAX = 3
"""The gateway's subjects first, then the sidecar's."""


def _state(number: Any) -> str:
    return safety.State.Name(number)[6:]


def _subjects(state: safety.SystemState) -> list[dict[str, Any]]:
    return [
        {"subject": s.subject, "state": _state(s.state), "since": when(s.since_us), "reason": s.reason}
        | {c: getattr(s, c) for c in ("degraded", "stopped", "restarted", "expired")}
        for s in state.subjects
    ]


def _transition(t: safety.Transition) -> dict[str, str]:
    return {
        "time": when(t.time_us), "subject": t.subject, "from": _state(getattr(t, "from")), "to": _state(t.to),
        "event": t.event, "reason": t.reason, "resume": t.resume,
    }  # fmt: skip


def _show(t: dict[str, str]) -> str:
    return f"{t['time']} {t['subject']:24} {t['from']:11} -> {t['to']:11} {t['event']}: {t['reason']}"


def safety_status(args: argparse.Namespace) -> int:
    """vigil safety status: 0 only when normal"""
    reply, _ = connect(args).call(_SERVICE + "Get", safety.GetRequest(), safety.GetResponse)
    state, subjects = _state(reply.state.state), _subjects(reply.state)
    if args.json:
        print(json.dumps({"state": state, "table_digest": reply.state.table_digest, "subjects": subjects}))
    else:
        print(f"whole: {state}")
        for s in subjects:
            print(f"{s['subject']:30} {s['state']:11} {s['since']} {s['reason']}")
    return 0 if state == "NORMAL" else 1


def safety_watch(args: argparse.Namespace) -> int:
    """vigil safety watch: the present states, then each change, until it is stopped"""
    request = safety.WatchRequest(subjects=args.subject, resume=args.resume)
    try:
        for news in connect(args).stream(_SERVICE + "Watch", request, safety.WatchResponse):
            if news.HasField("transition"):
                t = _transition(news.transition)
                print(json.dumps(t) if args.json else _show(t), flush=True)
            else:
                now = {"state": _state(news.state.state), "subjects": _subjects(news.state)}
                print(json.dumps(now) if args.json else f"whole: {now['state']}", flush=True)
    except grpc.RpcError as error:
        raise CommandFailed(f"{error.code().name}: {error.details()}") from None
    return 0


def safety_history(args: argparse.Namespace) -> int:
    """vigil safety history: the latest changes of this run, oldest first"""
    request = safety.HistoryRequest(subjects=args.subject, limit=args.limit)
    reply, _ = connect(args).call(_SERVICE + "History", request, safety.HistoryResponse)
    for t in map(_transition, reply.transitions):
        print(json.dumps(t) if args.json else _show(t))
    return 0


def safety_reset(args: argparse.Namespace) -> int:
    """vigil safety reset: end a latched Safe stop; 0 when something was latched and no longer is"""
    client, done = connect(args), list[str]()
    for _ in range(_RESETS_MAX):
        request = safety.ResetRequest(subject=args.subject or "", reason=args.reason, by=args.by)
        try:
            reply, beside = client.call(_SERVICE + "Reset", request, safety.ResetResponse)
        except CommandFailed:
            if done:
                break
            raise
        done += reply.subjects
        last = {"reset": done, "state": _state(reply.state.state), "audit_position": beside.get("vigil-audit-position", "")}
        if reply.state.state != safety.STATE_SAFE_STOP:
            break
    print(json.dumps(last) if args.json else f"reset: {', '.join(done)}; whole: {last['state']}; record {last['audit_position']}")
    return 0


def safety_simulate(args: argparse.Namespace) -> int:
    """vigil safety simulate < events.jsonl"""
    parameters: dict[str, int] = {}
    for text in args.parameter:
        name, _, value = text.partition("=")
        if not value.isascii() or not value.isdigit():
            raise SettingsError(f"--parameter {text}: give NAME=NUMBER")
        parameters[name] = int(value)
    try:
        for line in simulate(load_table(machine_source(), parameters), sys.stdin.buffer):
            print(line)
    except TableError as error:
        raise SettingsError(f"--parameter: {error}") from None
    except SimulationError as error:
        raise CommandFailed(str(error)) from None
    return 0


def read_states(folder: Path) -> Iterator[Recorded | Gap]:
    """The recorded changes of a log, in order, and where some may be missing; raises ``LogDamaged``."""
    first = True
    for r in read_records(folder):
        h = r.header
        run = f"{folder.name}/{h.boot_id.hex()}"
        if (first and h.sequence > 1) or h.event_id == events.UNLOGGED:
            yield Gap(run)
        first = False
        if h.kind != layout.KIND_STATE:
            continue
        try:
            p = StatePayload.FromString(r.payload)
        except DecodeError:
            raise LogDamaged(r.file, r.offset, h.sequence, "its payload is no StatePayload") from None
        counters = {n: tuple(c.times_ms) for n, c in p.counters.items()}
        yield Recorded(
            f"{folder.name}/{h.sequence}", run, p.subject, getattr(p, "from"), p.to, p.event, tuple(p.actions), p.now_ms, counters,
            dict(p.parameters), p.table_digest,
        )  # fmt: skip


def safety_replay(args: argparse.Namespace) -> int:
    """vigil safety replay: 0 when each recorded change is the one that the table gives, 1 when one is not"""
    return _replayed(folders_of(args), args.json)


def _replayed(folders: Sequence[Path], as_json: bool) -> int:
    code = 0
    for folder in folders:
        steps, wrong, subjects = 0, list[dict[str, str]](), set[str]()
        try:
            for r, reason in replay(machine_source(), read_states(folder)):
                steps, subjects = steps + 1, subjects | {r.subject}
                if reason:
                    wrong.append({"record": r.place, "subject": r.subject, "reason": reason})
        except (LogDamaged, OSError) as error:
            raise CommandFailed(f"{folder}: {error}") from None
        found = {"log": str(folder), "changes": steps, "subjects": sorted(subjects), "table": machine_source()["digest"], "wrong": wrong}
        if as_json:
            print(json.dumps(found))
        else:
            for w in wrong:
                print(f"{w['record']} ({w['subject']}): {w['reason']}")
            print(f"{folder}: {steps} changes of {len(subjects)} subjects, {len(wrong)} are not what the table gives")
        code = code or bool(wrong)
    return int(code)
