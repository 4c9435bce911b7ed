"""The verbs of ``vigil safety`` that bring about faults: kinds, inject, campaign."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc
from vigil.contract_digest import CONTRACT_DIGEST
from vigil.safety.v1 import safety_pb2 as safety

from vigil_safety.kinds import BY_CALLER, KINDS, Kind
from vigil_safety.table import machine_source
from vigil_sidecar.audit.reader import LogDamaged
from vigil_sidecar.campaign.judge import Result, Seen, judge, summarise
from vigil_sidecar.campaign.load import CALLER_FAULTS, open_channel, request_for
from vigil_sidecar.campaign.report import write_report
from vigil_sidecar.campaign.run import Campaign, Plan, kinds_named, read_seen
from vigil_sidecar.cli.auditing import folders_of
from vigil_sidecar.cli.client import connect
from vigil_sidecar.cli.options import read_settings
from vigil_sidecar.errors import CommandFailed, SettingsError

__all__ = ["safety_campaign", "safety_inject", "safety_kinds"]

_INJECT = "/vigil.safety.v1.SafetyService/Inject"
_FULL, _FULL_RESTARTS = 1000, 100
"""Injections of each kind of a full campaign; fewer of those that restart a process."""


def safety_kinds(args: argparse.Namespace) -> int:
    """vigil safety kinds: what can be injected"""
    for k in KINDS.values():
        if args.json:
            print(json.dumps(k._asdict()))
        else:
            size = f"{k.magnitude:g} {k.unit}".strip() if k.magnitude else ""
            lasts = f"{k.duration_ms} ms" if k.duration_ms else ""
            print(f"{k.name:22} {k.group:14} {size:16} {lasts:8} {k.doc}")
    return 0


def safety_inject(args: argparse.Namespace) -> int:
    """vigil safety inject: bring about one fault"""
    kind = KINDS.get(args.kind)
    if kind is None:
        raise SettingsError(f"unknown kind '{args.kind}'; vigil safety kinds lists them")
    client = connect(args)
    if kind.by == BY_CALLER:
        if not client.call("/vigil.safety.v1.SafetyService/Get", safety.GetRequest(), safety.GetResponse)[0].state.injection:
            raise CommandFailed("faults are injected only where safety.injection is on")
        if not args.model:
            raise SettingsError(f"{kind.name} needs --model: the model that is called")
        request = request_for(open_channel(client.target), args.model)
        CALLER_FAULTS[kind.name](client.target, request, args.magnitude or kind.magnitude)
        print(json.dumps({"kind": kind.name}) if args.json else f"{kind.name}: done")
        return 0
    made = safety.InjectRequest(kind=kind.name, model=args.model or "", duration_ms=args.duration_ms, magnitude=args.magnitude)
    done, beside = client.call(_INJECT, made, safety.InjectResponse)
    told = {
        "kind": kind.name, "begins_in_ms": done.inject_delay_ms, "duration_ms": done.duration_ms, "magnitude": done.magnitude,
        "audit_position": beside.get("vigil-audit-position", ""),
    }  # fmt: skip
    size = f", {done.magnitude:g} {kind.unit}" if done.magnitude else ""
    print(json.dumps(told) if args.json else f"{kind.name} begins in {done.inject_delay_ms} ms, for {done.duration_ms} ms{size}")
    return 0


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


def _about(args: argparse.Namespace, plan: Plan, took_s: float) -> dict[str, Any]:
    return {
        "model": args.model, "injections of each kind": plan.repetitions, "harmless ones": plan.harmless, "seconds": round(took_s, 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "kernel": platform.release(), "python": platform.python_version(), "onnxruntime": metadata.version("onnxruntime"),
        "contract": CONTRACT_DIGEST, "safety table": machine_source()["digest"],
    }  # fmt: skip


def _plan(args: argparse.Namespace, kinds: list[Kind]) -> Plan:
    quick = args.quick
    count = args.repetitions or (1 if quick else _FULL)
    return Plan(kinds, count, 1 if quick else max(1, count // 10), args.quiet_s if args.quiet_s is not None else 0.0 if quick else 600.0)


def _rounds(plan: Plan, full: bool) -> list[Plan]:
    """The plan, with fewer injections of the kinds that restart a process when it is the full one."""
    if not full:
        return [plan]
    light, heavy = [k for k in plan.kinds if not k.restarts], [k for k in plan.kinds if k.restarts]
    return [plan._replace(kinds=light), Plan(heavy, _FULL_RESTARTS, 0, 0.0)]


def safety_campaign(args: argparse.Namespace) -> int:
    """vigil safety campaign: 0 when every kind did as expected and nothing gave a false alarm"""
    plan = _plan(args, kinds_named([n for text in args.kinds for n in text.split(",") if n]))
    target = connect(args).target
    settings, _ = read_settings(args)
    folder = Path(args.out or Path(settings.data_dir) / "campaign")
    began, from_ns = time.monotonic(), time.monotonic_ns()
    results, quiet = list[Result](), {"seconds": plan.quiet_s, "alarms": 0}
    for part in _rounds(plan, not args.quick and not args.repetitions):
        campaign = Campaign(target, args.model, _say)
        trials = []
        try:
            trials = list(campaign.trials(part))
        except grpc.RpcError as error:
            raise CommandFailed(f"{error.code().name}: {error.details()}") from None
        try:
            seen: list[Seen] = read_seen(folders_of(args), from_ns)
        except (LogDamaged, OSError) as error:
            raise CommandFailed(f"the logs cannot be read ({error}); give the --data-dir of the product") from None
        if part.quiet_s and trials:
            quiet["alarms"] = sum(s.name == "state_changed" and s.to in ("DEGRADED", "SAFE_STOP") for s in seen if s.ns < trials[0].from_ns)
        results += [judge(t, seen) for t in trials]
    found = summarise(results) | {
        "about": _about(args, plan, time.monotonic() - began), "quiet": quiet, "results": [r._asdict() for r in results],
    }  # fmt: skip
    try:
        page, data = write_report(folder, found)
    except OSError as error:
        raise CommandFailed(f"the report cannot be written to {folder}: {error.strerror}; give --out DIR") from None
    _tell(found, page, data, args.json)
    return int(bool(found["undetected"] or found["false_alarms"]))


def _tell(found: dict[str, Any], page: Path, data: Path, as_json: bool) -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    if as_json:
        print(json.dumps({k: v for k, v in found.items() if k != "results"} | {"report": str(page)}))
        return
    for k in found["kinds"]:
        made, times = k["as_expected"], k["detection_ms"]
        worst = f"{times['median']:>9g} {times['worst']:>9g} ms" if times["count"] else ""
        wanted = "detected" if k["must_be_detected"] else "no effect"
        text = f"{wanted} {made['successes']}/{made['trials']}" if made["trials"] else "not made: " + "; ".join(k["not_made"])[:60]
        print(f"{k['kind']:22} {text:22} {worst:26} {', '.join(k['mechanisms'])}")
    c = found["coverage"]
    print(f"detected {c['successes']}/{c['trials']}, 95 % bounds {c['low']:.3f}..{c['high']:.3f}")
    print(f"not detected: {', '.join(found['undetected']) or 'none'}; false alarms: {', '.join(found['false_alarms']) or 'none'}")
    print(f"report: {page} and {data.name}")
