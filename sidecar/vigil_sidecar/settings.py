"""Reading the settings: defaults, ``vigil.toml``, ``VIGIL_*``, flags, in rising order."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vigil_sidecar.errors import SettingsError
from vigil_sidecar.settings_gen import SPECS, Settings, Spec

__all__ = ["Settings", "load", "parse_text"]

BY_KEY = {s.key: s for s in SPECS}
BY_ENV = {"VIGIL_" + s.key.upper().replace(".", "_"): s for s in SPECS}
_BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

_TIMES = {2: "twice", 3: "three times"}
_AT_LEAST = (
    ("link.heartbeat_timeout_ms", "link.heartbeat_interval_ms", 2),
    ("link.hang_ms", "link.heartbeat_interval_ms", 3),
    ("ladder.wait_ms", "link.heartbeat_interval_ms", 2),
    ("audit.retention_bytes", "audit.segment_bytes", 2),
)
"""Settings that are at least so many times another; the first of each, when 0, is off where it may be."""


def _refuse(spec: Spec, value: Any, origin: str, allowed: str) -> SettingsError:
    return SettingsError(f"{spec.key} = {value!r} ({origin}): allowed is {allowed}")


def parse_text(spec: Spec, text: str, origin: str) -> Any:
    """Value of a setting written as text (environment, flag)."""
    if spec.kind == "bool":
        if text.lower() not in _BOOLS:
            raise _refuse(spec, text, origin, "true or false")
        return _BOOLS[text.lower()]
    if spec.kind == "list":
        return tuple(p.strip() for p in text.split(",") if p.strip())
    try:
        return {"int": int, "float": float, "string": str}[spec.kind](text)
    except ValueError:
        raise _refuse(spec, text, origin, f"a number ({spec.kind})") from None


def _check(spec: Spec, value: Any, origin: str) -> Any:
    if spec.kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if spec.kind == "list" and isinstance(value, list) and all(isinstance(v, str) for v in value):
        value = tuple(value)
    wanted: type = {"bool": bool, "int": int, "float": float, "string": str, "list": tuple}[spec.kind]
    if not isinstance(value, wanted) or (spec.kind == "int" and isinstance(value, bool)):
        raise _refuse(spec, value, origin, f"a {spec.kind}")
    if spec.allowed and value not in spec.allowed:
        raise _refuse(spec, value, origin, ", ".join(spec.allowed))
    number: Any = value
    if spec.minimum is not None and spec.maximum is not None and not spec.minimum <= number <= spec.maximum:
        raise _refuse(spec, value, origin, f"{spec.minimum}..{spec.maximum}")
    return value


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def load(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, str]) -> tuple[Settings, dict[str, str]]:
    """Settings and the origin of each key.

    Raises:
        SettingsError: an unknown key or impossible value; the text names key,
            value and what is allowed. Show it and stop.
    """
    values: dict[str, Any] = {s.key: s.default for s in SPECS}
    origin = dict.fromkeys(values, "default")
    if file is not None:
        try:
            content = _flatten(tomllib.loads(file.read_text()))
        except OSError as error:
            raise SettingsError(f"{file}: {error.strerror}; give --config an existing file") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{file}: not TOML: {error}") from None
        for key, value in content.items():
            if key not in BY_KEY:
                raise SettingsError(f"{file}: unknown key {key} = {value!r}; `vigil config show` lists all keys")
            values[key] = _check(BY_KEY[key], value, str(file))
            origin[key] = str(file)
    for name, text in environment.items():
        if not name.startswith("VIGIL_"):
            continue
        if name not in BY_ENV:
            raise SettingsError(f"unknown environment variable {name}={text!r}; `vigil config show` lists all keys")
        spec = BY_ENV[name]
        values[spec.key] = _check(spec, parse_text(spec, text, name), name)
        origin[spec.key] = name
    for key, text in flags.items():
        if key not in BY_KEY:
            raise SettingsError(f"unknown key {key} = {text!r} (flag); `vigil config show` lists all keys")
        spec = BY_KEY[key]
        values[key] = _check(spec, parse_text(spec, text, "flag"), "flag")
        origin[key] = "flag"
    for key, other, times in _AT_LEAST:
        if values[key] < times * values[other] and not (key == "link.hang_ms" and values[key] == 0):
            raise SettingsError(f"{key} = {values[key]}: allowed is at least {_TIMES[times]} {other} ({values[other]})")
    return replace(Settings(), **{BY_KEY[k].name: v for k, v in values.items()}), origin
