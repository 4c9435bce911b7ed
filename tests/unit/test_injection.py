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
    "new": ("a", b"x"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("killed", [False, True])
def test_what_was_put_aside_comes_back(models: Path, name: str, killed: bool) -> None:
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
    assert (models / "m" / ".injected.vigil.toml").read_text() == "# mine\n" and "somebody else" in told[0]
    with pytest.raises(OSError), faults.version("m") as place:
        (place.parent / "labels.txt").write_text("mine")
    assert (place.parent / "labels.txt").read_text() == "mine"


def test_a_folder_that_is_there_again_is_not_replaced(models: Path) -> None:
    told = list[str]()
    with FileFaults(models, told.append).aside("m", "2", None):
        (models / "m" / "2").mkdir()
        (models / "m" / "2" / "model.onnx").write_bytes(b"newer")
    assert (models / "m" / "2" / "model.onnx").read_bytes() == b"newer" and "is there again" in told[0]
    assert (models / "m" / ".injected.2" / "model.onnx").read_bytes() == b"version 2"


def test_a_log_gets_its_file_back(tmp_path: Path) -> None:
    (tmp_path / ".injected.segment-1").write_bytes(b"log")
    recover_log(tmp_path)
    assert everything(tmp_path) == {"segment-1": b"log"}
