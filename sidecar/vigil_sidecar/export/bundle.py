"""One export: records in every form, what proves them, a manifest with the hash of every file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.kept import list_kept
from vigil_sidecar.audit.notes import NoteError, Verifier, open_note, parse_checkpoint
from vigil_sidecar.audit.prove import prove_each
from vigil_sidecar.audit.reader import LogDamaged, Record, list_segments, read_records
from vigil_sidecar.audit.segment import record_bytes
from vigil_sidecar.audit.verify import Report, verify_folders
from vigil_sidecar.export.automotive import DltForm, MdfForm, a2l_text
from vigil_sidecar.export.forms import CsvForm, Form, ParquetForm
from vigil_sidecar.export.report import ReportForm
from vigil_sidecar.export.selection import Selection
from vigil_sidecar.export.tiles import TileWriter

__all__ = ["FORMS", "export", "pack"]

FORMS = ("parquet", "csv", "mdf4", "dlt", "a2l", "segments", "tiles", "report")
_GROUP = 5000
_MANIFEST = "manifest.json"
_TABLES: dict[str, tuple[str, Callable[[Path], Form]]] = {
    "parquet": ("records.parquet", ParquetForm), "csv": ("records.csv", CsvForm),
    "mdf4": ("records.mf4", MdfForm), "dlt": ("records.dlt", DltForm),
}  # fmt: skip


class _LogExport:
    """One log on its way into an export."""

    def __init__(self, folder: Path, report: Report, selection: Selection, advance: Callable[[int], None]) -> None:
        self.folder, self.report, self._selection, self._advance = folder, report, selection, advance
        self.name = report.log.split("/")[1] if report.log else folder.name
        self.exported: list[int] = []
        self.checkpoint, self.damage = b"", ""

    def selected(self) -> Iterator[Record]:
        """The records that are meant, up to the first damage."""
        try:
            for record in read_records(self.folder):
                self._advance(1)
                if record.header.kind == layout.KIND_CHECKPOINT:
                    self.checkpoint = record.payload
                if self._selection.matches(record):
                    self.exported.append(record.header.sequence)
                    yield record
        except LogDamaged as damaged:
            self.damage = str(damaged)

    def into(self, forms: Sequence[Form]) -> None:
        """Write the selected records in groups."""
        records = self.selected()
        while group := list(islice(records, _GROUP)):
            for form in forms:
                form.add(self.name, group)

    def proofs(self, target: Path) -> int:
        """Write a proof of each exported record, each behind a line with its length; returns how many have none."""
        wanted, proven = frozenset(self.exported), 0
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            try:
                for _, proof in prove_each(self.folder, wanted):
                    out.write(b"%d\n%b" % (len(proof), proof))
                    proven += 1
            except LogDamaged:
                pass  # told by the verification already
        return len(wanted) - proven

    def copy(self, target: Path) -> None:
        """Copy segments and kept records as they are."""
        target.mkdir(parents=True)
        for path in (*list_segments(self.folder), *list_kept(self.folder)):
            shutil.copyfile(path, target / path.name)

    def tiles(self, target: Path) -> str:
        """Write the tiles up to the latest checkpoint; returns why there are none, empty when there are."""
        if self.report.pruned:
            return f"the first {self.report.pruned} records are gone"
        try:
            size = parse_checkpoint(open_note(self.checkpoint, ())[0]).size
        except NoteError:
            return "no checkpoint was signed"
        writer = TileWriter(target)
        for record in islice(read_records(self.folder), size):
            writer.add(record_bytes(record.header, record.payload), record.leaf)
        writer.close(self.checkpoint)
        return ""

    def words(self, unproven: int | None, tiles: str) -> dict[str, Any]:
        """For the manifest."""
        r = self.report
        return {
            "log": self.name, "origin": r.log, "records": r.records, "exported": len(self.exported), "first_sequence": r.first_sequence,
            "last_sequence": r.last_sequence, "pruned": r.pruned, "unproven": unproven if unproven is not None else r.unsealed,
            "no_tiles_because": tiles, "damage": self.damage, "verification": r.to_json() | {"folder": self.name},
        }  # fmt: skip


def export(
    folders: Sequence[Path], keys: Sequence[Verifier], key_files: Sequence[Path], selection: Selection, forms: Sequence[str],
    target: Path, begin: Callable[[int], Callable[[int], None]] = lambda total: lambda n: None,
) -> dict[str, Any]:  # fmt: skip
    """Write an export into a new folder and return its manifest.

    Without a selection it has the raw segments, tiles, and all records; with one only
    the records that are meant, each with a proof, so that it shows nobody else's.
    ``begin(total)`` gives what is told of progress in records. ``key_files`` are
    copied for orientation. Raises ``FormMissing``, ``OSError`` (also when the folder is there).
    """
    target.mkdir(parents=True)
    reports = verify_folders(folders, keys)
    advance = begin(sum(r.records for r in reports))
    logs = [_LogExport(f, r, selection, advance) for f, r in zip(folders, reports, strict=True)]
    writers: list[Form] = [make(target / name) for form, (name, make) in _TABLES.items() if form in forms]
    report = ReportForm(target / "report.html") if "report" in forms else None
    for log in logs:
        log.into([*writers, report] if report is not None else writers)
    for writer in writers:
        writer.close()
    if "a2l" in forms:
        (target / "record.a2l").write_text(a2l_text())
    told = []
    for log in logs:
        unproven, tiles = None, ""
        if selection.whole:
            if "segments" in forms:
                log.copy(target / "segments" / log.name)
            if "tiles" in forms:
                tiles = log.tiles(target / "tiles" / log.name)
        else:
            unproven = log.proofs(target / "proofs" / f"{log.name}.proofs")
        told.append(log.words(unproven, tiles))
    if key_files:
        (target / "keys").mkdir()
        for file in key_files:
            shutil.copyfile(file, target / "keys" / file.name)
    manifest = _manifest(told, selection, forms)
    if report is not None:
        report.finish(manifest)
    manifest["files"] = _files(target)
    (target / _MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def _manifest(logs: list[dict[str, Any]], selection: Selection, forms: Sequence[str]) -> dict[str, Any]:
    return {
        "format": "vigil audit export", "version": 1, "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_by": f"vigil-sidecar {metadata.version('vigil-sidecar')}", "layout_version": layout.VERSION,
        "layout_digest": layout.LAYOUT_DIGEST, "selection": selection.words(), "whole": selection.whole, "forms": list(forms),
        "logs": logs, "verify_with": "auditverify export --key KEYS_FROM_ELSEWHERE DIR",
        "keys": "Keys in this export prove nothing: use those that were written down when the service was put into operation.",
    }  # fmt: skip


def _files(target: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(p for p in target.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found.append({"path": path.relative_to(target).as_posix(), "bytes": path.stat().st_size, "sha256": digest})
    return found


def pack(folder: Path, file: Path) -> None:
    """Put an export's folder into a ZIP file, replaced whole; raises ``OSError``."""
    partial = file.with_name(file.name + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as out:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            out.write(path, path.relative_to(folder).as_posix())
    os.replace(partial, file)
