"""Faults in the model repository, each undone by a rename: whatever ends the process meanwhile, nothing of the integrator's is lost."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["FileFaults", "recover", "recover_log"]

_ASIDE = ".injected."
"""Begins the name, in the model's folder, of what was put aside; the repository passes over hidden names."""
_OWN = ".injected"
"""Marks a version's folder as made by an injection."""
_NONE = b"there was none\n"


def _serving_folder(model: Path) -> Path:
    latest = model / "latest"
    if latest.exists():
        return latest.resolve()
    return max((p for p in model.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


def _place(path: Path, content: bytes) -> None:
    """Let a file have a content at once."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.rename(path)


def _remove_own(version: Path) -> None:
    """Take away a version that an injection made, and nothing that somebody else put there."""
    inner = version / "model.onnx"
    if inner.is_dir():
        inner.rmdir()
    for path in (inner, version / ".model.onnx.partial", version / "model.new", version / _OWN):
        path.unlink(missing_ok=True)
    version.rmdir()


def _put_back(aside: Path, told: Callable[[str], None]) -> None:
    """Undo by its name: ``.injected.NAME`` is what NAME in the model's folder was (``1|model.onnx`` for a version's file)."""
    target = aside.parent / aside.name.removeprefix(_ASIDE).replace("|", "/")
    if aside.is_file() and aside.read_bytes() == _NONE:
        target.unlink(missing_ok=True)
        aside.unlink()
    elif aside.is_dir() and target.exists():
        told(f"{target} is there again; what was put aside stays in {aside}")
        return
    else:
        aside.rename(target)
    told(f"{target} is again what it was before a fault was injected")


def recover(models: Path, told: Callable[[str], None]) -> None:
    """Undo what an injection left behind when its process ended; ``told`` hears of each thing that was done, or could not be."""
    for model in sorted(p for p in models.iterdir() if p.is_dir()) if models.is_dir() else []:
        try:
            for aside in sorted(model.glob(_ASIDE + "*")):
                _put_back(aside, told)
            for own in sorted(model.glob(f"*/{_OWN}")):
                _remove_own(own.parent)
                told(f"{own.parent}, which an injection made, is gone")
        except OSError as error:
            told(f"{model}: an injected fault could not be undone: {error}")


def recover_log(folder: Path) -> None:
    """Give a log's file back the name that an injection took from it."""
    for hidden in folder.glob(_ASIDE + "segment-*"):
        target = folder / hidden.name.removeprefix(_ASIDE)
        if not target.exists():
            hidden.rename(target)


class FileFaults:
    """What is done to the files of one model. One at a time: whoever calls sees to that."""

    def __init__(self, models: Path, told: Callable[[str], None]) -> None:
        self._models, self._told = models, told

    @contextmanager
    def version(self, model: str) -> Iterator[Path]:
        """The place of the file of a version that is not there yet; the version is gone again at the end."""
        folder = self._models / model
        number = max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0) + 1
        made = folder / str(number)
        made.mkdir()
        try:
            (made / _OWN).touch()
            yield made / "model.onnx"
        finally:
            _remove_own(made)

    @contextmanager
    def aside(self, model: str, name: str, content: bytes | None) -> Iterator[None]:
        """Put a file or folder of the model aside, with another content in its place (None: nothing), until the end.

        What somebody else put there meanwhile stays, and so does what was put aside.
        """
        folder = self._models / model
        target, aside = folder / name, folder / (_ASIDE + name.replace("/", "|"))
        if target.exists():
            target.rename(aside)
        else:
            _place(aside, _NONE)
        if content is not None:
            _place(target, content)
        try:
            yield
        finally:
            if content is not None and (not target.is_file() or target.read_bytes() != content):
                self._told(f"{target} was changed by somebody else; what it was before is in {aside}")
            else:
                _put_back(aside, self._told)

    def serving(self, model: str) -> Path:
        """The serving version's file, as the files say."""
        return _serving_folder(self._models / model) / "model.onnx"

    def cut(self, model: str) -> bytes:
        """A part of the serving file, another one each time."""
        content = self.serving(model).read_bytes()
        return content[: random.randint(1, max(1, len(content) * 3 // 4))]

    def write(self, place: Path, content: bytes) -> None:
        """Let a version's file appear at once."""
        _place(place, content)

    def prepare(self, place: Path, content: bytes, size: int = 0) -> Path:
        """Write a version's file beside its place, with a hole at its end up to a size; it is renamed by whoever wants it to appear."""
        partial = place.with_suffix(".new")
        partial.write_bytes(content)
        if size:
            os.truncate(partial, size)
        return partial
