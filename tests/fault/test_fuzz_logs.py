"""Random damage to the files of logs and to proofs: both verifiers say the same, in bounded time and memory, and believe no change."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import google_crc32c
import pytest

from tests.e2e.test_forgeries import verdicts
from tests.fault.test_crash import GoWriter, go
from tests.fault.test_failing_disk import FailingDisk, fast, live
from tests.harness.product import ROOT, VIGIL
from vigil_sidecar.audit.layout_gen import CRC_OFFSET, HEADER_BYTES, MAGIC, SEGMENT_CRC_OFFSET, SEGMENT_MAGIC, RecordHeader
from vigil_sidecar.audit.notes import Verifier
from vigil_sidecar.audit.prove import NotProven, check_proof, make_proof
from vigil_sidecar.audit.verify import read_records

__all__ = ["fast", "go"]

VECTORS = ROOT / "tests" / "vectors"
QUICK, LONG = 400, 30_000
SAMPLED = 40
"""Of so many damaged logs one is read by the commands, and their memory looked at."""
RSS_KIB_MAX = 256 << 10
"""Of either verifier; an idle interpreter with numpy takes 60 MiB."""


def repaired(data: bytearray) -> None:
    """The CRC of each record that can still be found, computed anew as somebody who forges would."""
    if data[: len(SEGMENT_MAGIC)] == SEGMENT_MAGIC:
        data[SEGMENT_CRC_OFFSET : SEGMENT_CRC_OFFSET + 4] = google_crc32c.value(bytes(data[:SEGMENT_CRC_OFFSET])).to_bytes(4, "little")
    at = data.find(MAGIC)
    while 0 <= at <= len(data) - HEADER_BYTES:
        length = int.from_bytes(data[at + 6 : at + 8], "little")
        if HEADER_BYTES <= length <= len(data) - at:
            body = bytes(data[at : at + CRC_OFFSET] + data[at + HEADER_BYTES : at + length])
            data[at + CRC_OFFSET : at + HEADER_BYTES] = google_crc32c.value(body).to_bytes(4, "little")
        at = data.find(MAGIC, at + 1)


def changed(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to three changes of a file's bytes; ``other`` is where foreign pieces come from."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(found) + 1) if rng.random() < 0.8 else rng.randrange(min(len(found), 128) + 1)  # headers stand in front
        size = rng.choice([1, 2, 4, 8, 32, 256, 500])
        way = rng.randrange(7)
        if way == 0:
            found[at : at + 1] = bytes([rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])])
        elif way == 1:
            del found[at : at + size]
        elif way == 2:
            found[at:at] = found[at : at + size]
        elif way == 3:
            begin = rng.randrange(len(other) + 1)
            found[at : at + size] = other[begin : begin + size]
        elif way == 4:
            del found[at:]
        elif way == 5:
            found[at : at + size] = bytes(len(found[at : at + size]))
        else:
            found[at : at + size] = rng.randbytes(size)
    if rng.random() < 0.5:
        repaired(found)
    return bytes(found)


def damage(folder: Path, rng: random.Random) -> str:
    """Change one file of a log, or its place; says which."""
    files = sorted(p for p in folder.iterdir() if p.name != "writer.lock")
    path, other = rng.choice(files), rng.choice(files)
    way = rng.randrange(10)
    if way == 0:
        path.unlink()
    elif way == 1:
        other.write_bytes(path.read_bytes())
    elif way == 2:
        path.rename(path.with_name(path.name.replace("0", rng.choice("0123456789ax"), rng.randint(1, 20))))
    else:
        path.write_bytes(changed(path.read_bytes().rstrip(b"\0") + bytes(8), other.read_bytes(), rng))
    return f"{path.name} {way}"


def fuzz(folder: Path, go: GoWriter, trials: int, seed: int) -> None:
    rng = random.Random(seed)
    live(folder / "python", FailingDisk(0, "EIO"))
    go.record(folder / "go", "process", segments=2)
    keys = {n: Verifier(next((folder / n / "keys").glob("*.pub")).read_text().split()[0]) for n in ("python", "go")}
    honest = {n: records(folder / n / "log") for n in keys}
    codes: dict[int, int] = {}
    for trial in range(trials):
        name = rng.choice(["python", "go"])
        copied = folder / "copy"
        shutil.copytree(folder / name / "log", copied)
        what = damage(copied, rng)
        try:
            python, _, code = verdicts([copied], [keys[name]], folder)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, trial {trial}, log of {name}, {what}: {error}") from error
        codes[code] = codes.get(code, 0) + 1
        assert code in (0, 1, 3, 4, 5, 6) and python[0].exit_code == code, what
        if code == 0:  # what changed is under no signature: an index, kept records that went, the last checkpoint itself, the end
            left = records(copied)[:-1]
            assert left == honest[name][: len(left)], f"seed {seed}, trial {trial}, log of {name}, {what}: believed"
        if trial % SAMPLED == 0:
            bounded(copied)
        shutil.rmtree(copied)
    fuzz_proofs(folder, keys, trials // 4, rng)
    print(f"{trials} damaged logs: exit codes {dict(sorted(codes.items()))}")
    assert codes[4] > trials // 3 and len(codes) > 2


MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], capture_output=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Runs a command from a small process: a child's figure begins with the size of whoever starts it."""


