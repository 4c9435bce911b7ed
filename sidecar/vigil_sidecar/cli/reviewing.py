"""The verbs of ``vigil audit`` for review: export, search, show, stats."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vigil_safety.events_gen import NAMES
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.reader import LogDamaged, Record, read_records
from vigil_sidecar.audit.verify import EXIT_FORGED
from vigil_sidecar.cli.auditing import folders_of, read_keys, show_record
from vigil_sidecar.errors import CommandFailed, SettingsError
from vigil_sidecar.export.bundle import FORMS, export, pack
from vigil_sidecar.export.forms import FormMissing
from vigil_sidecar.export.selection import Selection, select
from vigil_sidecar.export.words import detail, explain, plain, time_text

__all__ = ["audit_export", "audit_search", "audit_show", "audit_stats"]

_LIMIT_MAX = 100_000


def _time(text: str | None, flag: str, default: int) -> int:
    if text is None:
        return default
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"{flag} {text}: give a time as 2026-11-25T10:00:00Z") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1e6) * 1000


def _selection(args: argparse.Namespace) -> Selection:
    trace, event = args.trace or "", args.event or ""
    try:
        trace_id = bytes.fromhex(trace)
    except ValueError:
        trace_id = b"?"
    if trace and len(trace_id) != 16:
        raise SettingsError(f"--trace {trace}: a trace id has 32 hex digits")
    number = event.upper().removeprefix("DIA-")
    if event and not (number.isdigit() and int(number) in NAMES):
        known = {name: n for n, name in NAMES.items()}
        if event not in known:
            raise SettingsError(f"--event {event}: not in the catalogue (docs/events.md); give DIA-NNNN or a name")
        number = str(known[event])
    key = b""
    if args.hash_key is not None:
        try:
            key = bytes.fromhex(args.hash_key.read_text())
        except (OSError, ValueError):
            raise SettingsError(f"--hash-key {args.hash_key}: not a file of 64 hex digits") from None
    tenants = Selection.of_tenant(args.tenant, key) if args.tenant else frozenset()
    start, end = _time(args.time_from, "--from", 0), _time(args.time_to, "--to", 1 << 63)
    if start >= end:
        raise SettingsError(f"--from {args.time_from} is not before --to {args.time_to}")
    return Selection(start, end, trace_id if trace else b"", args.model or "", int(number) if event else 0, tenants)


def _present(args: argparse.Namespace) -> list[Path]:
    wanted = [f for f in folders_of(args) if getattr(args, "log", None) in (None, f.name)]
    found = [f for f in wanted if f.is_dir() and any(f.glob("segment-*.vlog"))]
    if not found:
        raise CommandFailed(f"{wanted[0] if wanted else args.dir}: no audit log (segment-*.vlog) here; give the folder of a log")
    return found


def _progress(args: argparse.Namespace) -> Callable[[int], Callable[[int], None]]:
    def begin(total: int) -> Callable[[int], None]:
        if args.json or not sys.stderr.isatty():
            return lambda n: None
        try:
            from tqdm import tqdm
        except ImportError:
            return lambda n: None
        bar = tqdm(total=total, unit=" records", file=sys.stderr, leave=False)

        def advance(n: int) -> None:
            bar.update(n)
            if bar.n >= total:
                bar.close()

        return advance

    return begin


def audit_export(args: argparse.Namespace) -> int:
    """vigil audit export -o DIR|FILE.zip: 0, 4 when a log is damaged (it is exported up to there), 1"""
    selection, forms = _selection(args), args.forms.split(",") if args.forms else list(FORMS)
    unknown = [f for f in forms if f not in FORMS]
    if unknown:
        raise SettingsError(f"--forms {unknown[0]}: known are {', '.join(FORMS)}")
    folders, keys = _present(args), read_keys(args.key)
    target: Path = args.output
    if target.exists():
        raise CommandFailed(f"{target} is there already; give a name that is free")
    packed = target.suffix == ".zip"
    try:
        if packed:
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".vigil-export-") as scratch:
                inner = Path(scratch) / target.stem
                manifest = export(folders, keys, args.key, selection, forms, inner, _progress(args))
                pack(inner, target)
        else:
            try:
                manifest = export(folders, keys, args.key, selection, forms, target, _progress(args))
            except BaseException:
                shutil.rmtree(target, ignore_errors=True)  # half an export could be taken for a whole one
                raise
    except FormMissing as missing:
        raise CommandFailed(f"{missing} (--forms)") from None
    except OSError as error:
        raise CommandFailed(f"{error.filename or target}: {error.strerror or error}") from None
    _show_export(manifest, target, args.json)
    return EXIT_FORGED if any(log["damage"] or log["verification"]["exit_code"] == EXIT_FORGED for log in manifest["logs"]) else 0


def _show_export(manifest: dict[str, Any], target: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(manifest))
        return
    for log in manifest["logs"]:
        print(f"{log['log']}: {log['exported']} of {log['records']} records; {log['verification']['verdict']}")
        if log["unproven"] and not manifest["whole"]:
            print(f"  {log['unproven']} of them have no proof yet: no checkpoint covers them")
        if log["no_tiles_because"]:
            print(f"  no tiles: {log['no_tiles_because']}")
    print(f"{target}: {len(manifest['files'])} files; check them with `{manifest['verify_with'].replace('DIR', str(target))}`")


def audit_search(args: argparse.Namespace) -> int:
    """vigil audit search: 0"""
    if not 1 <= args.limit <= _LIMIT_MAX:
        raise SettingsError(f"--limit {args.limit}: allowed is 1..{_LIMIT_MAX}")
    selection, count, last = _selection(args), 0, 0
    for folder in _present(args):
        try:
            for record in select(folder, selection, args.after):
                if count == args.limit:
                    print(
                        f"vigil: more than {args.limit}; go on with --log {folder.name} --after {last}, or raise --limit", file=sys.stderr
                    )
                    return 0
                show_record(record, folder.name, args.json)
                count, last = count + 1, record.header.sequence
        except LogDamaged as damaged:
            print(f"vigil: {folder}: {damaged}; `vigil audit verify` says more", file=sys.stderr)
            return EXIT_FORGED
    if not count:
        print("vigil: no such record", file=sys.stderr)
    return 0


def audit_show(args: argparse.Namespace) -> int:
    """vigil audit show POSITION: 0, or 1 when it is not there"""
    parts = args.position.split("/")
    if len(parts) not in (1, 3) or not parts[-1].isdigit():
        raise SettingsError(f"{args.position}: give a position LOG/BOOT/SEQ, or SEQ with --log")
    args.log = parts[0] if len(parts) == 3 else args.log or "sidecar"
    sequence = int(parts[-1])
    for folder in _present(args):
        for record in select(folder, Selection(), sequence - 1):
            if record.header.sequence != sequence or (len(parts) == 3 and record.header.boot_id.hex() != parts[1]):
                break
            _show_fields(record, folder.name, args.json)
            return 0
    raise CommandFailed(f"{args.position} is not in the log {args.log}; it may have been pruned, see its archive")


def _show_fields(record: Record, log: str, as_json: bool) -> None:
    if as_json:
        header = {k: v.hex() if isinstance(v, bytes) else v for k, v in record.header._asdict().items()}
        print(json.dumps(explain(record, log) | {"header": header, "leaf_hash": record.leaf.hex(), "file": record.file}))
        return
    print(f"{log}/{record.header.sequence}  {time_text(record.header.time_ns)}  {NAMES[record.header.event_id]}  ({record.file})")
    for (name, _, _, meaning), value in zip(layout.FIELDS, record.header, strict=True):
        print(f"  {name:20} {value.hex() if isinstance(value, bytes) else value!s:<22}  {meaning}")
    for name, value in detail(record).items():
        print(f"  payload.{name:12} {plain(value)}")
    print(f"  leaf hash            {record.leaf.hex()}")


def audit_stats(args: argparse.Namespace) -> int:
    """vigil audit stats: 0, or 4 when a log is damaged"""
    code, found = 0, []
    selection = _selection(args)
    for folder in _present(args):
        events: Counter[int] = Counter()
        first = last = size = 0
        try:
            for record in read_records(folder):
                if selection.matches(record):
                    events[record.header.event_id] += 1
                    first, last = first or record.header.time_ns, record.header.time_ns
                    size += record.header.length
        except LogDamaged as damaged:
            print(f"vigil: {folder}: {damaged}; `vigil audit verify` says more", file=sys.stderr)
            code = EXIT_FORGED
        total, seconds = sum(events.values()), max(0, last - first) / 1e9
        named = {f"DIA-{e} {NAMES[e]}": n for e, n in events.most_common()}
        found.append(
            {
                "log": folder.name, "records": total, "bytes": size, "first": time_text(first) if total else "",
                "last": time_text(last) if total else "", "per_second": round(total / seconds, 3) if seconds else None, "events": named,
            }
        )  # fmt: skip
    if args.json:
        print(json.dumps(found))
        return code
    for log in found:
        rate = f", {log['per_second']} a second" if log["per_second"] else ""
        print(f"{log['log']}: {log['records']} records, {log['bytes']} bytes, {log['first']} to {log['last']}{rate}")
        events_of: Any = log["events"]
        for name, n in events_of.items():
            print(f"  {n:>10}  {name}")
    return code
