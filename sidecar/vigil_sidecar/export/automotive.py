"""Records for the tools of vehicle engineers: ASAM MDF 4.10, AUTOSAR DLT, and an ASAM A2L description of the layout."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from vigil_safety.events_gen import NAMES
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.reader import Record
from vigil_sidecar.export.forms import COLUMNS, need
from vigil_sidecar.export.words import detail

__all__ = ["DltForm", "MdfForm", "a2l_text"]

_DTYPES = {"u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64}
_DLT_TEXT_MAX = 40_000
"""A message has at most 65,535 bytes with all of its arguments."""
_DLT_TICKS = 1 << 32


class MdfForm:
    """One channel group a log: a channel a header field over seconds since the first record; ``time_ns`` is exact.

    Payloads are left out: MDF is for numbers. Byte strings are arrays of bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._asammdf = path, need("asammdf")
        self._scratch = tempfile.TemporaryDirectory(prefix="vigil-mdf-")
        self._mdf = self._asammdf.MDF(version="4.10", temporary_folder=self._scratch.name)
        self._groups: dict[str, int] = {}
        self._start_ns = 0

    def add(self, log: str, records: Sequence[Record]) -> None:
        """Write a group."""
        if not records:
            return
        if not self._groups:
            self._start_ns = records[0].header.time_ns
            self._mdf.header.start_time = datetime.fromtimestamp(self._start_ns // 10**9, UTC)
            self._mdf.header.abs_time = self._start_ns
        times = np.array([r.header.time_ns for r in records], np.uint64)
        seconds = (times.astype(np.int64) - self._start_ns) / 1e9
        values: list[Any] = []
        for name, kind, size, _ in COLUMNS:
            column = [getattr(r.header, name) for r in records]
            if kind == "bytes":
                values.append(np.frombuffer(b"".join(column), np.uint8).reshape(-1, size))
            else:
                values.append(np.array(column, _DTYPES[kind]))
        if log not in self._groups:
            signals = [
                self._asammdf.Signal(samples=v, timestamps=seconds, name=c[0], comment=c[3]) for c, v in zip(COLUMNS, values, strict=True)
            ]
            self._mdf.append(signals, acq_name=log, comment=f"audit log {log}", common_timebase=True)
            self._groups[log] = len(self._groups)
        else:
            self._mdf.extend(self._groups[log], [(seconds, None), *((v, None) for v in values)])

    def close(self) -> None:
        """Write the file."""
        self._mdf.save(str(self.path), overwrite=True, compression=2)
        self._mdf.close()
        self._scratch.cleanup()


class DltForm:
    """One verbose message a record: sequence, event, trace, times and states as arguments, the payload in words."""

    def __init__(self, path: Path) -> None:
        self.path, self._dlt = path, need("pydlt")
        self._writer = self._dlt.DltFileWriter(str(path))
        self._count = 0

    def add(self, log: str, records: Sequence[Record]) -> None:
        """Write a group."""
        dlt, ecu, context = self._dlt, {"gateway": "VGWY", "sidecar": "VSDC"}.get(log, "VIGL"), {}
        for kind, name in layout.KIND_NAMES.items():
            context[kind] = name[:4].upper()
        for r in records:
            h = r.header
            text = json.dumps(detail(r), ensure_ascii=False, default=str)
            arguments = [
                dlt.ArgumentString(f"DIA-{h.event_id} {NAMES.get(h.event_id, '')}", is_utf8=True), dlt.ArgumentUInt64(h.sequence),
                dlt.ArgumentRaw(h.trace_id), dlt.ArgumentUInt32(h.status_code), dlt.ArgumentUInt8(h.safety_state),
                dlt.ArgumentUInt64(h.model_version), dlt.ArgumentRaw(h.model_digest), dlt.ArgumentRaw(h.input_hash),
                dlt.ArgumentRaw(h.output_hash), dlt.ArgumentUInt64(h.latency_ns), dlt.ArgumentRaw(r.leaf),
                dlt.ArgumentString(text.encode()[:_DLT_TEXT_MAX].decode("utf-8", "ignore"), is_utf8=True),
            ]  # fmt: skip
            level = dlt.MessageLogInfo.DLT_LOG_INFO if h.status_code == 0 else dlt.MessageLogInfo.DLT_LOG_WARN
            message = dlt.DltMessage.create_verbose_message(
                arguments, dlt.MessageType.DLT_TYPE_LOG, level, "AUDT", context[h.kind],
                timestamp=h.monotonic_ns // 100_000 % _DLT_TICKS, session_id=0, ecu_id=ecu, message_counter=self._count & 0xFF,
                str_header=dlt.StorageHeader(h.time_ns // 10**9, h.time_ns % 10**9 // 1000, ecu),
            )  # fmt: skip
            self._writer.write_message(message)
            self._count += 1

    def close(self) -> None:
        """End the file."""
        self._writer.close()


def a2l_text() -> str:
    """The record's header as ASAM MCD-2 MC 1.7.1: one packed structure at fixed offsets, little-endian."""
    types = {"u8": ("UBYTE", 1), "u16": ("UWORD", 2), "u32": ("ULONG", 4), "u64": ("A_UINT64", 8)}
    measurements = "\n".join(
        f'    /begin TYPEDEF_MEASUREMENT T_{name} "unsigned, {size} bytes" {name} NO_COMPU_METHOD 1 0 0 {(1 << 8 * size) - 1}\n'
        "    /end TYPEDEF_MEASUREMENT"
        for name, size in types.values()
    )
    components, at = [], 0
    for field, kind, size, _ in layout.FIELDS:
        of_type, shape = ("T_UBYTE", f" MATRIX_DIM {size}") if kind == "bytes" else (f"T_{types[kind][0]}", "")
        components.append(f"      /begin STRUCTURE_COMPONENT {field} {of_type} 0x{at:X}{shape} /end STRUCTURE_COMPONENT")
        at += size
    inner = "\n".join(components)
    return f"""ASAP2_VERSION 1 71
/begin PROJECT vigil "Vigil audit record, layout version {layout.VERSION}"
  /begin HEADER "docs/audit-format.md"
    VERSION "{layout.VERSION}"
    PROJECT_NO VIGIL
  /end HEADER
  /begin MODULE audit_record "Packed, fixed offsets; a payload of length - {at} bytes follows"
    /begin MOD_COMMON "little-endian"
      BYTE_ORDER MSB_LAST
      ALIGNMENT_BYTE 1
      ALIGNMENT_WORD 1
      ALIGNMENT_LONG 1
      ALIGNMENT_INT64 1
    /end MOD_COMMON
{measurements}
    /begin TYPEDEF_STRUCTURE T_AuditRecord "Header of an audit record" {at}
{inner}
    /end TYPEDEF_STRUCTURE
    /begin INSTANCE record "Address 0 is the record's first byte" T_AuditRecord 0x0
    /end INSTANCE
  /end MODULE
/end PROJECT
"""
