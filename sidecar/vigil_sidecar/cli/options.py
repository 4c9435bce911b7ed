"""Flags that set settings, shared by the verbs that start something."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from vigil_sidecar.errors import SettingsError
from vigil_sidecar.settings import load
from vigil_sidecar.settings_gen import SPECS, Settings

__all__ = ["add_settings_flags", "read_settings"]


def add_settings_flags(parser: argparse.ArgumentParser) -> None:
    """Add --config, --set, --host and the named flags."""
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings file (default: vigil.toml here, if there is one)")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="set any key; see vigil config show")
    parser.add_argument("--host", metavar="ADDRESS", help="address of all listeners (listen.host)")
    for spec in SPECS:
        if spec.flag:
            kind = "PORT" if spec.flag.endswith("port") else "DIR"
            parser.add_argument(f"--{spec.flag}", metavar=kind, dest=f"key:{spec.key}", help=f"{spec.doc} ({spec.key})")


def settings_flags(args: argparse.Namespace) -> dict[str, str]:
    """What the flags say, by key."""
    flags: dict[str, str] = {}
    for pair in getattr(args, "set", []):
        key, mark, value = pair.partition("=")
        if not mark:
            raise SettingsError(f"--set {pair}: needs KEY=VALUE")
        flags[key] = value
    for name, value in vars(args).items():
        if name.startswith("key:") and value is not None:
            flags[name.removeprefix("key:")] = value
    if getattr(args, "host", None):
        flags["listen.host"] = args.host
    return flags


def read_settings(args: argparse.Namespace) -> tuple[Settings, dict[str, str]]:
    """Settings of this call and their origins; raises ``SettingsError``."""
    file = getattr(args, "config", None)
    if file is None and Path("vigil.toml").is_file():
        file = Path("vigil.toml")
    environment = {k: v for k, v in os.environ.items() if k.startswith("VIGIL_")}
    return load(file, environment, settings_flags(args))
