"""The audit log: records, chain, recovery, verification, hash vectors."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.product import ROOT
from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.entry import Entry
from vigil_sidecar.audit.keys import KeyFile
from vigil_sidecar.audit.notes import NoteError, Signer, Verifier, checkpoint_text, open_note, parse_checkpoint, sign_note
from vigil_sidecar.audit.prove import NotProven, check_proof
from vigil_sidecar.audit.segment import find_end, leaf_hash, list_segments
from vigil_sidecar.audit.tensor_hash import frame_hash, tensor_hash
from vigil_sidecar.audit.tree import CompactRange, inclusion_ranges, root_from_inclusion
from vigil_sidecar.audit.verify import read_records, verify_folder
from vigil_sidecar.audit.writer import AuditWriter
from vigil_sidecar.errors import AuditError

START = layout.SEGMENT_HEADER_BYTES
VECTORS = json.loads((ROOT / "tests" / "vectors" / "hashes.json").read_text())


def answer(payload: bytes = b"p") -> Entry:
    return Entry(layout.KIND_ANSWER, events.ANSWER, payload=payload, trace_id=os.urandom(16))


def written(folder: Path, count: int, **options: object) -> None:
    writer = AuditWriter(folder, "sidecar", segment_bytes=1 << 20, **options)  # type: ignore[arg-type]
    for at in range(0, count, 10):
        writer.append([answer(bytes([i % 256]) * (i % 50)) for i in range(at, min(at + 10, count))])
    writer.close()


@pytest.mark.parametrize("vector", VECTORS["tensors"], ids=lambda v: v["name"])
def test_tensor_hash_vectors(vector: dict) -> None:  # type: ignore[type-arg]
    """The pinned encoding gives the published hash."""
    tensors = [(t["name"], t["datatype"], t["shape"], bytes.fromhex(t["raw"])) for t in vector["tensors"]]
    assert tensor_hash(tensors).hex() == vector["sha256"]


@pytest.mark.parametrize("vector", VECTORS["frames"])
def test_frame_hash_vectors(vector: dict) -> None:  # type: ignore[type-arg]
    """Frame, time and source give the published hash."""
    assert frame_hash(bytes.fromhex(vector["frame"]), vector["capture_time_us"], vector["source_id"]).hex() == vector["sha256"]


@pytest.mark.parametrize("durability", ["process", "interval", "power"])
def test_round_trip(tmp_path: Path, durability: str) -> None:
    """What was appended is read back, chained and in sequence, over segments and runs."""
    written(tmp_path, 4000, durability=durability)
    written(tmp_path, 10, durability=durability)
    report = verify_folder(tmp_path)
    assert report.intact and report.damage is None
    assert report.kinds == {"system": 4, "answer": 4010}
    assert report.boots == 2 and report.segments >= 2
    assert [r.header.sequence for r in read_records(tmp_path)] == list(range(1, 4015))


def test_positions_are_unique_over_runs(tmp_path: Path) -> None:
    """A sequence is never used again by a later run."""
    first = AuditWriter(tmp_path, "sidecar")
    a = first.append([answer()])[0]
    first.close()
    second = AuditWriter(tmp_path, "sidecar")
    b = second.append([answer()])[0]
    assert b > a and second.position(b) != first.position(b)
    second.close()


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    """Any changed byte of a record or segment header is named with its record."""
    written(tmp_path / "log", 30)
    segment = list_segments(tmp_path / "log")[0]
    end = find_end(segment)
    assert end is not None
    honest = segment.read_bytes()
    starts = [r.offset for r in read_records(tmp_path / "log")]
    for at in [*range(0, 120, 3), *range(START, end.offset, 37), end.offset + 5000]:
        forged = bytearray(honest)
        forged[at] ^= 0x40
        segment.write_bytes(forged)
        os.utime(segment, (0, 0))  # nobody writes it any more
        report = verify_folder(tmp_path / "log")
        if at >= starts[-1]:  # nothing whole behind it: it may as well be a torn tail, and is called that
            assert report.torn_bytes and report.records == 32 - (at < end.offset), at
            continue
        assert not report.intact and report.damage is not None, at
        if at >= START:
            hit = max(i for i, s in enumerate(starts) if s <= at) + 1
            assert report.damage.sequence == hit, at
    segment.write_bytes(honest)
    assert verify_folder(tmp_path / "log").intact


@pytest.mark.parametrize("cut", ["drop", "swap", "duplicate"])
def test_rearranged_records_are_found(tmp_path: Path, cut: str) -> None:
    """Dropping, swapping or repeating whole records breaks the chain."""
    written(tmp_path, 20)
    segment = list_segments(tmp_path)[0]
    data = segment.read_bytes()
    records = [(r.offset, r.header.length) for r in read_records(tmp_path)]
    parts = [data[o : o + n] for o, n in records]
    rest = data[records[-1][0] + records[-1][1] :]
    if cut == "drop":
        del parts[7]
    elif cut == "swap":
        parts[7], parts[8] = parts[8], parts[7]
    else:
        parts.insert(8, parts[7])
    segment.write_bytes((data[:START] + b"".join(parts) + rest)[: len(data)])
    report = verify_folder(tmp_path)
    assert report.damage is not None and "sequence" in report.damage.reason


@pytest.mark.parametrize("torn", [1, 17, 335, 336, 350])
def test_recovery_cuts_a_torn_tail(tmp_path: Path, torn: int) -> None:
    """A record of which only a part reached the file is cut, and the recovery is itself a record."""
    writer = AuditWriter(tmp_path, "sidecar")
    writer.append([answer(b"x" * 40) for _ in range(5)])
    segment = list_segments(tmp_path)[0]
    end = find_end(segment)
    assert end is not None
    writer.append([answer(b"y" * 40)])
    data = bytearray(segment.read_bytes())
    data[end.offset + torn : end.offset + 376] = bytes(376 - torn)
    segment.write_bytes(data)
    os.close(writer._lock_fd)  # as if the process had been killed: the lock goes, nothing is closed
    again = AuditWriter(tmp_path, "sidecar")
    again.close()
    report = verify_folder(tmp_path)
    assert report.intact
    recovered = [r for r in read_records(tmp_path) if r.header.event_id == events.LOG_RECOVERED]
    assert len(recovered) == 1 and recovered[0].header.sequence == end.next_sequence


def test_changed_log_is_not_opened_again(tmp_path: Path) -> None:
    """Damage with whole records behind it is no torn tail: the writer refuses and leaves the evidence as it is."""
    written(tmp_path, 50)
    segment = list_segments(tmp_path)[0]
    data = bytearray(segment.read_bytes())
    data[START + 5 * 400] ^= 1
    segment.write_bytes(data)
    with pytest.raises(AuditError, match="keep the folder as evidence"):
        AuditWriter(tmp_path, "sidecar")
    assert segment.read_bytes() == data


def test_failed_force_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With durability power an answer whose record cannot be forced to disk is refused, and the log stays whole."""
    writer = AuditWriter(tmp_path, "sidecar", durability="power")
    real = os.fdatasync

    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(AuditError, match="Input/output error"):
        writer.append([answer()])
    monkeypatch.setattr(os, "fdatasync", real)
    writer.append([answer()])
    writer.close()
    assert verify_folder(tmp_path).intact


