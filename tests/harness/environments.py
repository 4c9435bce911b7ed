"""Programs that others wrote, each in an environment of its own under build/peers, made once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.harness.product import ROOT

__all__ = ["PEERS", "Missing", "environment", "perf_analyzer"]

PEERS = ROOT / "build" / "peers"


class Missing(Exception):
    """Something that such a program needs is not on this machine."""


def environment(name: str, requirements: Sequence[str]) -> Path:
    """A virtual environment of these packages; returns its folder of packages."""
    folder = PEERS / name
    stamp = folder / "installed.json"
    if not stamp.exists() or json.loads(stamp.read_text()) != list(requirements):
        print(f"installing {name}: {' '.join(requirements)}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", "--no-input", *requirements], check=True)
        stamp.write_text(json.dumps(list(requirements)))
    return next((folder / "lib").glob("python3.*")) / "site-packages"


def perf_analyzer() -> tuple[Path, str]:
    """NVIDIA's perf_analyzer, out of the last package of Triton's client that has it, and where its libraries are.

    Raises ``Missing`` where Debian's libb64 cannot be had.
    """
    folder = PEERS / "perf_analyzer"
    program = folder / "bin" / "perf_analyzer"
    libraries = (folder / "lib" / "nvidia" / "cuda_runtime" / "lib", folder / "deb" / "usr" / "lib" / "x86_64-linux-gnu")
    if not all(p.exists() for p in (program, *libraries)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        pip = [sys.executable, "-m", "pip", "--quiet", "--no-input"]
        wheel = ["--no-deps", "--only-binary=:all:", "--platform", "manylinux1_x86_64", "tritonclient==2.48.0"]
        subprocess.run([*pip, "download", *wheel, "-d", str(folder)], check=True)
        shutil.unpack_archive(next(folder.glob("*.whl")), folder / "wheel", "zip")
        program.parent.mkdir()
        shutil.copy(next((folder / "wheel").rglob("perf_analyzer")), program)
        program.chmod(0o755)
        shutil.rmtree(folder / "wheel")
        subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "lib"), "nvidia-cuda-runtime-cu12==12.9.79"], check=True)
        if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
            raise Missing("apt-get and dpkg, for Debian's libb64-0d")
        done = subprocess.run(["apt-get", "download", "-q", "libb64-0d"], cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise Missing(f"Debian's libb64-0d: {done.stderr.strip()[:200]}")
        subprocess.run(["dpkg", "-x", str(next(folder.glob("*.deb"))), str(folder / "deb")], check=True)
    return program, ":".join(map(str, libraries))
