"""The verbs of ``vigil audit``: verify, tail, prove, check a proof, checkpoint, rotate the key."""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from vigil.audit.v1 import service_pb2

from vigil_safety.events_gen import NAMES
from vigil_sidecar.audit.notes import NoteError, Verifier
from vigil_sidecar.audit.prove import NotProven, check_proof, make_proof
from vigil_sidecar.audit.verify import (
    EXIT_FORGED,
    EXIT_NO_KEY,
    EXIT_NO_LOG,
    EXIT_UNREADABLE,
    LogDamaged,
    Record,
    Report,
    read_records,
    verify_folders,
)
from vigil_sidecar.cli.client import connect
from vigil_sidecar.cli.options import read_settings
from vigil_sidecar.errors import CommandFailed, SettingsError
from vigil_sidecar.export.words import explain, plain

__all__ = [
    "audit_checkpoint",
    "audit_proof",
    "audit_prove",
    "audit_rotate_key",
    "audit_tail",
    "audit_verify",
    "folders_of",
    "read_keys",
    "show_record",
]

_SERVICE = "/vigil.audit.v1.AuditService/"
_LOGS = {"gateway": service_pb2.LOG_GATEWAY, "sidecar": service_pb2.LOG_SIDECAR}
_SEVERITY = (0, 3, 6, 5, 1, 4)
"""Exit codes in rising order: of several logs the worst counts."""


def folders_of(args: argparse.Namespace) -> list[Path]:
    """The logs that DIR or the data folder has."""
    if args.dir:
        root = Path(args.dir)
        inner = [root / n for n in ("gateway", "sidecar")]
        return inner if any(x.is_dir() for x in inner) else [root]
    settings, _ = read_settings(args)
    return [Path(settings.data_dir) / "audit" / n for n in ("gateway", "sidecar")]


def read_keys(files: Sequence[Path]) -> list[Verifier]:
    """Trusted keys of --key; raises ``SettingsError``."""
    keys: list[Verifier] = []
    for file in files:
        try:
            lines = [x.strip() for x in file.read_text().splitlines()]
            keys += [Verifier(x) for x in lines if x and not x.startswith("#")]
        except (OSError, UnicodeDecodeError, NoteError) as error:
            raise SettingsError(f"--key {file}: {getattr(error, 'strerror', None) or error}") from None
        if not keys:
            raise SettingsError(f"--key {file}: no key in it")
    return keys


def _witnesses(files: Sequence[Path]) -> dict[str, bytes]:
    try:
        return {str(f): f.read_bytes() for f in files}
    except OSError as error:
        raise SettingsError(f"--witness {error.filename}: {error.strerror}") from None


def _some_records(folder: Path) -> Path:
    if not folder.is_dir() or not any(folder.glob("segment-*.vlog")):
        raise CommandFailed(f"{folder}: no audit log (segment-*.vlog) here; give the folder of a log")
    return folder


def _show(r: Report) -> None:
    if r.damage is not None:
        d = r.damage
        where = f" ({d.file}, byte {d.offset})" if d.file else ""
        print(f"{r.folder}: {r.verdict} at record {d.sequence}{where}: {d.reason}; the first {r.sealed} records are as signed")
        return
    kinds = ", ".join(f"{n} {k}" for k, n in sorted(r.kinds.items()))
    print(f"{r.folder}: {r.verdict}")
    print(f"  {r.log}: {r.records} records ({r.first_sequence}..{r.last_sequence}; {kinds}) in {r.segments} segments of {r.boots} runs")
    if r.pruned or r.kept or r.kept_unproven:
        proven = f"{r.kept} of them are kept with proofs" + (f", {r.kept_unproven} without a trusted signature" if r.kept_unproven else "")
        print(f"  the {r.pruned} records before were pruned; {proven}")
    if not r.closed:
        print("  it does not end with a closing record: it is still written, its writer was killed, or its end was cut off")
    if r.unlogged:
        print(f"  {r.unlogged} calls and events got no record while the log could not be written, as it says itself (event unlogged)")
    if r.witnessed:
        since = f" ({r.unwitnessed_s:.1f} s)" if r.unwitnessed_s >= 0 else ""
        print(f"  {r.witnessed} records are witnessed elsewhere; the last {r.last_sequence - r.witnessed}{since} are not")
    else:
        print("  nothing given here witnesses it: a cut-off end would not be seen")


def audit_verify(args: argparse.Namespace) -> int:
    """vigil audit verify [DIR] [--key FILE]...: 0, 3, 4, 5, 6, or 1 when it could not be read"""
    try:
        reports = verify_folders(folders_of(args), read_keys(args.key), _witnesses(args.witness))
    except NoteError as error:
        raise SettingsError(f"--witness: {error}") from None
    except FileNotFoundError as error:
        print(f"vigil: {error.filename}: {error.strerror}; give the folder of a log", file=sys.stderr)
        return EXIT_NO_LOG
    except OSError as error:
        print(f"vigil: {error.filename}: {error.strerror}", file=sys.stderr)
        return EXIT_UNREADABLE
    if args.json:
        print(json.dumps([r.to_json() for r in reports]))
    else:
        for report in reports:
            _show(report)
    return max((r.exit_code for r in reports), key=_SEVERITY.index)


