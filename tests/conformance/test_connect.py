"""The Connect project's conformance suite against the gateway's listeners: all three protocols on the web one, gRPC on the native.

Its service is mounted on the product's listener constructors in a binary of its own (gateway-go/conformance); what the
suite sends goes through their guards; on the web one codecs and message limit are connect-go's own, since its messages are
typed. The suite, and the contract of its service, come as a Go module.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.product import ROOT

HERE = Path(__file__).parent / "connect"
GATEWAY = ROOT / "gateway-go"
BUILD = ROOT / "build" / "connect"
PROTOS = ("config", "service", "server_compat")
FOLDER = "connectrpc/conformance/v1"


def run(*command: object, folder: Path = ROOT) -> str:
    done = subprocess.run([str(c) for c in command], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (command[:4], done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


@pytest.fixture(scope="module")
def built() -> Path:
    """The folder with the suite's runner and our server."""
    BUILD.mkdir(parents=True, exist_ok=True)
    run("go", "build", "-o", BUILD / "suite", "connectrpc.com/conformance/cmd/connectconformance", folder=HERE)
    run("go", "build", "-o", BUILD / "protoc-gen-go", "google.golang.org/protobuf/cmd/protoc-gen-go", folder=GATEWAY)
    contract = Path(run("go", "list", "-m", "-f", "{{.Dir}}", "connectrpc.com/conformance", folder=HERE).strip()) / "proto"
    out = GATEWAY / "conformance" / "gen"
    out.mkdir(exist_ok=True)
    package = f"vigil/gateway/conformance/gen/{FOLDER}"
    run(
        sys.executable, "-m", "grpc_tools.protoc", "-I", contract, f"--plugin=protoc-gen-go={BUILD / 'protoc-gen-go'}",
        f"--go_out={out}", "--go_opt=paths=source_relative", *(f"--go_opt=M{FOLDER}/{p}.proto={package}" for p in PROTOS),
        *(f"{FOLDER}/{p}.proto" for p in PROTOS),
    )  # fmt: skip
    run("go", "vet", "-tags", "conformance", "./conformance", folder=GATEWAY)
    run("go", "build", "-tags", "conformance", "-o", BUILD / "server", "./conformance", folder=GATEWAY)
    return BUILD


@pytest.mark.parametrize(("listener", "cases", "failing"), [("web", 1900, 0), ("native", 374, 4)])
def test_suite(built: Path, listener: str, cases: int, failing: int) -> None:
    """Every case passes but those that a file names with the reason; a case of these that passes is an error too."""
    command = [built / "suite", "--mode", "server", "--conf", HERE / f"{listener}.yaml"]
    if failing:
        command += ["--known-failing", f"@{HERE / f'{listener}-failing.txt'}"]
    done = subprocess.run([*command, "--", built / "server", listener], capture_output=True, text=True, timeout=280)
    told = done.stdout + done.stderr
    assert done.returncode == 0, told[-3000:]
    assert re.search(rf"Total cases: {cases}\n", told), told[-500:]
    assert f"{cases - failing} passed, 0 failed" in told, told[-500:]
    assert not failing or f"Another {failing} failed as expected" in told, told[-500:]
