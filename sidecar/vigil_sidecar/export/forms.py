"""Tables of records as Parquet and CSV; the columns come from the record's layout."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from vigil_safety.events_gen import NAMES
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.reader import Record
from vigil_sidecar.export.words import detail

__all__ = ["COLUMNS", "CsvForm", "Form", "FormMissing", "ParquetForm", "need"]

COLUMNS = tuple((name, kind, size, doc) for name, kind, size, doc in layout.FIELDS if name not in ("magic", "reserved"))
"""Name, type, bytes and meaning: every header field that differs between records."""
_WORDS = ("log", "kind_name", "event_name", "detail")


class FormMissing(Exception):
    """A library for a form is not installed; the text says which."""


class Form(Protocol):
    """One file of an export. Records come in order, in groups of a few thousand; not for several threads."""

    path: Path

    def add(self, log: str, records: Sequence[Record]) -> None:
        """Write a group."""

    def close(self) -> None:
        """End the file."""


def need(name: str) -> Any:
    """Import a library that only exports use; raises ``FormMissing``."""
    try:
        return __import__(name, fromlist=["x"])
    except ImportError as error:
        raise FormMissing(f"{error.name or name} is not installed; pip install 'vigil-sidecar[export]', or leave its form out") from None


def _words(log: str, record: Record) -> tuple[str, str, str, str]:
    h = record.header
    told = json.dumps(detail(record), ensure_ascii=False, default=str)
    return log, layout.KIND_NAMES[h.kind], NAMES.get(h.event_id, ""), told


class CsvForm:
    """RFC 4180, UTF-8; byte strings in hex, numbers whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("w", newline="", encoding="utf-8")
        self._out = csv.writer(self._file, lineterminator="\r\n")
        self._out.writerow([*_WORDS[:3], *(c[0] for c in COLUMNS), _WORDS[3], "payload"])

    def add(self, log: str, records: Sequence[Record]) -> None:
        """Write a group."""
        for r in records:
            words, values = _words(log, r), [getattr(r.header, c[0]) for c in COLUMNS]
            hexed = [v.hex() if isinstance(v, bytes) else v for v in values]
            self._out.writerow([*words[:3], *hexed, words[3], r.payload.hex()])

    def close(self) -> None:
        """End the file."""
        self._file.close()


class ParquetForm:
    """Columns of the layout's own types, and ``time`` as a UTC timestamp; one row group a group of records, zstd."""

    def __init__(self, path: Path) -> None:
        self.path, self._arrow, parquet = path, need("pyarrow"), need("pyarrow.parquet")
        pa = self._arrow
        types: dict[str, Callable[[], Any]] = {"u8": pa.uint8, "u16": pa.uint16, "u32": pa.uint32, "u64": pa.uint64}
        fields = [pa.field(w, pa.string(), False) for w in _WORDS[:3]]
        fields.append(pa.field("time", pa.timestamp("ns", tz="UTC"), False))
        for name, kind, size, doc in COLUMNS:
            fields.append(pa.field(name, pa.binary(size) if kind == "bytes" else types[kind](), False, metadata={"meaning": doc}))
        fields += [pa.field("detail", pa.string(), False), pa.field("payload", pa.binary(), False)]
        self._schema = pa.schema(fields, metadata={"layout_digest": layout.LAYOUT_DIGEST, "layout_version": str(layout.VERSION)})
        self._writer = parquet.ParquetWriter(str(path), self._schema, compression="zstd", version="2.6")

    def add(self, log: str, records: Sequence[Record]) -> None:
        """Write a group."""
        words = [_words(log, r) for r in records]
        columns: list[Any] = [[w[i] for w in words] for i in range(3)]
        columns.append([r.header.time_ns for r in records])
        columns += [[getattr(r.header, c[0]) for r in records] for c in COLUMNS]
        columns += [[w[3] for w in words], [r.payload for r in records]]
        pa = self._arrow
        arrays = [pa.array(c, f.type) for c, f in zip(columns, self._schema, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))

    def close(self) -> None:
        """End the file."""
        self._writer.close()
