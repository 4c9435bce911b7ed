"""The page's own verifier against Python's: same proofs, same notes, same verdicts, with WebCrypto and with the library."""

from __future__ import annotations

import base64
import json
import random
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fault.test_fuzz_logs import changed, proof_record
from tests.harness.product import ROOT
from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.entry import Entry
from vigil_sidecar.audit.keys import KeyFile
from vigil_sidecar.audit.notes import Verifier
from vigil_sidecar.audit.prove import NotProven, check_proof, make_proof
from vigil_sidecar.audit.writer import AuditWriter

WEB = ROOT / "gateway-go" / "web"
RECORDS, TRIALS = 600, 3000

Judge = Callable[[Sequence[dict[str, Any]]], list[Any]]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """The client package's verifier, bundled for Node."""
    target = tmp_path_factory.mktemp("judge") / "judge.mjs"
    command = ["node_modules/.bin/esbuild", "client/test/judge.ts", "--bundle", "--platform=node", "--format=esm", f"--outfile={target}"]
    subprocess.run([*command, "--log-level=warning"], cwd=WEB, check=True, timeout=60)

    def ask(lines: Sequence[dict[str, Any]]) -> list[Any]:
        said = subprocess.run(
            ["node", str(target)], input="".join(json.dumps(x) + "\n" for x in lines), capture_output=True, text=True, timeout=250
        )  # fmt: skip
        assert said.returncode == 0, said.stderr[-2000:]
        return [json.loads(x) for x in said.stdout.splitlines()]

    return ask


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Verifier]:
    """A signed log of several segments and checkpoints, and its key."""
    folder = tmp_path_factory.mktemp("log")
    writer = AuditWriter(folder / "log", "sidecar", durability="process", segment_bytes=1 << 20, keys=KeyFile(folder / "keys", "sidecar"),
                         checkpoint_records=50)  # fmt: skip
    for i in range(RECORDS // 10):
        writer.append([Entry(layout.KIND_ANSWER, events.ANSWER, payload=bytes([i % 256]) * (i % 40), trace_id=bytes([i % 256]) * 16)] * 10)
    writer.close()
    return folder / "log", Verifier((folder / "keys" / "audit-sidecar.pub").read_text().strip())


def packed(proof: bytes, *keys: str, **more: str) -> dict[str, Any]:
    return {"proof": base64.b64encode(proof).decode(), "keys": list(keys)} | more


def test_every_record_of_a_log_is_verified(log: tuple[Path, Verifier], judge: Judge) -> None:
    """Trees of all sizes and places up to 600: verified under the key, unsigned without it, forged for another position."""
    folder, key = log
    numbers = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 200, 255, 256, 257, 400, 511, 512, 513, 599]
    proofs = {n: make_proof(folder, n) for n in numbers}
    said = judge([packed(p, key.text, position=f"sidecar/{n}") for n, p in proofs.items()])
    assert [[v["verdict"] for v in both] for both in said] == [["verified"] * 2] * len(numbers), said
    assert [[v["verdict"] for v in both] for both in judge([packed(p) for p in proofs.values()])] == [["unsigned"] * 2] * len(numbers)
    wrong = ("sidecar/3", "gateway/2", "sidecar/" + "0" * 32 + "/2", "2", "sidecar/2/2/2")
    assert all(v["verdict"] == "forged" for both in judge([packed(proofs[2], key.text, position=p) for p in wrong]) for v in both)


def test_changed_proofs_are_judged_as_python_does(log: tuple[Path, Verifier], judge: Judge) -> None:
    """Three thousand random changes: verified exactly where Python says so, unsigned likewise, and no other record is believed."""
    folder, key = log
    rng = random.Random(20261127)
    honest = [make_proof(folder, n) for n in (1, 77, 300, 512)]
    cases = []
    for _ in range(TRIALS):
        proof = rng.choice(honest)
        data = changed(proof, rng.choice(honest), rng)
        if rng.random() < 0.3:
            lines = proof.split(b"\n")
            lines[rng.randrange(len(lines))] += rng.choice([b"\r", b"=", b"==", b" ", b"\0", b"A", "\u0085".encode(), b"\xff"])
            data = b"\n".join(lines)
        cases.append(data)
    cases += honest
    verdicts = {"verified": 0, "unsigned": 0, "refused": 0}
    for data, both in zip(cases, judge([packed(c, key.text) for c in cases]), strict=True):
        try:
            expected = "verified" if check_proof(data, [key])[3] else "unsigned"
        except NotProven:
            expected = "refused"
        verdicts[expected] += 1
        for v in both:
            said = v["verdict"] if v["verdict"] in ("verified", "unsigned") else "refused"
            assert said == expected, (data, v)
        if expected == "verified":
            assert proof_record(data) in {proof_record(p) for p in honest}
    assert min(verdicts.values()) > 5, verdicts


def test_notes_are_read_as_the_others_read_them(judge: Judge) -> None:
    """The examples of docs/audit-format.md for signed notes."""
    vectors = json.loads((ROOT / "tests" / "vectors" / "notes.json").read_text())
    said = judge([{"note": n["note"], "keys": [vectors["trusted"]]} for n in vectors["notes"]])
    assert {n["name"]: both for n, both in zip(vectors["notes"], said, strict=True)} == {
        n["name"]: [n["trusted_signatures"]] * 2 for n in vectors["notes"]
    }
