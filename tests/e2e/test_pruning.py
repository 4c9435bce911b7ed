"""The ring: logs of a product that pruned them under load, what they still prove, and what nobody can make of them."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.e2e.test_forgeries import verdicts
from tests.harness import forge, graphs
from tests.harness.calls import INFER, Stub, infer_request
from tests.harness.forgeries import KINDS, LOGS, Context, Honest, cut_to, take_away
from tests.harness.product import ROOT, Product
from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.disk import DISK
from vigil_sidecar.audit.find import build_index
from vigil_sidecar.audit.kept import encode_kept, read_kept
from vigil_sidecar.audit.notes import Verifier
from vigil_sidecar.audit.prove import open_proof

MIB = 1 << 20


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Honest:
    """Two logs of five segments at most, out of more; an archive of the rest; a rotation in a pruned segment."""
    folder = tmp_path_factory.mktemp("ring")
    settings = {
        "audit.segment_bytes": MIB, "audit.refusals_per_s": 10**6, "audit.retention_bytes": 4 * MIB,
        "audit.archive_dir": folder / "archive",
        "audit.checkpoint_interval_s": 0.5, "limits.calls_in_flight_max": 2000,
    }  # fmt: skip
    product = Product(folder, settings)
    product.accounted = False  # records are pruned here
    graphs.scale(2.0, product.models / "scale" / "1" / "model.onnx")
    x = np.ones((1, 4), np.float32)
    good = infer_request("scale", {"x": x}).SerializeToString()
    bad = infer_request("scale", {"x": x}, "", "i" * 300).SerializeToString()
    with product:
        send = Stub(product.channel()).raw(INFER)
        for turn in range(17):
            for _ in range(5):
                for call in [send.future(r, timeout=60) for r in [good] * 200 + [bad] * 180]:
                    call.exception()
            if turn == 1:
                product.vigil("audit", "rotate-key", "--reason", "test")
    return Honest(product.data / "audit", product.data / "keys")


@pytest.mark.parametrize("log", LOGS)
def test_a_pruned_log_verifies(honest: Honest, tmp_path: Path, log: str) -> None:
    """Given the first keys only: the rest verifies, is witnessed, and the kept records are proven over a rotation that was pruned."""
    reports, _, code = verdicts([honest.audit / x for x in LOGS], honest.trusted(), tmp_path)
    r = reports[LOGS.index(log)]
    assert code == 0 and r.exit_code == 0, reports
    assert r.pruned > 1000 and 3 <= r.segments <= 5 and r.kept > 3 and not r.kept_unproven and r.witnessed > r.pruned and r.rotations == 0
    kept = {events.NAMES[k.event_id] for k in kept_headers(honest.audit / log)}
    assert {"log_opened", "key_rotated"} <= kept
    newer = [Verifier((honest.keys / f"audit-{x}.pub").read_text().split()[1]) for x in LOGS]
    by_newer = verdicts([honest.audit / x for x in LOGS], newer, tmp_path)[0][LOGS.index(log)]
    assert by_newer.exit_code == 0 and by_newer.kept + by_newer.kept_unproven == r.kept
    assert verdicts([honest.audit / log], [], tmp_path)[2] == 6


def kept_headers(folder: Path) -> list[layout.RecordHeader]:
    return [layout.RecordHeader(*forge._RECORD.unpack_from(open_proof(k.proof).record)) for k in read_kept(folder)]


@pytest.mark.parametrize("log", LOGS)
def test_both_writers_make_the_same_index(honest: Honest, tmp_path: Path, log: str) -> None:
    """An index that the log's own writer made, in Go or in Python, is byte for byte what the Python one makes of that segment."""
    made = sorted((honest.audit / log).glob("*.index"))
    assert made
    for path in made:
        segment = Path(shutil.copy(path.with_suffix(".vlog"), tmp_path))
        build_index(segment, DISK)
        assert segment.with_suffix(".index").read_bytes() == path.read_bytes()
        assert int.from_bytes(path.read_bytes()[8:12], "little") > 100, "an index of nothing shows nothing"


@pytest.mark.parametrize("log", LOGS)
def test_the_archive_and_the_rest_are_the_whole_log(honest: Honest, tmp_path: Path, log: str) -> None:
    """Archived segments put back in front give the log from its first record, verified."""
    whole = tmp_path / log
    shutil.copytree(honest.audit / log, whole)
    archived = sorted((honest.audit.parents[1] / "archive" / log).glob("*.vlog"))
    for path in archived:
        shutil.copy(path, whole)
    reports, _, _ = verdicts([whole], honest.trusted(), tmp_path)
    assert archived and reports[0].exit_code == 0 and reports[0].pruned == 0 and reports[0].first_sequence == 1, reports