def test_second_writer_is_refused(tmp_path: Path) -> None:
    """Two writers of one folder cannot be."""
    first = AuditWriter(tmp_path, "sidecar")
    with pytest.raises(AuditError, match="another process writes it"):
        AuditWriter(tmp_path, "sidecar")
    first.close()


def test_failed_write_does_not_advance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full the caller hears it, and the same sequence is used once there is room."""
    writer = AuditWriter(tmp_path, "sidecar")
    before = writer.append([answer()])[0]
    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(AuditError, match="No space left"):
        writer.append([answer()])
    assert writer.failure == "No space left on device"
    monkeypatch.setattr(os, "pwrite", real)
    assert writer.append([answer()])[0] == before + 1
    writer.close()
    assert verify_folder(tmp_path).intact


def test_payload_has_a_limit(tmp_path: Path) -> None:
    """A record never exceeds 65,535 bytes."""
    writer = AuditWriter(tmp_path, "sidecar")
    writer.append([answer(b"z" * 100_000)])
    writer.close()
    assert max(r.header.length for r in read_records(tmp_path)) == layout.RECORD_BYTES_MAX
    assert verify_folder(tmp_path).intact


def test_not_a_log(tmp_path: Path) -> None:
    """An empty folder is told apart from a damaged log."""
    with pytest.raises(FileNotFoundError):
        verify_folder(tmp_path)


def test_layout_is_the_documented_one() -> None:
    """The struct's size is the header's, and the page shows the offset of every field."""
    assert struct.calcsize(layout.RECORD_FORMAT) == layout.HEADER_BYTES == 336
    page = (ROOT / "docs" / "audit-format.md").read_text()
    for name in layout.RecordHeader._fields:
        assert f"| {name} |" in page
    for vector in VECTORS["tensors"]:
        assert vector["sha256"] in page


def test_vectors_of_tree_key_and_checkpoint() -> None:
    """The published roots, compact range, proof, verifier key and signed note, byte for byte."""
    v = json.loads((ROOT / "tests" / "vectors" / "audit.json").read_text())
    tree = CompactRange()
    assert tree.root().hex() == v["roots"][0]
    leaves = [leaf_hash(r.encode()) for r in v["records"]]
    for leaf, root in zip(leaves, v["roots"][1:], strict=True):
        tree.append(leaf)
        assert tree.root().hex() == root
    assert [h.hex() for h in tree.hashes] == v["compact_range_of_7"]
    path = [bytes.fromhex(h) for h in v["inclusion_of_index_4"]]
    assert root_from_inclusion(leaves[4], 4, 7, path).hex() == v["roots"][7]
    signer = Signer(v["origin"], Ed25519PrivateKey.from_private_bytes(bytes.fromhex(v["seed"])))
    assert signer.verifier_key == v["verifier_key"]
    note = sign_note(checkpoint_text(v["origin"], 7, tree.root()), signer)
    assert note.decode() == v["checkpoint"]
    assert len(open_note(note, [Verifier(v["verifier_key"])])[1]) == 1
    page = (ROOT / "docs" / "audit-format.md").read_text()
    assert v["checkpoint"] in page and v["verifier_key"] in page and all(r in page for r in v["roots"])


@given(st.integers(1, 70), st.data())
def test_every_leaf_has_its_proof(size: int, data: st.DataObject) -> None:
    """Proofs of every shape of tree give the root, and those of another leaf, index or size do not."""
    leaves = [leaf_hash(bytes([i])) for i in range(size)]
    tree = CompactRange()
    tree.extend(leaves)
    index = data.draw(st.integers(0, size - 1))
    path = []
    for begin, end in inclusion_ranges(index, size):
        part = CompactRange()
        part.extend(leaves[begin:end])
        path.append(part.root())
    assert root_from_inclusion(leaves[index], index, size, path) == tree.root()
    assert root_from_inclusion(bytes(32), index, size, path) != tree.root()
    if size > 1:
        assert root_from_inclusion(leaves[index], index, size, [bytes(32), *path[1:]]) != tree.root()
        with pytest.raises(ValueError, match="hashes"):
            root_from_inclusion(leaves[index], index, size, path[:-1])
    with pytest.raises(ValueError, match="is not in a tree"):
        inclusion_ranges(size, size)


@given(st.binary(max_size=400) | st.text(max_size=200).map(str.encode), st.integers(0, 3))
def test_no_bytes_break_the_readers(data: bytes, where: int) -> None:
    """Notes, keys, checkpoints and proofs of any bytes are refused in words, never with another exception."""
    note = sign_note(checkpoint_text("a", 1, bytes(32)), Signer("a", Ed25519PrivateKey.generate()))
    place = len(note) * where // 3
    mixed = note[:place] + data + note[place:]
    for candidate in (data, mixed):
        with contextlib.suppress(NoteError):
            parse_checkpoint(open_note(candidate, ())[0])
        with contextlib.suppress(NotProven):
            check_proof(candidate, ())
        with contextlib.suppress(NotProven):
            check_proof(b"c2sp.org/tlog-proof@v1\nextra AAAA\nindex 0\n\n" + candidate, ())
        with contextlib.suppress(NoteError):
            Verifier(candidate.decode("utf-8", "replace"))


def test_keys_are_kept_and_private(tmp_path: Path) -> None:
    """Created with mode 0600, loaded again, refused when others may read it or it is no key; both public keys stay after a rotation."""
    first = KeyFile(tmp_path / "keys", "sidecar")
    private = tmp_path / "keys" / "audit-sidecar.key"
    assert private.stat().st_mode & 0o777 == 0o600
    assert KeyFile(tmp_path / "keys", "sidecar").key.private_bytes_raw() == first.key.private_bytes_raw()
    private.chmod(0o644)
    with pytest.raises(AuditError, match="others may read it"):
        KeyFile(tmp_path / "keys", "sidecar")
    private.chmod(0o600)
    private.write_text("hello")
    with pytest.raises(AuditError, match="not a PKCS #8 key"):
        KeyFile(tmp_path / "keys", "sidecar")


@pytest.mark.parametrize("crash", ["before the record", "after the record"])
def test_rotation_survives_a_crash(tmp_path: Path, crash: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash amid a rotation leaves a log that verifies with the first key, whether its record was written or not."""
    keys = KeyFile(tmp_path / "keys", "sidecar")
    writer = AuditWriter(tmp_path / "log", "sidecar", keys=keys, checkpoint_interval_s=3600)
    writer.append([answer()])
    assert writer.sealer is not None
    writer.sealer.stop()  # checkpoints are made by the test from here on
    stop = RuntimeError("crash")

    def crashed(*_: object) -> None:
        raise stop

    if crash == "before the record":
        monkeypatch.setattr(writer, "append", crashed)
    else:
        monkeypatch.setattr(KeyFile, "switch", crashed)
    with pytest.raises(RuntimeError):
        writer.sealer.rotate()
    monkeypatch.undo()
    assert (tmp_path / "keys" / "audit-sidecar.key.next").exists()
    os.close(writer._lock_fd)
    again = AuditWriter(tmp_path / "log", "sidecar", keys=KeyFile(tmp_path / "keys", "sidecar"), checkpoint_interval_s=3600)
    again.append([answer()])
    again.close()
    assert not (tmp_path / "keys" / "audit-sidecar.key.next").exists()
    first = Verifier((tmp_path / "keys" / "audit-sidecar.pub").read_text().split()[0])
    report = verify_folder(tmp_path / "log", [first])
    assert report.exit_code == 0 and report.rotations == (crash == "after the record"), report


