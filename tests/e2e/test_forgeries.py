"""Forged logs: at least forty kinds, made by somebody who may recompute everything but has no key. All are rejected by both verifiers."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.fault.test_crash import GoWriter, reopened
from tests.harness import forge, graphs
from tests.harness.calls import Stub, infer_request
from tests.harness.forgeries import KINDS, LOGS, Context, Honest, cut_to, rekey, replaced, without_checkpoints
from tests.harness.product import ROOT, Product, wait_for
from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.keys import KeyFile
from vigil_sidecar.audit.notes import Signer, Verifier, checkpoint_text, sign_note
from vigil_sidecar.audit.verify import Report, read_records, verify_folders


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Honest:
    folder = tmp_path_factory.mktemp("honest")
    product = Product(folder, {"audit.segment_bytes": 1 << 20, "audit.checkpoint_interval_s": 0.3, "audit.checkpoint_records": 400})
    graphs.scale(2.0, product.models / "scale" / "1" / "model.onnx")
    x = np.ones((1, 4), np.float32)
    with product:
        stub = Stub(product.channel())
        for i in range(2600):
            stub.infer(infer_request("scale", {"x": x * i}, "", f"r{i}"))
            if i % 5 == 0:
                with pytest.raises(Exception, match=r"unknown model|id value length"):
                    stub.infer(infer_request("nope", {"x": x}) if i % 10 else infer_request("scale", {"x": x}, "", "i" * 300))
        product.vigil("audit", "rotate-key", "--reason", "test")
    with product:
        for i in range(50):
            Stub(product.channel()).infer(infer_request("scale", {"x": x * i}))
        anchors = {log: json.loads(product.vigil("audit", "checkpoint", "--log", log, "--json").stdout)["note"] for log in LOGS}
        for log, other in (LOGS, LOGS[::-1]):
            wait_for(lambda log=log, other=other: held(product.data / "audit" / other, anchors[log]), 10, f"{other} anchors {log}")
    return Honest(product.data / "audit", product.data / "keys")


def held(folder: Path, note: str) -> bool:
    return any(r.payload == note.encode() for r in forge.load(folder).records if r.header.kind == layout.KIND_ANCHOR)


def verdicts(folders: list[Path], trusted: list[Verifier], scratch: Path) -> tuple[list[Report], list[dict[str, Any]], int]:
    """What both verifiers say; they must agree on everything that is told."""
    keys = scratch / "trusted.pub"
    keys.write_text("".join(k.text + "\n" for k in trusted))
    python = verify_folders(folders, trusted)
    command = [str(ROOT / "bin" / "auditverify"), "--json", *(["--key", str(keys)] if trusted else []), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    go = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(go) == len(folders), done.stderr
    for p, g in zip(python, go, strict=True):
        mine = p.to_json()
        assert {k: mine[k] for k in AGREED} == {k: g[k] for k in AGREED}, (p.damage, g["damage"])
        assert (p.damage is None) == (g["damage"] is None)
        if p.damage is not None:
            assert (p.damage.sequence, p.damage.offset, p.damage.file) == (
                g["damage"]["sequence"],
                g["damage"]["offset"],
                g["damage"]["file"],
            )
    return python, go, done.returncode


AGREED = ("exit_code", "intact", "records", "sealed", "unsealed", "checkpoints", "rotations", "torn_bytes", "witnessed", "segments", "log",
          "unlogged", "closed")  # fmt: skip


def test_honest_logs_verify(honest: Honest, tmp_path: Path) -> None:
    """Trusting the first keys only, both logs verify over a rotation and a restart, each witnessed by the other."""
    folders = [honest.audit / log for log in LOGS]
    reports, _, code = verdicts(folders, honest.trusted(), tmp_path)
    assert code == 0 and [r.exit_code for r in reports] == [0, 0], reports
    for r in reports:
        assert r.rotations == 1 and r.boots == 2 and r.witnessed > 0 and r.checkpoints > 5 and r.closed, r
    assert reports[1].segments > 1
    assert verdicts(folders, [], tmp_path)[2] == 6  # keys lie beside the logs; nobody trusts them for that
    # The newer keys alone verify as well: what they sign covers everything before.
    newer = [Verifier((honest.keys / f"audit-{log}.pub").read_text().split()[1]) for log in LOGS]
    assert verdicts(folders, newer, tmp_path)[2] == 0


@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("name", KINDS)
def test_forgery_is_rejected(honest: Honest, tmp_path: Path, name: str, log: str) -> None:
    """Each kind, at random places, in a log of either writer: both verifiers reject it alike, with the right reason."""
    kind = KINDS[name]
    for seed in range(3):
        rng = random.Random(f"{name}{log}{seed}")
        forged = forge.load(honest.audit / log)
        context = Context(honest, log, Ed25519PrivateKey.generate())
        if name == "pruned without proof" and len(forged.counts) == 1:
            pytest.skip("this log has one segment")
        kind.make(forged, rng, context)
        folder = tmp_path / f"{seed}" / log
        forge.save(forged, folder)
        reports, _, _ = verdicts([folder, honest.audit / LOGS[1 - LOGS.index(log)]], honest.trusted(), tmp_path)
        assert reports[0].exit_code in kind.codes, (reports[0].verdict, reports[0].damage)
        if kind.reason:
            assert reports[0].damage is not None and re.search(kind.reason, reports[0].damage.reason), reports[0].damage
        shutil.rmtree(tmp_path / f"{seed}")


@pytest.mark.parametrize("log", LOGS)
def test_a_cut_at_its_own_checkpoint_is_told(honest: Honest, tmp_path: Path, log: str) -> None:
    """One log alone, cut at an earlier checkpoint of its own, is whole and signed: what is told is that nothing closed it."""
    forged = forge.load(honest.audit / log)
    checkpoints = forged.of_kind(layout.KIND_CHECKPOINT)
    exact = [i for i in checkpoints if int(forged.records[i].payload.split(b"\n")[1]) == i]
    forged.remove(exact[-3] + 1, len(forged.records))
    forged.counts = [c for c in forged.counts if c]
    forged.headers = forged.headers[: len(forged.counts)]
    forge.save(forged, tmp_path / log)
    reports, _, code = verdicts([tmp_path / log], honest.trusted(), tmp_path)
    assert code == 0 and not reports[0].closed and not reports[0].witnessed
    if exact[-3] + 1 < verdicts([honest.audit / x for x in LOGS], honest.trusted(), tmp_path)[0][LOGS.index(log)].witnessed:
        reports, _, code = verdicts([tmp_path / log, honest.audit / LOGS[1 - LOGS.index(log)]], honest.trusted(), tmp_path)
        assert code == 4  # the other log holds a later one


def test_there_are_enough_kinds() -> None:
    """The generator's promise."""
    assert len(KINDS) >= 40