def audit_tail(args: argparse.Namespace) -> int:
    """vigil audit tail: 0, or 4 when a log is damaged"""
    if args.lines < 1:
        raise SettingsError(f"--lines {args.lines}: allowed is 1 and more")
    code = 0
    for folder in folders_of(args):
        last: deque[Record] = deque(maxlen=args.lines)
        try:
            for record in read_records(_some_records(folder)):
                if not args.trace or record.header.trace_id.hex() == args.trace:
                    last.append(record)
        except OSError as error:
            raise CommandFailed(f"{folder}: {error.strerror or error}; give the folder of a log") from None
        except LogDamaged as damaged:
            print(f"vigil: {folder}: {damaged}; `vigil audit verify` says more", file=sys.stderr)
            code = EXIT_FORGED
        for record in last:
            show_record(record, folder.name, args.json)
    return code


def show_record(record: Record, log: str, as_json: bool) -> None:
    """One record in a line."""
    shown = explain(record, log)
    if as_json:
        print(json.dumps(shown))
        return
    told = {**dict(list(shown.items())[5:-1]), **shown["detail"]}
    rest = "  ".join(f"{k}={plain(v)}" for k, v in told.items() if v not in ("", 0))
    print(f"{shown['time']} {log}/{record.header.sequence} {shown['event']} {shown['name']} {rest}")


def _one_folder(args: argparse.Namespace) -> Path:
    """The folder of --log: below the data folder, or DIR itself."""
    if args.dir:
        root = Path(args.dir)
        return root / args.log if (root / args.log).is_dir() else root
    settings, _ = read_settings(args)
    return Path(settings.data_dir, "audit", args.log)


def audit_prove(args: argparse.Namespace) -> int:
    """vigil audit prove SEQ -o FILE"""
    folder = _some_records(_one_folder(args))
    try:
        proof = make_proof(folder, args.sequence)
        args.output.write_bytes(proof)
    except NotProven as error:
        raise CommandFailed(f"{folder}: {error}") from None
    except LogDamaged as damaged:
        raise CommandFailed(f"{folder}: {damaged}; `vigil audit verify` says more") from None
    except OSError as error:
        raise CommandFailed(f"{error.filename}: {error.strerror}") from None
    if args.json:
        print(json.dumps({"file": str(args.output), "sequence": args.sequence, "bytes": len(proof)}))
    else:
        print(f"{args.output}: proof of record {args.sequence}; check it with `auditverify proof {args.output} --key KEYS`")
    return 0


def audit_proof(args: argparse.Namespace) -> int:
    """vigil audit proof FILE --key FILE...: 0 verified, 4 not proven, 6 no signature by a trusted key"""
    try:
        header, _, head, trusted = check_proof(args.file.read_bytes(), read_keys(args.key))
    except NotProven as error:
        print(f"vigil: {args.file}: {error}", file=sys.stderr)
        return EXIT_FORGED
    except OSError as error:
        print(f"vigil: {args.file}: {error.strerror}", file=sys.stderr)
        return EXIT_UNREADABLE
    if not trusted:
        print(f"vigil: {args.file}: no signature by a trusted key", file=sys.stderr)
        return EXIT_NO_KEY
    event = f"DIA-{header.event_id} {NAMES.get(header.event_id, '')}"
    if args.json:
        print(
            json.dumps(
                {"log": head.origin, "sequence": header.sequence, "event": event, "trace_id": header.trace_id.hex(), "size": head.size}
            )
        )
    else:
        print(
            f"{args.file}: verified: record {header.sequence} of {head.origin}, {event}, is one of the {head.size} records that were signed"
        )
    return 0


def audit_checkpoint(args: argparse.Namespace) -> int:
    """vigil audit checkpoint"""
    request = service_pb2.CheckpointRequest(log=_LOGS[args.log])
    reply, _ = connect(args).call(_SERVICE + "Checkpoint", request, service_pb2.CheckpointResponse)
    if not reply.note:
        raise CommandFailed("no checkpoint was signed yet; ask again in a moment")
    print(json.dumps({"note": reply.note}) if args.json else reply.note, end="\n" if args.json else "")
    return 0


def audit_rotate_key(args: argparse.Namespace) -> int:
    """vigil audit rotate-key"""
    client, rows = connect(args), []
    for log in [args.log] if args.log else _LOGS:
        request = service_pb2.RotateKeyRequest(log=_LOGS[log], reason=args.reason)
        reply, _ = client.call(_SERVICE + "RotateKey", request, service_pb2.RotateKeyResponse)
        rows.append({"log": log, "verifier_key": reply.verifier_key})
    if args.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            print(row["verifier_key"])
    return 0
