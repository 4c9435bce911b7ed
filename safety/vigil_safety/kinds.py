"""The kinds of faults that can be injected: what each does, who does it, what should notice it (``safety/kinds.yaml``).

Standard library only.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import NamedTuple

__all__ = ["BY_CALLER", "BY_GATEWAY", "BY_SIDECAR", "KINDS", "Kind"]

BY_GATEWAY, BY_SIDECAR, BY_CALLER = "gateway", "sidecar", "caller"


class Kind(NamedTuple):
    """One kind. ``duration_ms`` and ``magnitude`` are what is injected unless told; ``unit`` is the magnitude's.

    ``below`` is a magnitude that must trip nothing, None where the first occurrence counts.
    ``expect`` names what counts as detection; empty: it must have no effect on anybody.
    """

    name: str
    group: str
    by: str
    doc: str
    duration_ms: int
    expect: tuple[str, ...]
    magnitude: float = 0
    unit: str = ""
    below: float | None = None
    restarts: bool = False
    needs: str = ""

    @property
    def about_a_model(self) -> bool:
        """Whether it needs a model's name."""
        return self.group in ("model", "files", "configuration") or self.name in ("sidecar_memory", "sidecar_files")


def _load() -> dict[str, Kind]:
    raw = json.loads(resources.files("vigil_safety").joinpath("kinds_gen.json").read_text())
    return {name: Kind(name, **(fields | {"expect": tuple(fields["expect"])})) for name, fields in raw["kinds"].items()}


KINDS = _load()