def test_own_key_beside_the_log_is_not_trusted(honest: Honest, tmp_path: Path) -> None:
    """A forger who signs everything anew and slips the own public key into the folder gets no better verdict."""
    forged = forge.load(honest.audit / "sidecar")
    stranger = Ed25519PrivateKey.generate()
    rekey(forged, random.Random(1), Context(honest, "sidecar", stranger))
    forge.save(forged, tmp_path / "sidecar")
    keys = KeyFile(tmp_path / "sidecar", "sidecar")
    keys.publish(Signer(forged.origin, stranger))
    assert verdicts([tmp_path / "sidecar"], honest.trusted(), tmp_path)[2] == 6


def forge_key(records: list[Any]) -> int:
    """Index of the key record: what comes before is signed by the first key."""
    return next(i for i, r in enumerate(records) if r.header.kind == layout.KIND_KEY)


@pytest.mark.parametrize("claim", ["more records", "another root"])
def test_an_anchor_that_anybody_appends_blames_nobody(honest: Honest, tmp_path: Path, claim: str) -> None:
    """Without a key somebody puts an anchor at one log's end: that end is unsealed, and the other log stays what it is."""
    forged, other = forge.load(honest.audit / "sidecar"), forge.load(honest.audit / "gateway")
    last = forged.records[-1].header
    size = 10**6 if claim == "more records" else 20
    note = sign_note(checkpoint_text(other.origin, size, bytes(32)), Signer(other.origin, Ed25519PrivateKey.generate()))
    header = last._replace(kind=layout.KIND_ANCHOR, event_id=events.ANCHORED, sequence=last.sequence + 1)
    forged.insert(len(forged.records), forge.Rec(header, note))
    forge.save(forged, tmp_path / "sidecar")
    reports, _, code = verdicts([honest.audit / "gateway", tmp_path / "sidecar"], honest.trusted(), tmp_path)
    assert [r.exit_code for r in reports] == [0, 3] and code == 3, reports