@pytest.mark.parametrize("log", LOGS)
def test_proofs_of_what_is_there_and_of_what_was_kept(honest: Honest, tmp_path: Path, log: str) -> None:
    """The first remaining record, a later one and a kept one are proven to whoever has the keys; a pruned one is not."""
    trusted = tmp_path / "trusted.pub"
    trusted.write_text((honest.keys / f"audit-{log}.pub").read_text())
    first = forge.load(honest.audit / log).begin.size + 1
    vigil = [str(ROOT / ".venv" / "bin" / "vigil"), "audit"]
    for sequence in (1, first, first + 777):
        file = tmp_path / f"{sequence}.tlog-proof"
        made = [*vigil, "prove", str(sequence), "--log", log, "--dir", str(honest.audit), "-o", str(file)]
        subprocess.run(made, check=True, capture_output=True)
        for command in ([str(ROOT / "bin" / "auditverify"), "proof"], [*vigil, "proof"]):
            assert subprocess.run([*command, str(file), "--key", str(trusted)], capture_output=True).returncode == 0, sequence
    gone = subprocess.run(
        [*vigil, "prove", "500", "--log", log, "--dir", str(honest.audit), "-o", str(tmp_path / "x")], capture_output=True, text=True
    )
    assert gone.returncode == 1 and "was pruned" in gone.stderr, gone


def more_than_recorded(log: forge.Log, rng: random.Random) -> None:
    """One segment more is taken away than any record says."""
    take_away(log, log.counts[0])
    del log.counts[0], log.headers[0]


def words_taken_back(log: forge.Log, rng: random.Random) -> None:
    """The prune records become something else."""
    for i in log.of_kind(layout.KIND_PRUNE):
        log.records[i].set(kind=layout.KIND_SYSTEM)


def unsealed_word(log: forge.Log, rng: random.Random) -> None:
    """A prune record that no checkpoint covers stands for a cut."""
    header, size = log.records[-1].header, log.begin.size + log.counts[0]
    take_away(log, log.counts[0])
    del log.counts[0], log.headers[0]
    payload = f"vigil audit prune\n{log.origin}\n{size}\n{forge.base64.b64encode(log.begin.root()).decode()}\n".encode()
    rec = forge.Rec(header._replace(kind=layout.KIND_PRUNE, event_id=events.PRUNED, sequence=header.sequence + 1), payload)
    log.insert(len(log.records), rec)


def another_root(log: forge.Log, rng: random.Random) -> None:
    """The compact range in front is another one."""
    log.begin.hashes[0] = rng.randbytes(32)


def kept_changed(log: forge.Log, rng: random.Random) -> None:
    name = rng.choice(sorted(log.kept))
    data = bytearray(log.kept[name])
    data[rng.randrange(60, 400)] ^= 1
    log.kept[name] = bytes(data)


def kept_cut(log: forge.Log, rng: random.Random) -> None:
    name = rng.choice(sorted(log.kept))
    log.kept[name] = log.kept[name][: -rng.randrange(1, 300)]


def kept_twice(log: forge.Log, rng: random.Random) -> None:
    name = rng.choice(sorted(log.kept))
    log.kept[name] += log.kept[name]


def kept_in_another_class(log: forge.Log, rng: random.Random) -> None:
    name = next(n for n in sorted(log.kept) if "audit" in n)
    log.kept[name.replace("audit", "security")] = log.kept.pop(name)


def kept_of_a_stranger(log: forge.Log, rng: random.Random) -> None:
    """Kept records of a tree that a stranger made and signed."""
    name = sorted(log.kept)[-1]
    strange = forge.Log([forge.Rec(r.header, r.payload) for r in log.records[:50]], [50], log.headers[:1], log.size)
    strange.records[5] = forge.Rec(strange.records[5].header._replace(kind=4, event_id=events.STATE_CHANGED), b"")
    tree, leaf, leaves = forge.CompactRange(), bytes(32), []
    strange.renumber()
    for r in strange.records:
        data = forge.encode(r, leaf)
        leaf = forge.leaf_hash(data)
        leaves.append((data, leaf))
        tree.append(leaf)
    signer = forge.Signer(log.origin, Ed25519PrivateKey.generate())
    note = forge.sign_note(forge.checkpoint_text(log.origin, 1, leaves[0][1]), signer)
    lines = ["c2sp.org/tlog-proof@v1", "extra " + forge.base64.b64encode(leaves[0][0]).decode(), "index 0"]
    log.kept[name.replace("audit", "safety")] = encode_kept([("\n".join(lines) + "\n\n").encode() + note])


