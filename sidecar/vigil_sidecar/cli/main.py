"""The ``vigil`` command. Exit codes: 0 fine, 1 the thing asked for failed, 2 usage; audit verify: docs/audit-format.md."""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from vigil_sidecar.cli.options import add_settings_flags, read_settings, settings_flags
from vigil_sidecar.errors import SettingsError, VigilError

__all__ = ["entry", "main"]

_GC_ALLOCATIONS = 20_000


def _up(args: argparse.Namespace) -> int:
    from vigil_sidecar.cli.supervisor import Supervisor

    settings, _ = read_settings(args)
    return Supervisor(settings, settings_flags(args), args.config, args.ready_file).run()


def _sidecar(args: argparse.Namespace) -> int:
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type] # structlog would take it for tracebacks on a terminal, when it is there
    from vigil_sidecar.app import Sidecar
    from vigil_sidecar.telemetry.log import configure

    settings, _ = read_settings(args)
    configure(settings.log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    models = Path(settings.models_dir)
    if not models.is_dir():
        raise SettingsError(f"models.dir = {settings.models_dir!r}: there is no such folder; make it, or give --models DIR")
    sidecar = Sidecar(settings)
    try:
        ports = sidecar.start()
    except OSError as error:
        sidecar.audit.close()
        raise VigilError(f"{error}; give another port, or 0 for a free one") from None
    sidecar.write_ports(*ports)
    # What was made while starting lives for ever: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_ALLOCATIONS, 20, 50)
    stop.wait()
    sidecar.stop()
    return 0


def _lazy(module: str, name: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        loaded = __import__(f"vigil_sidecar.cli.{module}", fromlist=[name])
        code: int = getattr(loaded, name)(args)
        return code

    return run


def _common(parser: argparse.ArgumentParser, target: bool) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    if target:
        parser.add_argument("--target", metavar="HOST:PORT", help="gateway (default: the one of the data folder)")
    add_settings_flags(parser)


def _version(text: str) -> int:
    number = int(text)
    if not 0 < number < 1 << 63:
        raise ValueError
    return number


def _models(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    models = verbs.add_parser("models", help="list, show, config, activate, reload, load, unload").add_subparsers(dest="sub", required=True)
    for name, summary in (
        ("list", "every model and version"),
        ("show", "one model"),
        ("config", "a model's configuration, completed from its graph, as config.pbtxt would have it"),
        ("activate", "let a version serve"),
        ("reload", "look at the files again"),
        ("load", "load a model, or load it anew (models.control = explicit)"),
        ("unload", "unload a model (models.control = explicit)"),
    ):
        parser = models.add_parser(name, help=summary)
        if name != "list":
            parser.add_argument("name", metavar="NAME")
        if name == "activate":
            parser.add_argument("version", metavar="VERSION", type=_version)
        if name == "config":
            parser.add_argument("--version", metavar="N", type=_version, help="which (default: the serving one)")
        if name == "load":
            parser.add_argument("--override", metavar="FILE", type=Path, help="a config.pbtxt in place of the repository's")
        if name in ("activate", "reload"):
            parser.add_argument("--reason", default="", help="why, for the audit record")
        _common(parser, target=True)
        parser.set_defaults(run=_lazy("verbs", f"models_{name}"))


def _calls(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    infer = verbs.add_parser("infer", help="send tensors to a model")
    infer.add_argument("name", metavar="NAME")
    infer.add_argument("--input", metavar="NAME=FILE.npy", action="append", required=True)
    infer.add_argument("--version", metavar="V")
    infer.add_argument("--output-dir", metavar="D", type=Path, help="write each output as NAME.npy")
    _common(infer, target=True)
    infer.set_defaults(run=_lazy("verbs", "infer"))
    detect = verbs.add_parser("detect", help="find boxes on pictures")
    detect.add_argument("image", metavar="IMAGE", nargs="+", type=Path)
    detect.add_argument("--model", metavar="NAME", required=True)
    detect.add_argument("--out", metavar="DIR", type=Path, help="write pictures with the boxes drawn")
    detect.add_argument("--source", metavar="ID", help="source of the frames (default: one of this command's own)")
    detect.add_argument("--min-confidence", metavar="C", type=float, default=0.5)
    _common(detect, target=True)
    detect.set_defaults(run=_lazy("verbs", "detect"))
    play = verbs.add_parser("play", help="send a folder's pictures as the frames of a source, over and over")
    play.add_argument("folder", metavar="FOLDER", type=Path)
    play.add_argument("--source", metavar="NAME", required=True, help="source of the frames, as a page or a watcher names it")
    play.add_argument("--fps", metavar="F", type=float, default=10.0, help="frames a second (default: 10)")
    play.add_argument("--model", metavar="NAME", help="which finds the boxes (default: the only one that takes pictures)")
    play.add_argument("--count", metavar="N", type=int, help="end after so many frames (default: when interrupted)")
    play.add_argument("--min-confidence", metavar="C", type=float, default=0.5)
    _common(play, target=True)
    play.set_defaults(run=_lazy("playing", "play"))


def _sequence(text: str) -> int:
    return int(text.rsplit("/", 1)[-1])


def _audit(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    audit = verbs.add_parser("audit", help="verify, read and prove the audit logs").add_subparsers(dest="sub", required=True)
    verify = audit.add_parser("verify", help="check records, chain, tree, signatures and cross-anchors")
    verify.add_argument("dir", metavar="DIR", nargs="?")
    verify.add_argument("--key", metavar="FILE", action="append", type=Path, default=[], help="trusted note verifier keys, one a line")
    verify.add_argument("--witness", metavar="FILE", action="append", type=Path, default=[], help="a checkpoint that was kept outside")
    _common(verify, target=False)
    verify.set_defaults(run=_lazy("auditing", "audit_verify"))
    tail = audit.add_parser("tail", help="the last records in words")
    tail.add_argument("dir", metavar="DIR", nargs="?")
    tail.add_argument("-n", "--lines", type=int, default=10)
    tail.add_argument("--trace", metavar="ID", help="only records of this trace id")
    _common(tail, target=False)
    tail.set_defaults(run=_lazy("auditing", "audit_tail"))
    prove = audit.add_parser("prove", help="write a proof that a record is in the signed log (C2SP tlog-proof)")
    prove.add_argument("sequence", metavar="SEQ", type=_sequence, help="the sequence, or a position LOG/BOOT/SEQ")
    prove.add_argument("-o", "--output", metavar="FILE", type=Path, required=True)
    prove.add_argument("--dir", metavar="DIR")
    prove.add_argument("--log", choices=("gateway", "sidecar"), default="sidecar")
    _common(prove, target=False)
    prove.set_defaults(run=_lazy("auditing", "audit_prove"))
    proof = audit.add_parser("proof", help="check a proof")
    proof.add_argument("file", metavar="FILE", type=Path)
    proof.add_argument("--key", metavar="FILE", action="append", type=Path, default=[], help="trusted note verifier keys, one a line")
    _common(proof, target=False)
    proof.set_defaults(run=_lazy("auditing", "audit_proof"))
    checkpoint = audit.add_parser("checkpoint", help="the latest signed checkpoint, for a witness")
    checkpoint.add_argument("--log", choices=("gateway", "sidecar"), default="sidecar")
    _common(checkpoint, target=True)
    checkpoint.set_defaults(run=_lazy("auditing", "audit_checkpoint"))
    rotate = audit.add_parser("rotate-key", help="sign with a new key from now on; prints the new verifier keys")
    rotate.add_argument("--log", choices=("gateway", "sidecar"), help="only this log (default: both)")
    rotate.add_argument("--reason", default="", help="why, for the record")
    _common(rotate, target=True)
    rotate.set_defaults(run=_lazy("auditing", "audit_rotate_key"))
    _review(audit)


def _selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", dest="time_from", metavar="TIME", help="records from this time on, as 2026-11-25T10:00:00Z")
    parser.add_argument("--to", dest="time_to", metavar="TIME", help="records before this time")
    parser.add_argument("--trace", metavar="ID", help="records of this trace id")
    parser.add_argument("--model", metavar="NAME")
    parser.add_argument("--event", metavar="DIA-NNNN", help="an event of docs/events.md, or its name")
    parser.add_argument("--tenant", metavar="T")
    parser.add_argument("--hash-key", metavar="FILE", type=Path, help="key of keyed hashes, to find a tenant")
    parser.add_argument("--log", choices=("gateway", "sidecar"), help="only this log")


def _review(audit: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    export = audit.add_parser("export", help="records in many forms, with what proves them, for a reviewer")
    export.add_argument("dir", metavar="DIR", nargs="?", help="the logs (default: those of the data folder)")
    export.add_argument("-o", "--output", metavar="DIR|FILE.zip", type=Path, required=True)
    export.add_argument("--key", metavar="FILE", action="append", type=Path, default=[], help="trusted keys, for the verdict in the report")
    export.add_argument("--forms", metavar="A,B", help="of parquet, csv, mdf4, dlt, a2l, segments, tiles, report (default: all)")
    search = audit.add_parser("search", help="find records")
    search.add_argument("dir", metavar="DIR", nargs="?")
    search.add_argument("-n", "--limit", type=int, default=100)
    search.add_argument("--after", metavar="SEQ", type=int, default=0, help="go on behind this sequence")
    stats = audit.add_parser("stats", help="counts of events")
    stats.add_argument("dir", metavar="DIR", nargs="?")
    for name, parser in (("export", export), ("search", search), ("stats", stats)):
        _selection(parser)
        _common(parser, target=False)
        parser.set_defaults(run=_lazy("reviewing", f"audit_{name}"))
    show = audit.add_parser("show", help="one record with every field explained")
    show.add_argument("position", metavar="POSITION", help="LOG/BOOT/SEQ, or SEQ with --log")
    show.add_argument("--dir", metavar="DIR")
    show.add_argument("--log", choices=("gateway", "sidecar"))
    _common(show, target=False)
    show.set_defaults(run=_lazy("reviewing", "audit_show"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vigil", description="Safety-grade model serving.", epilog=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="run gateway and sidecar under a supervisor")
    up.add_argument("--ready-file", metavar="F", type=Path, help="written when everything is ready (JSON with ports and pids)")
    add_settings_flags(up)
    up.set_defaults(run=_up)
    sidecar = verbs.add_parser("sidecar", help="run the sidecar alone")
    add_settings_flags(sidecar)
    sidecar.set_defaults(run=_sidecar)
    _models(verbs)
    _calls(verbs)
    _audit(verbs)
    _safety(verbs)
    config = verbs.add_parser("config", help="settings").add_subparsers(dest="sub", required=True)
    show = config.add_parser("show", help="each setting with its origin")
    _common(show, target=False)
    show.set_defaults(run=_lazy("local", "config_show"))
    doctor = verbs.add_parser("doctor", help="check this machine and say what to do")
    _common(doctor, target=False)
    doctor.set_defaults(run=_lazy("local", "doctor"))
    return parser


def _safety(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    safety = verbs.add_parser("safety", help="safety state").add_subparsers(dest="sub", required=True)
    status = safety.add_parser("status", help="state of the whole and of each subject; exit 0 only when normal")
    watch = safety.add_parser("watch", help="the present state, then each change")
    history = safety.add_parser("history", help="the latest changes of this run")
    history.add_argument("--limit", type=int, default=100, metavar="N", help="at most this many (1000)")
    for parser in (watch, history):
        parser.add_argument("--subject", action="append", default=[], help="sidecar, model/NAME, log/gateway, log/sidecar; may be repeated")
    watch.add_argument("--resume", default="", metavar="TOKEN", help="go on after the change that has this resume token (--json shows it)")
    reset = safety.add_parser("reset", help="end a latched Safe stop; who and why go into the audit log")
    reset.add_argument("--subject", help="one subject (default: all that are latched)")
    reset.add_argument("--reason", required=True, metavar="TEXT", help="why it may end")
    reset.add_argument("--by", required=True, metavar="NAME", help="who says so")
    for name, parser in (("status", status), ("watch", watch), ("history", history), ("reset", reset)):
        _common(parser, target=True)
        parser.set_defaults(run=_lazy("safety", "safety_" + name))
    _injection(safety)
    simulate = safety.add_parser("simulate", help="drive the table with events from stdin, one JSON line each (safety/events.schema.json)")
    simulate.add_argument("--parameter", action="append", default=[], metavar="NAME=N", help="a parameter of safety/machine.yaml")
    simulate.set_defaults(run=_lazy("safety", "safety_simulate"))
    replayed = safety.add_parser("replay", help="hold the recorded changes of a log against the table")
    replayed.add_argument("dir", nargs="?", metavar="DIR", help="a log, or a folder with both (default: those of the data folder)")
    _common(replayed, target=False)
    replayed.set_defaults(run=_lazy("safety", "safety_replay"))


def _injection(safety: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    kinds = safety.add_parser("kinds", help="faults that can be injected")
    kinds.add_argument("--json", action="store_true", help="one JSON object a line")
    kinds.set_defaults(run=_lazy("injecting", "safety_kinds"))
    inject = safety.add_parser("inject", help="bring about one fault; only where safety.injection is on")
    inject.add_argument("kind", metavar="KIND", help="see vigil safety kinds")
    inject.add_argument("--model", metavar="NAME", help="the model that it is about")
    inject.add_argument("--duration-ms", type=int, default=0, metavar="N", help="how long (default: as the kind says)")
    inject.add_argument(
        "--magnitude", type=float, default=0.0, metavar="X", help="how much, in the kind's unit (default: as the kind says)"
    )
    _common(inject, target=True)
    inject.set_defaults(run=_lazy("injecting", "safety_inject"))
    campaign = safety.add_parser("campaign", help="inject every kind, under load, and report; only where safety.injection is on")
    campaign.add_argument("--model", required=True, metavar="NAME", help="the model that is called and made to fail")
    campaign.add_argument("--quick", action="store_true", help="each kind once, and once with a magnitude that must trip nothing")
    campaign.add_argument(
        "--repetitions", type=int, default=0, metavar="N", help="injections of each kind (1000; 100 where a process restarts)"
    )
    campaign.add_argument("--kinds", action="append", default=[], metavar="K,K", help="only these kinds")
    campaign.add_argument(
        "--quiet-s", type=float, metavar="S", help="load without any fault before, for false alarms (600; 0 with --quick)"
    )
    campaign.add_argument("--out", metavar="DIR", help="where the report goes (default: campaign below the data folder)")
    _common(campaign, target=True)
    campaign.set_defaults(run=_lazy("injecting", "safety_campaign"), dir=None)


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    try:
        args = _parser().parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        code: int = args.run(args)
    except SettingsError as error:
        print(f"vigil: {error}", file=sys.stderr)
        return 2
    except VigilError as error:
        print(f"vigil: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0
    except UnicodeEncodeError:
        print("vigil: an argument is not UTF-8 text; give names as they are listed", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def entry() -> None:
    """Console script."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    entry()