def test_a_kept_checkpoint_shows_a_cut_of_both_logs(honest: Honest, tmp_path: Path) -> None:
    """Both logs cut to the same moment look like a service that stopped then; a checkpoint kept outside shows it, in both programs."""
    keys = tmp_path / "trusted.pub"
    keys.write_text("".join(k.text + "\n" for k in honest.trusted()))
    whole = forge.load(honest.audit / "sidecar")
    places = whole.of_kind(layout.KIND_CHECKPOINT)
    kept = tmp_path / "kept.note"
    kept.write_bytes(whole.records[places[-2]].payload)
    cut = forge.load(honest.audit / "sidecar")
    cut_to(cut, places[3] + 1)
    forge.save(cut, tmp_path / "sidecar")
    for command in ([str(ROOT / "bin" / "auditverify")], [str(ROOT / ".venv" / "bin" / "vigil"), "audit", "verify"]):

        def code(*arguments: str, command: list[str] = command) -> int:
            return subprocess.run([*command, "--key", str(keys), *arguments], capture_output=True, timeout=60).returncode

        assert code(str(tmp_path / "sidecar")) in (0, 3)
        assert code(str(tmp_path / "sidecar"), "--witness", str(kept)) == 4
        assert code(str(honest.audit / "sidecar"), "--witness", str(kept)) == 0
        assert code(str(honest.audit / "gateway"), "--witness", str(kept)) == 2


def test_one_log_given_twice(honest: Honest, tmp_path: Path) -> None:
    """A copy of one log in place of the other is not two logs that verify."""
    shutil.copytree(honest.audit / "sidecar", tmp_path / "gateway")
    reports, _, code = verdicts([tmp_path / "gateway", honest.audit / "sidecar"], honest.trusted(), tmp_path)
    assert code == 4 and "the same log as" in str(reports[1].damage)


def test_a_power_cut_is_not_called_forged(honest: Honest, tmp_path: Path) -> None:
    """A hole that no checkpoint covers, with whole records behind it, is an unsealed tail; one under a checkpoint is a change."""
    places = [(r.file, r.offset, r.header) for r in read_records(honest.audit / "sidecar")]
    checkpoints = [i for i, (_, _, h) in enumerate(places) if h.kind == layout.KIND_CHECKPOINT]
    # The cut comes before the later of two checkpoints that stand far enough apart in one file.
    last, cut = [(a, b) for a, b in itertools.pairwise(checkpoints) if b - a > 4 and places[a - 2][0] == places[b][0]][-1]
    file, offset, header = places[last + 1]
    for covered in (False, True):
        at, size = (offset, header.length) if not covered else (places[last - 2][1], 40)
        folder = tmp_path / f"{covered}" / "sidecar"

        def edit(files: dict[str, bytearray], at: int = at, size: int = size) -> None:
            files[file][at : at + size] = bytes(size)
            files[file][places[cut][1] :] = bytes(len(files[file]) - places[cut][1])  # this was not written yet
            for later in [name for name in files if name > file]:
                del files[later]

        forge.save_unchained(honest.audit / "sidecar", folder, edit)
        reports, _, _ = verdicts([folder], honest.trusted(), tmp_path)
        assert reports[0].exit_code == (4 if covered else 3), reports[0]
        assert covered or reports[0].torn_bytes > header.length


