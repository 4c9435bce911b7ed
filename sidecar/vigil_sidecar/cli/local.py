"""Verbs that need no gateway: settings and doctor."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import sys
import time
from pathlib import Path

from vigil_sidecar.cli.options import read_settings
from vigil_sidecar.cli.supervisor import gateway_binary
from vigil_sidecar.errors import CommandFailed
from vigil_sidecar.settings_gen import SPECS

__all__ = ["config_show", "doctor"]


def config_show(args: argparse.Namespace) -> int:
    """vigil config show"""
    settings, origin = read_settings(args)
    rows = [{"key": s.key, "value": getattr(settings, s.name), "origin": origin[s.key]} for s in SPECS]
    if args.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print(f"{row['key']:36} {json.dumps(row['value']):24} {row['origin']}")
    return 0


def _check_port(host: str, port: int) -> str | None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return f"{error.strerror}; stop what uses it, or give another port"
    return None


def _check_data(folder: Path) -> str | None:
    probe = folder if folder.exists() else folder.parent
    if probe.exists() and not probe.is_dir():
        return f"{probe} is not a folder; give --data-dir another one"
    while not probe.exists():
        probe = probe.parent
    if not os.access(probe, os.W_OK):
        return f"{probe} cannot be written; give --data-dir another folder"
    free = shutil.disk_usage(probe).free
    return f"only {free >> 20} MiB are free" if free < 1 << 30 else None


def _check_models(folder: Path) -> str | None:
    if not folder.is_dir():
        return f"{folder} does not exist; run `make setup` for the demonstration models, or give --models DIR"
    try:
        found = [m.name for m in folder.iterdir() if m.is_dir() and any(m.glob("[1-9]*/model.onnx"))]
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    return None if found else f"{folder} holds no NAME/VERSION/model.onnx"


def doctor(args: argparse.Namespace) -> int:
    """vigil doctor"""
    settings, _ = read_settings(args)
    checks: list[tuple[str, str | None]] = []
    ok = sys.version_info >= (3, 11)
    checks.append(("Python 3.11 or newer", None if ok else f"this is {sys.version.split()[0]}"))
    try:
        gateway_binary()
        checks.append(("vigil-gateway", None))
    except CommandFailed as error:
        checks.append(("vigil-gateway", str(error)))
    for name in ("onnxruntime", "grpc", "cv2", "PIL"):
        start = time.monotonic()
        try:
            __import__(name)
            checks.append((f"package {name} ({time.monotonic() - start:.1f} s)", None))
        except ImportError as error:
            checks.append((f"package {name}", f"{error}; run `make setup`"))
    checks.append((f"models in {settings.models_dir}", _check_models(Path(settings.models_dir))))
    checks.append((f"data folder {settings.data_dir}", _check_data(Path(settings.data_dir))))
    checks.append(("memfd_create", None if hasattr(os, "memfd_create") else "the kernel has no memfd; Linux 3.17 or newer is needed"))
    for spec in SPECS:
        if spec.key.endswith("_port") and getattr(settings, spec.name):
            port = getattr(settings, spec.name)
            checks.append((f"{spec.key} {port}", _check_port(settings.listen_host, port)))
    if args.json:
        print(json.dumps([{"check": c, "ok": p is None, "problem": p} for c, p in checks]))
    else:
        for check, problem in checks:
            print(f"{'ok  ' if problem is None else 'FAIL'} {check}{'' if problem is None else ': ' + problem}")
    return 0 if all(p is None for _, p in checks) else 1
