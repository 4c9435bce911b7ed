"""What the reconciler remembers of a model between two looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from vigil_sidecar.engine.staging import FileSignature
from vigil_sidecar.registry.repository import FolderView

__all__ = ["ModelMemory", "Refusal"]


class Refusal(NamedTuple):
    """Why a file was refused; holds while its signature stays the same."""

    signature: FileSignature
    digest: str
    reason: str


@dataclass
class ModelMemory:
    """What is remembered of one model between looks."""

    first_seen: dict[int, tuple[FileSignature, float]] = field(default_factory=dict)
    refused: dict[int, Refusal] = field(default_factory=dict)
    read: dict[int, FileSignature] = field(default_factory=dict)
    deleted_told: int = 0
    config: object = None
    config_seen: tuple[object, float] = (None, 0.0)
    """Signatures of the files of settings when they changed last, and since when they keep still."""
    config_problem: str = ""
    view: FolderView | None = None
    """The folder at the latest look; None where there was none."""
    told: set[str] = field(default_factory=set)
    pending: set[int] = field(default_factory=set)

    def is_refused(self, versions: Mapping[int, FileSignature], number: int) -> bool:
        """Whether a version's file, as it is now, was refused."""
        refusal = self.refused.get(number)
        return refusal is not None and refusal.signature == versions.get(number)