@pytest.mark.parametrize("what", ["pipe", "folder", "dangling link", "far too large"])
def test_what_is_no_segment_file(honest: Honest, tmp_path: Path, what: str) -> None:
    """Neither program waits, reads it all, or says more than that it could not be read."""
    shutil.copytree(honest.audit / "sidecar", tmp_path / "log")
    path = tmp_path / "log" / "segment-00000000000000999999.vlog"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "dangling link":
        path.symlink_to("nowhere")
    else:
        with path.open("wb") as file:
            file.truncate(64 << 30)
    for command in ([str(ROOT / "bin" / "auditverify")], [str(ROOT / ".venv" / "bin" / "vigil"), "audit", "verify"]):
        done = subprocess.run([*command, str(tmp_path / "log")], capture_output=True, text=True, timeout=20)
        assert done.returncode == 1 and path.name in done.stderr, done


@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("how", ["rewritten", "cut", "other key", "other log"])
def test_a_restart_signs_no_forgery(honest: Honest, tmp_path: Path, log: str, how: str) -> None:
    """A writer goes on only with the log that its key signed last: else a restart would make any forgery verified."""
    forged = forge.load(honest.audit / log)
    shutil.copytree(honest.keys, tmp_path / "keys")
    if how == "rewritten":
        without_checkpoints(forged, random.Random(1), Context(honest, log, Ed25519PrivateKey.generate()))
    elif how == "cut":
        cut_to(forged, forged.of_kind(layout.KIND_CHECKPOINT)[3] + 1)
    elif how == "other log":
        replaced(forged, random.Random(1), Context(honest, log, Ed25519PrivateKey.generate()))
    else:
        (tmp_path / "keys" / f"audit-{log}.key").unlink()
    forge.save(forged, tmp_path / "log")
    before = {p.name: p.read_bytes() for p in (tmp_path / "log").glob("segment-*")}
    if log == "gateway":
        go = GoWriter()
        error = go.reopen(tmp_path)
        go.process.kill()
        go.process.wait()
    else:
        error = reopened(tmp_path)
    assert re.search("keep the folder and the keys as evidence|put the right one back", error), error
    assert {p.name: p.read_bytes() for p in (tmp_path / "log").glob("segment-*")} == before


def test_proofs(honest: Honest, tmp_path: Path) -> None:
    """A record's proof is checked by both tools with the public key alone, and no changed proof is."""
    trusted = tmp_path / "trusted.pub"
    trusted.write_text("".join(k.text + "\n" for k in honest.trusted()))
    rng = random.Random(5)
    for log in LOGS:
        records = forge.load(honest.audit / log).records
        before = [i for i, r in enumerate(records[: forge_key(records)]) if r.header.kind == layout.KIND_CHECKPOINT]
        for sequence in (1, 2, rng.randrange(3, before[-2]), before[-2]):
            file = tmp_path / f"{log}-{sequence}.tlog-proof"
            vigil = [str(ROOT / ".venv" / "bin" / "vigil"), "audit"]
            made = [*vigil, "prove", str(sequence), "--log", log, "--dir", str(honest.audit), "-o", str(file)]
            subprocess.run(made, check=True, capture_output=True)
            for command in ([str(ROOT / "bin" / "auditverify"), "proof"], [*vigil, "proof"]):

                def check(path: Path, *keys: str, command: list[str] = command) -> int:
                    return subprocess.run([*command, str(path), *keys], capture_output=True, timeout=60).returncode

                key = ("--key", str(trusted))
                assert check(file, *key) == 0, (log, sequence)
                assert check(file) == 6
                data = file.read_bytes()
                for place in [*rng.sample(range(len(data) - 100), 3), data.index(b"index ") + 6]:
                    broken = tmp_path / "broken.tlog-proof"
                    broken.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
                    assert check(broken, *key) in (4, 6), place