def test_a_hole_under_a_checkpoint_is_no_crash(tmp_path: Path) -> None:
    """A record lost by a power cut is cut off; one that a checkpoint behind it covers was on disk, so the log was changed."""
    for sealed in (False, True):
        folder = tmp_path / str(sealed)
        writer = AuditWriter(folder / "log", "sidecar", keys=KeyFile(folder / "keys", "sidecar"), checkpoint_interval_s=3600)
        assert writer.sealer is not None
        writer.sealer.stop()
        writer.append([answer() for _ in range(10)])
        if sealed:
            writer.sealer.seal()
        writer.append([answer()])
        segment = list_segments(folder / "log")[0]
        victim = [r for r in read_records(folder / "log") if r.header.kind == layout.KIND_ANSWER][4]
        data = bytearray(segment.read_bytes())
        data[victim.offset : victim.offset + victim.header.length] = bytes(victim.header.length)
        segment.write_bytes(data)
        os.close(writer._lock_fd)
        if sealed:
            with pytest.raises(AuditError, match="keep the folder as evidence"):
                AuditWriter(folder / "log", "sidecar", keys=KeyFile(folder / "keys", "sidecar"))
            assert segment.read_bytes() == data
            continue
        AuditWriter(folder / "log", "sidecar", keys=KeyFile(folder / "keys", "sidecar")).close()
        report = verify_folder(folder / "log", [Verifier((folder / "keys" / "audit-sidecar.pub").read_text().split()[0])])
        assert report.exit_code == 0, report
        assert report.kinds["answer"] == 4