def bounded(log: Path) -> None:
    """Both commands read a damaged log within their memory."""
    for command in ([str(ROOT / "bin" / "auditverify"), str(log)], [*VIGIL, "audit", "verify", str(log)]):
        used = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True, check=True, timeout=60)
        assert 1000 < int(used.stdout) < RSS_KIB_MAX, (command, used.stdout)


def fuzz_proofs(folder: Path, keys: dict[str, Verifier], trials: int, rng: random.Random) -> None:
    """Both readers of proofs agree on what is left of one, and neither believes another record."""
    file, key = folder / "proof", folder / "key.pub"
    honest = {n: [make_proof(folder / n / "log", report_first(folder / n / "log") + i) for i in range(3)] for n in keys}
    for _ in range(trials):
        name = rng.choice(sorted(keys))
        proof = rng.choice(honest[name])
        data = changed(proof, rng.choice(honest[rng.choice(sorted(keys))]), rng)
        if rng.random() < 0.2:  # what readers of base64 may pass over
            lines = proof.split(b"\n")
            lines[rng.randrange(len(lines))] += rng.choice([b"\r", b"=", b"==", b" ", b"\0"])
            data = b"\n".join(lines)
        file.write_bytes(data)
        key.write_text(keys[name].text + "\n")
        done = subprocess.run([str(ROOT / "bin" / "auditverify"), "proof", str(file), "--key", str(key)], capture_output=True, timeout=60)
        try:
            signed = check_proof(data, [keys[name]])[3]
            expected = 0 if signed else 6
        except NotProven:
            expected = 4
        assert done.returncode == expected, (done.stderr.decode(), data)
        if expected == 0:
            assert proof_record(data) in {proof_record(p) for p in honest[name]}


def records(log: Path) -> list[tuple[RecordHeader, bytes]]:
    """All that stands in a log."""
    return [(r.header, r.payload) for r in read_records(log)]


def report_first(log: Path) -> int:
    """The sequence of the first record that is still there."""
    return next(iter(read_records(log))).header.sequence


def proof_record(proof: bytes) -> bytes:
    """The line with the record."""
    return next(line for line in proof.split(b"\n") if line.startswith(b"extra "))


def test_the_pruned_example(tmp_path: Path) -> None:
    """The example of docs/audit-format.md: two segments pruned, two kept records, a change of key; each kept record needs its proof."""
    expected = json.loads((VECTORS / "pruned.json").read_text())
    log = shutil.copytree(VECTORS / "pruned", tmp_path / "log", ignore=shutil.ignore_patterns("*.pub"))
    key = Verifier((VECTORS / "pruned" / "first.pub").read_text().strip())
    [python], [go], _ = verdicts([log], [key], tmp_path)
    for said in (python.to_json(), go):
        assert {k: said[k] for k in expected} == expected
    for kept in log.glob("kept-*"):
        whole = kept.read_bytes()
        kept.write_bytes(whole.replace(b"\nindex ", b"\nindex 1", 1))
        assert verdicts([log], [key], tmp_path)[2] == 4
        kept.write_bytes(whole)


def test_damaged_logs(fast: Path, go: GoWriter) -> None:
    """The quick form."""
    fuzz(fast, go, QUICK, 11)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_damaged_logs(fast: Path, go: GoWriter) -> None:
    """The same, for long."""
    fuzz(fast, go, LONG, int.from_bytes(os.urandom(4)))
