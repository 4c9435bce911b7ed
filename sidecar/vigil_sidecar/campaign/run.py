"""Runs a campaign against the running product: each kind so often, under load, and back to Normal in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message
from vigil.audit.v1.audit_pb2 import StatePayload, SystemPayload
from vigil.safety.v1 import safety_pb2 as safety

from vigil_safety import events_gen as events
from vigil_safety.kinds import BY_CALLER, KINDS, Kind
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.reader import read_records
from vigil_sidecar.campaign.judge import Seen, Trial
from vigil_sidecar.campaign.load import CALLER_FAULTS, Load, open_channel, request_for
from vigil_sidecar.errors import VigilError

__all__ = ["Campaign", "CampaignFailed", "Plan", "kinds_named", "read_seen"]

_SERVICE = "/vigil.safety.v1.SafetyService/"
_POLL_S = 0.02
_BACK_S = 60.0
"""How long the product may take to be Normal again."""
_AFTER_S = 1.0
"""How long a fault that left no trace in the state is waited for after its end: the longest budget (a silent log)."""
_HARMLESS_S = 0.5
_CALLERS = 2


class CampaignFailed(VigilError):
    """The campaign cannot be run; the text says why."""


class Plan(NamedTuple):
    """What is injected: each of these kinds so often, and so often with a magnitude that must trip nothing."""

    kinds: Sequence[Kind]
    repetitions: int
    harmless: int
    quiet_s: float
    """Load without any fault, first, for false alarms."""


def read_seen(folders: Sequence[Path], from_ns: int) -> list[Seen]:
    """What both logs say since a time, in order of it. Raises ``LogDamaged``."""
    out: list[Seen] = []
    for folder in folders:
        for r in read_records(folder):
            h = r.header
            if h.monotonic_ns < from_ns or h.kind == layout.KIND_ANSWER:
                continue
            name = events.NAMES.get(h.event_id, str(h.event_id))
            if h.kind == layout.KIND_STATE:
                p = StatePayload.FromString(r.payload)
                at_ns = h.monotonic_ns
                if (
                    folder.name == "sidecar"
                ):  # its machines' time is CLOCK_MONOTONIC; while its log hangs, records come later than what they say
                    at_ns = min(at_ns, (p.now_ms + 1) * 1_000_000)
                out.append(Seen(at_ns, folder.name, name, p.subject, p.to, p.reason))
            elif h.kind == layout.KIND_SYSTEM:
                out.append(Seen(h.monotonic_ns, folder.name, name, text=SystemPayload.FromString(r.payload).text))
            else:
                out.append(Seen(h.monotonic_ns, folder.name, name))
    return sorted(out)


class Campaign:
    """One run. ``trials`` does the work and may be stopped between two."""

    def __init__(self, target: str, model: str, progress: Callable[[str], None]) -> None:
        """Raises ``CampaignFailed`` unless a product answers in which faults can be injected."""
        self._target, self._model, self._progress = target, model, progress
        self._channel = open_channel(target, "campaign")
        try:
            if not self._state().injection:
                raise CampaignFailed("faults are injected only where safety.injection is on: vigil up --set safety.injection=true")
            self._request = request_for(self._channel, model)
        except grpc.RpcError as error:
            raise CampaignFailed(f"{error.code().name}: {error.details()}") from None
        self.load = Load(target, self._request, _CALLERS)

    def _call(self, name: str, request: Message, reply: Any) -> Any:
        unary = self._channel.unary_unary(
            _SERVICE + name, request_serializer=type(request).SerializeToString, response_deserializer=reply.FromString
        )
        return unary(request, timeout=5, wait_for_ready=True)

    def _state(self) -> safety.SystemState:
        state: safety.SystemState = self._call("Get", safety.GetRequest(), safety.GetResponse).state
        return state

    def _normal(self) -> str:
        """The present state's name; a gateway that is not there yet is STARTING."""
        try:
            return safety.State.Name(self._state().state)[6:]
        except grpc.RpcError:
            return "STARTING"

    def _await_normal(self) -> str:
        """Wait until all is Normal; a stop is reset, as a person would. Returns the state that was reached first."""
        end = time.monotonic() + _BACK_S
        first = ""
        while time.monotonic() < end:
            state = self._normal()
            if state == "NORMAL":
                return first or state
            if state == "SAFE_STOP":
                first = state
                self._reset()
            time.sleep(_POLL_S)
        return first or self._normal()

    def _reset(self) -> None:
        try:
            self._call("Reset", safety.ResetRequest(reason="a campaign goes on", by="vigil safety campaign"), safety.ResetResponse)
        except grpc.RpcError:
            pass  # it is tried again

    def trials(self, plan: Plan) -> Iterator[Trial]:
        """Each trial, when it is over."""
        self.load.start()
        try:
            self._await_normal()
            if plan.quiet_s:
                self._progress(f"no fault for {plan.quiet_s:g} s")
                time.sleep(plan.quiet_s)
            for kind in plan.kinds:
                rounds = [False] * plan.repetitions + [True] * (plan.harmless if kind.below is not None else 0)
                for number, harmless in enumerate(rounds, 1):
                    self._progress(f"{kind.name} {number}/{len(rounds)}{' (harmless)' if harmless else ''}")
                    yield self._trial(kind, harmless)
        finally:
            self.load.stop()
            self._channel.close()

    def _trial(self, kind: Kind, harmless: bool) -> Trial:
        self._await_normal()
        from_ns = time.monotonic_ns()
        magnitude = (kind.below if harmless else kind.magnitude) or 0.0
        try:
            lasts_s = self._inject(kind, magnitude)
        except grpc.RpcError as error:
            return Trial(kind.name, self._model, harmless, from_ns, time.monotonic_ns(), "", (), f"{error.code().name}: {error.details()}")
        end = time.monotonic() + lasts_s
        fell = False
        while time.monotonic() < end:
            fell = self._normal() != "NORMAL" or fell
            time.sleep(_POLL_S)
        end += _HARMLESS_S if harmless or not kind.expect else _AFTER_S
        while not fell and time.monotonic() < end:
            fell = self._normal() != "NORMAL"
            time.sleep(_POLL_S)
        state = self._await_normal()
        to_ns = time.monotonic_ns()
        return Trial(kind.name, self._model, harmless, from_ns, to_ns, state, self.load.between(from_ns, to_ns))

    def _inject(self, kind: Kind, magnitude: float) -> float:
        """Have it begin; returns how long it lasts from now on, in seconds."""
        if kind.by == BY_CALLER:
            CALLER_FAULTS[kind.name](self._target, self._request, magnitude)
            return 0.0
        request = safety.InjectRequest(kind=kind.name, model=self._model if kind.about_a_model else "", magnitude=magnitude)
        done: safety.InjectResponse = self._call("Inject", request, safety.InjectResponse)
        own_ms = magnitude if kind.unit == "ms" and not kind.duration_ms else 0
        return (done.inject_delay_ms + done.duration_ms + own_ms) / 1000


def kinds_named(names: Sequence[str]) -> list[Kind]:
    """The kinds of these names, all without any; raises ``CampaignFailed`` for one that is none."""
    unknown = [n for n in names if n not in KINDS]
    if unknown:
        raise CampaignFailed(f"unknown kind '{unknown[0]}'; vigil safety kinds lists them")
    return [KINDS[n] for n in names] or list(KINDS.values())
