"""Vigil's own table, as generated from ``safety/machine.yaml``."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any, cast

from vigil_safety.core import Table, load_table

__all__ = ["machine_source", "machine_table", "worst"]


def machine_source() -> dict[str, Any]:
    """The parsed specification."""
    text = resources.files("vigil_safety").joinpath("machine_gen.json").read_text()
    return cast("dict[str, Any]", json.loads(text))


@cache
def machine_table() -> Table:
    """The checked table with its default parameters."""
    return load_table(machine_source())


def worst(states: list[str]) -> str:
    """State of the whole: the one with the highest rank; STARTING without subjects."""
    table = machine_table()
    return max(states, key=lambda s: table.ranks[s], default=table.initial)
