"""What an injection does to files is undone, whoever ends it, and nothing of anybody else's is touched."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from vigil_sidecar.injection.files import FileFaults, recover, recover_log


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for number in (1, 2):
        file = tmp_path / "m" / str(number) / "model.onnx"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"version %d" % number)
    (tmp_path / "m" / "vigil.toml").write_text("# mine\n")
    return tmp_path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


FAULTS = {
    "overwritten": ("2/model.onnx", b"x"),
    "vanished": ("2", None),
    "settings": ("vigil.toml", b"no_such_key = 1\n"),
    "new": ("vigil.toml", b"x"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("killed", [False, True])
def test_what_was_put_aside_comes_back(models: Path, name: str, killed: bool) -> None:
    if name == "new":
        (models / "m" / "vigil.toml").unlink()
    before, told = everything(models), list[str]()
    target, content = FAULTS[name]
    held = FileFaults(models, told.append).aside("m", target, content)
    held.__enter__()
    assert everything(models) != before
    if killed:
        recover(models, told.append)
    else:
        held.__exit__(None, None, None)
    assert everything(models) == before and told
    if killed:
        with suppress(FileNotFoundError):
            held.__exit__(None, None, None)


@pytest.mark.parametrize("killed", [False, True])
def test_a_version_that_was_made_goes(models: Path, killed: bool) -> None:
    before = everything(models)
    faults = FileFaults(models, lambda text: None)
    held = faults.version("m")
    place = held.__enter__()
    faults.write(place, b"bad")
    assert place.parent.name == "3" and faults.serving("m") == place
    if killed:
        recover(models, lambda text: None)
    else:
        held.__exit__(None, None, None)
    assert everything(models) == before and not place.parent.exists()
    if killed:
        with suppress(FileNotFoundError):
            held.__exit__(None, None, None)


def test_what_somebody_else_does_meanwhile_stays(models: Path) -> None:
    """Settings that were changed during the fault are not undone, and what they were stays aside; a file put into a made version stays."""
    told = list[str]()
    faults = FileFaults(models, told.append)
    with faults.aside("m", "vigil.toml", b"no_such_key = 1\n"):
        (models / "m" / "vigil.toml").write_text("# newer\n")
    assert (models / "m" / "vigil.toml").read_text() == "# newer\n"
    assert (models / "m" / ".before-injection.vigil.toml").read_text() == "# mine\n" and "somebody else" in told[0]
    with faults.version("m") as place:
        (place.parent / "labels.txt").write_text("mine")
    assert [p.name for p in place.parent.iterdir()] == ["labels.txt"] and "labels.txt" in told[-1]


def test_a_folder_that_is_there_again_is_not_replaced(models: Path) -> None:
    told = list[str]()
    with FileFaults(models, told.append).aside("m", "2", None):
        (models / "m" / "2").mkdir()
        (models / "m" / "2" / "model.onnx").write_bytes(b"newer")
    assert (models / "m" / "2" / "model.onnx").read_bytes() == b"newer" and "somebody else" in told[0]
    assert (models / "m" / ".before-injection.2" / "model.onnx").read_bytes() == b"version 2"


def test_a_log_gets_its_file_back(tmp_path: Path) -> None:
    (tmp_path / ".injected.segment-1").write_bytes(b"log")
    recover_log(tmp_path)
    assert everything(tmp_path) == {"segment-1": b"log"}


@pytest.mark.parametrize("content", [b"no_such_key = 1\n", None])
@pytest.mark.parametrize("there", [True, False])
def test_a_start_leaves_what_was_changed_since(models: Path, content: bytes | None, there: bool) -> None:
    """Killed during the fault, mended by a person, started again: the person's file stays, and what was there before is kept."""
    file, told = models / "m" / "vigil.toml", list[str]()
    if not there:
        file.unlink()
    held = FileFaults(models, told.append).aside("m", "vigil.toml", content)
    held.__enter__()
    file.write_text("# a person's\n")
    recover(models, told.append)
    assert file.read_text() == "# a person's\n" and "somebody else" in told[0]
    kept = models / "m" / ".before-injection.vigil.toml"
    assert kept.read_text() == "# mine\n" if there else not kept.exists()
    recover(models, told.append)
    assert file.read_text() == "# a person's\n" and len(told) == 1
    held.__exit__(None, None, None)
    assert file.read_text() == "# a person's\n"


def test_a_persons_file_in_a_made_version_stays(models: Path) -> None:
    told = list[str]()
    faults = FileFaults(models, told.append)
    with faults.version("m") as place:
        faults.write(place, b"bad")
        (place.parent / "new").write_bytes(b"good")
        (place.parent / "new").rename(place)
    assert [p.name for p in place.parent.iterdir()] == ["model.onnx"] and place.read_bytes() == b"good" and told


@pytest.mark.parametrize("name", [".injected...|..|victim", ".injected.2|..|vigil.toml", ".injected.notes", ".injected.link|model.onnx"])
def test_names_that_no_injection_makes_are_left_alone(models: Path, name: str) -> None:
    """Whoever may write into the repository does not write elsewhere by it."""
    (models / "m" / "link").symlink_to(models.parent)
    (models.parent / "victim").write_text("mine")
    (models / "m" / name).write_bytes(b"theirs")
    before, told = everything(models), list[str]()
    recover(models, told.append)
    assert everything(models) == before and (models.parent / "victim").read_text() == "mine"
    assert not (models.parent / "model.onnx").exists() and "left alone" in told[0]


def test_a_fault_over_what_was_not_undone_is_refused(models: Path) -> None:
    faults = FileFaults(models, lambda text: None)
    (models / "m" / ".injected.vigil.toml").write_text("# mine\n")
    before = everything(models)
    with pytest.raises(FileExistsError, match="not undone"), faults.aside("m", "vigil.toml", b"bad"):
        pass
    assert everything(models) == before
