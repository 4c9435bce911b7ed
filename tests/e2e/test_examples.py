"""The clients in examples/, as a newcomer runs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.product import ROOT, Product

EXAMPLES = ROOT / "examples"
PROOF = re.compile(r"version 1 digest [0-9a-f]{64}\nrecord \[?sidecar/[0-9a-f]+/\d+\]? state \[?NORMAL\]?\n")


def run(*command: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_python(product: Product) -> None:
    address = f"127.0.0.1:{product.ports['grpc']}"
    done = run(sys.executable, str(EXAMPLES / "python" / "client.py"), address, "scale")
    assert done.returncode == 0 and "[[2. 2. 2. 2.]]" in done.stdout and PROOF.search(done.stdout), done
    failed = run(sys.executable, str(EXAMPLES / "python" / "client.py"), address, "nope")
    assert failed.returncode == 1 and "NOT_FOUND: Request for unknown model: 'nope' is not found" in failed.stderr


def test_go(product: Product, tmp_path: Path) -> None:
    client = str(tmp_path / "client")
    built = run("go", "build", "-o", client, ".", folder=EXAMPLES / "go")
    assert built.returncode == 0, built.stderr
    done = run(client, f"127.0.0.1:{product.ports['grpc']}", "scale")
    assert done.returncode == 0 and "y [1 4] 2 2 2 2" in done.stdout and PROOF.search(done.stdout), done


CPP = [p for p in ("cmake", "g++", "pkg-config", "protoc", "grpc_cpp_plugin") if shutil.which(p) is None]
if not CPP and subprocess.run(["pkg-config", "--exists", "grpc++", "protobuf"]).returncode:
    CPP = ["libgrpc++-dev"]


@pytest.mark.skipif(
    bool(CPP), reason=f"not installed: {', '.join(CPP)} (Debian: libgrpc++-dev protobuf-compiler-grpc cmake g++ pkg-config)"
)
def test_cpp(product: Product, tmp_path: Path) -> None:
    module = run("go", "list", "-m", "-f", "{{.Dir}}", "github.com/envoyproxy/protoc-gen-validate", folder=ROOT / "gateway-go")
    rules = f"-DVALIDATE={module.stdout.strip()}"
    made = run("cmake", "-S", str(EXAMPLES / "cpp"), "-B", str(tmp_path), "-DCMAKE_BUILD_TYPE=Debug", rules)
    assert made.returncode == 0, made.stderr
    built = run("cmake", "--build", str(tmp_path), "--parallel", "2")
    assert built.returncode == 0, built.stderr[-2000:]
    client = str(tmp_path / "client")
    done = run(client, f"127.0.0.1:{product.ports['grpc']}", "scale")
    assert done.returncode == 0 and "y 2 2 2 2" in done.stdout and PROOF.search(done.stdout), done
    failed = run(client, f"127.0.0.1:{product.ports['grpc']}", "nope")
    assert failed.returncode == 1 and "5: Request for unknown model: 'nope' is not found" in failed.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(product: Product) -> None:
    script = str(EXAMPLES / "curl" / "infer.sh")
    done = run("sh", script, f"127.0.0.1:{product.ports['http']}", "scale")
    assert done.returncode == 0 and '"data":[2,2,2,2]' in done.stdout and "Vigil-Audit-Position: sidecar/" in done.stdout, done
    failed = run("sh", script, f"127.0.0.1:{product.ports['http']}", "nope")
    assert failed.returncode != 0 and '"error":"Request for unknown model' in failed.stdout


def test_each_is_short() -> None:
    found = [f for f in EXAMPLES.rglob("*") if f.suffix in (".py", ".go", ".sh", ".ts", ".cc")]
    assert len(found) >= 5 and os.sep
    assert [str(f) for f in found if len(f.read_text().splitlines()) >= 60] == []
