"""Random histories of supervised parts with what the core in Python makes of them, which the core in Go has to make too."""

from __future__ import annotations

import json
import random
from typing import Any

from vigil_safety import supervision as core

__all__ = ["supervision_vectors"]

_HISTORIES = 60
_STEPS = 30
_SEED = 20
_ENTITIES: dict[str, dict[str, Any]] = {
    "alive": {"alive": {"reference_ms": 100, "min": 2, "max": 4, "failed_tolerance": 1}},
    "strict": {"alive": {"reference_ms": 60, "min": 1, "max": 0, "failed_tolerance": 0}},
    "deadline": {"deadlines": [{"from": "a", "to": "b", "max_ms": 50}]},
    "order": {"logical": {"start": ["a"], "next": {"a": ["b"], "b": ["a", "c"], "c": ["a"]}}},
    "all": {
        "alive": {"reference_ms": 120, "min": 1, "max": 6, "failed_tolerance": 2},
        "deadlines": [{"from": "a", "to": "b", "max_ms": 40}, {"from": "b", "to": "c", "max_ms": 70}],
        "logical": {"start": ["a", "b"], "next": {"a": ["b"], "b": ["a", "c"], "c": ["a"]}},
    },
}


def _history(rng: random.Random, entity: core.Entity, plain: bool) -> list[list[Any]]:
    state, now, out = core.EntityState(), 0, []
    for step in range(_STEPS):
        now += rng.choice((0, 1, 10, 30, 60, 110))
        name = rng.choice("abc")
        op = "activate" if step == 0 else rng.choice(["checkpoint"] * 3 + ["cycle"] * 4 + ["activate", "deactivate"] * (not plain))
        if op == "activate":
            state = core.activate(state, now)
        elif op == "deactivate":
            state = core.deactivate(state)
        elif op == "checkpoint":
            state = core.checkpoint(entity, state, name, now)
        else:
            state = core.cycle(entity, state, now)
        seen = [state.status, state.reason, state.indications, state.reference_ms, state.failed_references, state.last, state.last_ms]
        out.append([now, op, name if op == "checkpoint" else "", *seen, state.expiries])
    return out


def _whole(rng: random.Random) -> list[list[Any]]:
    state, now, out = core.GlobalState(), 0, []
    for _ in range(_STEPS):
        now += rng.choice((1, 20, 60))
        statuses = rng.choices([core.OK, core.FAILED, core.EXPIRED, core.DEACTIVATED], [8, 2, 3, 2], k=rng.randint(0, 3))
        state = core.global_status(state, [core.EntityState(s) for s in statuses], now, 100)
        out.append([now, statuses, state.status])
    return out


def supervision_vectors() -> str:
    """JSON: entities; histories of ``[ms, operation, checkpoint, *EntityState]``; wholes of ``[ms, statuses, status]``."""
    rng = random.Random(_SEED)
    raw = {"cycle_ms": 10, "entities": {n: e | {"process": "gateway"} for n, e in _ENTITIES.items()}}
    entities = core.load_supervision(raw, "gateway")
    names = sorted(entities)
    histories = [(names[i % len(names)], i // len(names) % 2 == 0) for i in range(_HISTORIES)]
    lines = [json.dumps({"entity": name, "steps": _history(rng, entities[name], plain)}) for name, plain in histories]
    wholes = [json.dumps(_whole(rng)) for _ in range(_HISTORIES // 4)]
    parts = {"histories": ",\n".join(lines), "wholes": ",\n".join(wholes)}
    return f'{{"supervision": {json.dumps(raw)}' + "".join(f',\n"{name}": [\n{part}\n]' for name, part in parts.items()) + "}\n"