PRUNED: dict[str, tuple[Callable[[forge.Log, random.Random], None], str]] = {
    "more pruned than recorded": (more_than_recorded, "begins here"),
    "prune records taken back": (words_taken_back, "not those that were signed"),
    "a cut under an unsealed word": (unsealed_word, "begins here"),
    "another tree in front": (another_root, "not those that were signed|another root"),
    "a kept record changed": (kept_changed, "kept-"), "kept records cut off": (kept_cut, "kept-"),
    "kept records twice": (kept_twice, "twice"), "kept under another class": (kept_in_another_class, "class"),
    "kept records of a stranger": (kept_of_a_stranger, "kept-"),
}  # fmt: skip


@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("name", PRUNED)
def test_forged_pruning_is_rejected(honest: Honest, tmp_path: Path, name: str, log: str) -> None:
    """What somebody without a key makes of a pruned log is rejected by both verifiers, with the reason."""
    make, reason = PRUNED[name]
    for seed in range(3):
        forged = forge.load(honest.audit / log)
        make(forged, random.Random(f"{name}{log}{seed}"))
        forge.save(forged, tmp_path / f"{seed}" / log)
        reports, _, code = verdicts([tmp_path / f"{seed}" / log], honest.trusted(), tmp_path)
        assert code == 4 and reports[0].damage is not None, reports
        assert any(word in reports[0].damage.reason for word in reason.split("|")), reports[0].damage


def test_a_late_checkpoint_over_what_was_pruned(honest: Honest, tmp_path: Path) -> None:
    """A checkpoint that stands in the first remaining segment may cover less than what was pruned: an honest writer makes that."""
    log = forge.load(honest.audit / "sidecar")
    first = log.of_kind(layout.KIND_CHECKPOINT)[0]
    if forge.parse_checkpoint(forge.open_note(log.records[first].payload, ())[0]).size >= log.begin.size:
        take_away(log, first)  # the next best: as if the segment had begun just there
        log.headers[0] = log.headers[0]._replace(first_sequence=log.begin.size + 1)
    forge.save(log, tmp_path / "sidecar")
    reports, _, _ = verdicts([tmp_path / "sidecar"], honest.trusted(), tmp_path)
    damage = reports[0].damage
    assert damage is None or "begins here" in damage.reason, damage


@pytest.mark.parametrize("name", ["dropped", "reordered", "output_hash changed", "rotated to a stranger", "segment's tree"])
def test_a_pruned_log_is_no_easier_to_forge(honest: Honest, tmp_path: Path, name: str) -> None:
    """Kinds of forgery of a whole log, on a pruned one."""
    forged = forge.load(honest.audit / "sidecar")
    KINDS[name].make(forged, random.Random(7), Context(honest, "sidecar", Ed25519PrivateKey.generate()))
    forge.save(forged, tmp_path / "sidecar")
    assert verdicts([tmp_path / "sidecar"], honest.trusted(), tmp_path)[2] == 4


def test_reading_tells_what_was_pruned(honest: Honest) -> None:
    """The verifier's words, and a log cut to nothing but its end."""
    keys = [x for log in LOGS for x in ("--key", str(honest.keys / f"audit-{log}.pub"))]
    shown = subprocess.run(
        [str(ROOT / "bin" / "auditverify"), *keys, *(str(honest.audit / x) for x in LOGS)], capture_output=True, text=True
    )
    assert shown.returncode == 0 and shown.stdout.count("records before were pruned") == 2, shown
    told = subprocess.run(
        [str(ROOT / ".venv/bin/vigil"), "audit", "verify", str(honest.audit), "--json", *keys], capture_output=True, text=True
    )
    assert [r["pruned"] > 0 for r in json.loads(told.stdout)] == [True, True]


def test_cut_end_of_a_pruned_log_is_seen(honest: Honest, tmp_path: Path) -> None:
    """The other log's anchors still tell of a cut-off end."""
    forged = forge.load(honest.audit / "sidecar")
    cut_to(forged, forged.of_kind(layout.KIND_CHECKPOINT)[0] + 1)
    forge.save(forged, tmp_path / "sidecar")
    reports, _, code = verdicts([tmp_path / "sidecar", honest.audit / "gateway"], honest.trusted(), tmp_path)
    assert code == 4 and reports[0].damage is not None, reports
