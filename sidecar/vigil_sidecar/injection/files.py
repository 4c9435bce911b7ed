"""Faults in the model repository, each undone by a rename: whatever ends the process meanwhile, nothing of the integrator's is lost."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["FileFaults", "recover", "recover_log"]

_ASIDE = ".injected."
"""Begins the name, in the model's folder, of what was put aside; the repository passes over hidden names."""
_CONTENT = ".injected-content."
"""Likewise of the note of what was put in its place: a SHA-256, or nothing."""
_KEPT = ".before-injection."
"""Likewise of what stays aside because somebody else put something in its place."""
_OWN = ".injected"
"""Marks a version's folder as made by an injection, and holds the inodes of the files that it put there."""
_NAMES = re.compile(r"vigil\.toml|\d+|\d+\|model\.onnx")
_NONE = b"there was none\n"


def _serving_folder(model: Path) -> Path:
    latest = model / "latest"
    if latest.is_symlink():
        return model / Path(os.readlink(latest)).name
    return max((p for p in model.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


def _place(path: Path, content: bytes, own: bool = False) -> None:
    """Let a file have a content at once."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    if own:
        _claim(partial)
    partial.rename(path)


def _claim(path: Path) -> None:
    """Note that a file of a made version is the injection's: by its inode, which a rename leaves as it is."""
    with (path.parent / _OWN).open("a") as marker:
        marker.write(f"{path.stat().st_ino}\n")


def _remove_own(version: Path, told: Callable[[str], None]) -> None:
    """Take away a version that an injection made, and nothing that somebody else put there."""
    marker = version / _OWN
    claimed = marker.read_text().split()
    for path in sorted(version.iterdir()):
        if path.is_dir() and not path.is_symlink() and path.name == "model.onnx" and not any(path.iterdir()):
            path.rmdir()
        elif str(path.lstat().st_ino) in claimed:
            path.unlink()
    marker.unlink()
    if any(version.iterdir()):
        told(f"{version}, which an injection made, stays: somebody else put {next(version.iterdir()).name} there")
    else:
        version.rmdir()


def _is_injected(target: Path, note: Path) -> bool:
    """Whether nothing stands there, or what the injection put there."""
    if not os.path.lexists(target):
        return True
    wanted = note.read_text() if note.exists() else ""
    return target.is_file() and not target.is_symlink() and hashlib.sha256(target.read_bytes()).hexdigest() == wanted


def _put_back(aside: Path, told: Callable[[str], None]) -> None:
    """Undo by its name: ``.injected.NAME`` is what NAME in the model's folder was (``1|model.onnx`` for a version's file)."""
    name = aside.name.removeprefix(_ASIDE)
    target, note = aside.parent / name.replace("|", "/"), aside.parent / (_CONTENT + name)
    if not _NAMES.fullmatch(name) or (target.parent != aside.parent and target.parent.is_symlink()):
        told(f"{aside} is nothing that an injection puts aside; it is left alone")
        return
    none = aside.is_file() and not aside.is_symlink() and aside.read_bytes() == _NONE
    # SR-052
    if not _is_injected(target, note):
        text = f"{target} was changed by somebody else, and stays"
        if not none:
            kept = next(k for n in itertools.count() if not os.path.lexists(k := aside.with_name(f"{_KEPT}{name}{n or ''}")))
            aside.rename(kept)
            text += f"; what it was before a fault was injected is in {kept}"
        told(text)
    else:
        if none:
            target.unlink(missing_ok=True)
        else:
            aside.rename(target)
        told(f"{target} is again what it was before a fault was injected")
    if none:
        aside.unlink()
    note.unlink(missing_ok=True)


def recover(models: Path, told: Callable[[str], None]) -> None:
    """Undo what an injection left behind when its process ended; ``told`` hears of each thing that was done, or could not be."""
    for model in sorted(p for p in models.iterdir() if p.is_dir()) if models.is_dir() else []:
        try:
            for aside in sorted(model.glob(_ASIDE + "*")):
                _put_back(aside, told)
            for note in model.glob(_CONTENT + "*"):
                if not os.path.lexists(model / (_ASIDE + note.name.removeprefix(_CONTENT))):
                    note.unlink()  # the process ended before anything was put aside
            for own in sorted(model.glob(f"*/{_OWN}")):
                if own.parent.name.isdigit() and not own.parent.is_symlink():
                    _remove_own(own.parent, told)
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
            _remove_own(made, self._told)

    @contextmanager
    def aside(self, model: str, name: str, content: bytes | None) -> Iterator[None]:
        """Put a file or folder of the model aside, with another content in its place (None: nothing), until the end.

        What somebody else put there meanwhile stays, and so does what was put aside.
        """
        folder, inner = self._models / model, name.replace("/", "|")
        target, aside, note = folder / name, folder / (_ASIDE + inner), folder / (_CONTENT + inner)
        if os.path.lexists(aside):
            raise FileExistsError(f"{aside} is there: an earlier fault was not undone")
        if target.parent.is_symlink():
            raise NotADirectoryError(f"{target.parent} is a symbolic link: its files are not touched")
        note.write_text("" if content is None else hashlib.sha256(content).hexdigest())
        try:
            if os.path.lexists(target):
                target.rename(aside)
            else:
                _place(aside, _NONE)
            if content is not None:
                _place(target, content)
            yield
        finally:
            if os.path.lexists(aside):
                _put_back(aside, self._told)
            note.unlink(missing_ok=True)

    def serving(self, model: str) -> Path:
        """The serving version's file, as the files say."""
        return _serving_folder(self._models / model) / "model.onnx"

    def cut(self, model: str) -> bytes:
        """A part of the serving file, another one each time."""
        content = self.serving(model).read_bytes()
        return content[: random.randint(1, max(1, len(content) * 3 // 4))]

    def write(self, place: Path, content: bytes) -> None:
        """Let a made version's file appear at once."""
        _place(place, content, own=True)

    def prepare(self, place: Path, content: bytes, size: int = 0) -> Path:
        """Write a version's file beside its place, with a hole at its end up to a size; it is renamed by whoever wants it to appear."""
        partial = place.with_suffix(".new")
        partial.write_bytes(content)
        if size:
            os.truncate(partial, size)
        _claim(partial)
        return partial
