"""The model repository as files: which models, versions and links are there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from vigil_sidecar.engine.staging import FileSignature, signature_of

__all__ = ["CONFIG_FILES", "MODEL_NAME", "FolderView", "list_models", "look", "read_latest", "restore_latest", "write_latest"]

MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_VERSIONS_MAX = 1000
CONFIG_FILES = ("config.pbtxt", "vigil.toml")


class FolderView(NamedTuple):
    """One model folder: signature of each version's model.onnx, and what ``latest`` says."""

    versions: dict[int, FileSignature]
    chosen: int | None
    chosen_problem: str
    config: tuple[FileSignature | None, FileSignature | None]
    ignored: tuple[str, ...]


def list_models(root: Path, count_max: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Names of model folders, and entries that cannot be one with the reason."""
    names: list[str] = []
    ignored: list[tuple[str, str]] = []
    try:
        entries = sorted(os.scandir(root), key=lambda e: e.name)
    except OSError as error:
        return [], [(".", f"the repository cannot be read: {error.strerror}")]
    for entry in entries:
        shown = entry.name.encode("utf-8", "backslashreplace").decode()
        if entry.name.startswith("."):
            continue
        try:
            folder = entry.is_dir()
        except OSError:
            folder = False
        if not folder:
            ignored.append((shown, "not a folder"))
        elif not MODEL_NAME.fullmatch(entry.name):
            ignored.append((shown, "a model's name has 1 to 128 letters, digits, '_', '-' or '.'"))
        elif len(names) >= count_max:
            ignored.append((shown, f"more than {count_max} models (models.count_max)"))
        else:
            names.append(entry.name)
    return names, ignored


def _chosen(folder: Path) -> tuple[int | None, str]:
    link = folder / "latest"
    try:
        target = os.readlink(link)
    except FileNotFoundError:
        return None, ""
    except OSError:
        return None, "latest is not a link"
    name = os.path.basename(target.rstrip("/"))
    if not _VERSION.fullmatch(name):
        return None, "latest does not point at a version folder"
    resolved = os.path.realpath(link)
    if resolved != os.path.realpath(folder / name):
        return None, "latest points outside the model's folder or loops"
    return int(name), ""


def _no_model(version: Path) -> str:
    """Why a version folder has no model; empty while it may still be being copied."""
    try:
        entries = os.listdir(version)
    except NotADirectoryError:
        return "not a folder"
    except FileNotFoundError:
        return "a link that leads nowhere"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if "model.onnx" in entries:
        return (
            "model.onnx is a link that leads nowhere" if (version / "model.onnx").is_symlink() else "model.onnx is no file that can be read"
        )
    others = sorted(e for e in entries if e.endswith(".onnx"))
    return f"{others[0]} is not named model.onnx" if others else ""


def look(folder: Path) -> FolderView:
    """Read one model folder. Raises ``OSError`` when it cannot be read."""
    versions: dict[int, FileSignature] = {}
    ignored: list[str] = []
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if not _VERSION.fullmatch(entry.name):
            if entry.name not in ("latest", "warmup", *CONFIG_FILES) and not entry.name.startswith("."):
                ignored.append(entry.name.encode("utf-8", "backslashreplace").decode() + ": not a version folder")
            continue
        signature = signature_of(Path(entry.path) / "model.onnx")
        if signature is None:
            if problem := _no_model(Path(entry.path)):
                ignored.append(f"version {entry.name}: {problem}")
        elif len(versions) < _VERSIONS_MAX:
            versions[int(entry.name)] = signature
    chosen, problem = _chosen(folder)
    config = (signature_of(folder / CONFIG_FILES[0]), signature_of(folder / CONFIG_FILES[1]))
    return FolderView(versions, chosen, problem, config, tuple(ignored))


def read_latest(folder: Path) -> str | None:
    """What the link ``latest`` says; None without one."""
    try:
        return os.readlink(folder / "latest")
    except OSError:
        return None


def restore_latest(folder: Path, target: str | None) -> None:
    """Put the link back to what it said, or take it away."""
    if target is None:
        (folder / "latest").unlink(missing_ok=True)
    else:
        _link(folder, target)


def write_latest(folder: Path, version: int) -> None:
    """Point ``latest`` at a version, atomically."""
    _link(folder, str(version))


def _link(folder: Path, target: str) -> None:
    temporary = folder / f".latest.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    os.symlink(target, temporary)
    os.rename(temporary, folder / "latest")
