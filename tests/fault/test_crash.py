"""Power cuts: every state that the writer's operations allow is opened again, and keeps what was promised."""

from __future__ import annotations

import base64
import itertools
import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.harness.crashes import Op, RecordingDisk, State, crash_states, write_state
from tests.harness.product import ROOT
from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.disk import Disk
from vigil_sidecar.audit.entry import Entry
from vigil_sidecar.audit.kept import read_kept
from vigil_sidecar.audit.keys import KeyFile
from vigil_sidecar.audit.notes import Verifier, open_note, parse_checkpoint
from vigil_sidecar.audit.prune import Retention
from vigil_sidecar.audit.reader import follow
from vigil_sidecar.audit.segment import find_end, list_segments
from vigil_sidecar.audit.tree import CompactRange
from vigil_sidecar.audit.verify import read_records, verify_folder
from vigil_sidecar.audit.writer import AuditWriter
from vigil_sidecar.errors import AuditError

SEGMENT = 12 << 10


@pytest.fixture
def fast() -> Iterator[Path]:
    """A folder in memory where there is one: tens of thousands of logs are opened in it."""
    root = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=root if os.access(root, os.W_OK) else None))
    yield folder
    shutil.rmtree(folder)


@dataclass
class Promised:
    """What had left the process when this many operations were done."""

    done: int
    sequence: int = 0
    leaf: bytes = b""
    note: bytes = b""
    closed: bool = False


@dataclass
class Workload:
    """One recorded life of a log: operations, promises, and the key files as they were."""

    disk: RecordingDisk
    promises: list[Promised] = field(default_factory=list)
    keys: list[tuple[int, dict[str, bytes]]] = field(default_factory=list)
    first_key: str = ""
    log: str = "sidecar"
    kept: list[tuple[int, int]] = field(default_factory=list)
    """Records that pruning must keep: after how many operations each was there, and its sequence."""
    reopen: Callable[[Path], str] = lambda folder: reopened(folder)
    """Opens and closes the log below a folder; the error's text, empty without one."""


def reopened(folder: Path) -> str:
    """The Python writer opens a log after a cut, and closes it."""
    try:
        AuditWriter(
            folder / "log", "sidecar", durability="process", segment_bytes=SEGMENT,
            keys=KeyFile(folder / "keys", "sidecar"), checkpoint_interval_s=3600,
        ).close()  # fmt: skip
    except AuditError as error:
        return str(error)
    return ""


class GoWriter:
    """The Go writer's tool: records a life, and opens logs one after another."""

    def __init__(self) -> None:
        self.tool = ROOT / "build" / "crashtool"
        subprocess.run(["go", "build", "-o", str(self.tool), "./crashtool"], cwd=ROOT / "gateway-go", check=True)
        self.process = subprocess.Popen([str(self.tool), "reopen"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def reopen(self, folder: Path) -> str:
        """Open and close the log below a folder."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        return str(json.loads(self.process.stdout.readline()))

    def record(self, folder: Path, durability: str, skip: str = "", seed: int = 3, segments: int = 0) -> Workload:
        """A life of a log, as ``recorded`` does it for the Python writer."""
        command = [str(self.tool), "record", str(folder), durability, str(seed), skip, str(segments * SEGMENT)]
        life = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout)
        work = Workload(RecordingDisk(), first_key=life["first_key"], log="gateway", reopen=self.reopen)
        data = base64.b64decode
        work.disk.ops[:] = [Op(o["kind"], o["inode"], o["name"], o["target"], o["offset"], data(o["data"] or "")) for o in life["ops"]]
        work.disk.places = set(life["places"])
        work.promises = [
            Promised(p["done"], p["sequence"], data(p["leaf"] or ""), data(p["note"] or ""), p["closed"]) for p in life["promises"]
        ]
        work.keys = [(k["done"], {name: data(content) for name, content in k["files"].items()}) for k in life["keys"]]
        work.kept = [(k["done"], k["sequence"]) for k in life["kept"] or []]
        return work


@pytest.fixture(scope="module")
def go() -> Iterator[GoWriter]:
    writer = GoWriter()
    yield writer
    writer.process.kill()
    writer.process.wait()


def live(
    work: Workload, folder: Path, opened: Callable[[], AuditWriter], append: Callable[..., None], seal: Callable[[AuditWriter], None],
    rng: random.Random, keep_keys: Callable[[], None],
) -> None:  # fmt: skip
    """The life itself, in steps."""
    disk = work.disk
    writer = opened()
    work.first_key = (folder / "keys" / "audit-sidecar.pub").read_text().split()[0]
    append(writer, 3)
    append(writer, 1, layout.KIND_STATE)
    seal(writer)
    for _ in range(5):
        append(writer, rng.randrange(1, 4))
    writer.anchor(b"vigil/gateway/0\n1\nAAAA\n\n\xe2\x80\x94 a AAAAAAAA\n")
    for _ in range(8):
        append(writer, rng.randrange(1, 5))
    seal(writer)
    for _ in range(3):
        append(writer, rng.randrange(1, 3))
    assert writer.sealer is not None
    staged = KeyFile.stage

    def stage(self: KeyFile, key: object) -> None:
        staged(self, key)  # type: ignore[arg-type]
        keep_keys()

    KeyFile.stage = stage  # type: ignore[method-assign]
    try:
        writer.sealer.rotate()
    finally:
        KeyFile.stage = staged  # type: ignore[method-assign]
    keep_keys()
    for _ in range(4):
        append(writer, rng.randrange(1, 4))
    writer.close()
    work.promises.append(Promised(len(disk.ops), closed=True))
    tear(folder / "log", disk)
    writer = opened()
    for _ in range(5):
        append(writer, rng.randrange(1, 4))
    seal(writer)
    for _ in range(4):
        append(writer, 1)
    writer.close()
    work.promises.append(Promised(len(disk.ops), closed=True))


def recorded(folder: Path, durability: str, skip: str = "", seed: int = 3, segments: int = 0) -> Workload:
    """Answers, events, checkpoints, rotation of segments and of the key, a restart; pruned to so many segments, if any."""
    disk = RecordingDisk(skip)
    work = Workload(disk)
    rng = random.Random(seed)

    def keep_keys() -> None:
        found = {p.name: p.read_bytes() for p in (folder / "keys").iterdir()}
        if not work.keys or work.keys[-1][1] != found:
            work.keys.append((len(disk.ops), found))

    disk.ops.before = keep_keys

    def opened() -> AuditWriter:
        keys = KeyFile(folder / "keys", "sidecar")
        keep_keys()
        writer = AuditWriter(
            folder / "log", "sidecar", durability=durability, segment_bytes=SEGMENT, keys=keys, checkpoint_interval_s=3600, disk=disk,
            retention=Retention(segments * SEGMENT, kept_bytes_max=1 << 20) if segments else None,
            report=lambda text: pytest.fail(text),
        )  # fmt: skip
        assert writer.sealer is not None
        writer.sealer._stopping.set()  # the test says when checkpoints are made
        writer.sealer.wake()
        writer.sealer._thread.join()
        keep_keys()
        return writer

    def append(writer: AuditWriter, count: int, kind: int = layout.KIND_ANSWER) -> None:
        event = events.STATE_CHANGED if kind == layout.KIND_STATE else events.ANSWER
        entries = [Entry(kind, event, trace_id=rng.randbytes(16), payload=rng.randbytes(rng.randrange(60))) for _ in range(count)]
        sequences = writer.append(entries)
        work.kept += [(len(disk.ops), s) for s in sequences if kind == layout.KIND_STATE]
        if durability == "power":
            leaves = {r.header.sequence: r.leaf for r in read_records(folder / "log")}
            work.promises += [Promised(len(disk.ops), s, leaves[s]) for s in sequences]

    def seal(writer: AuditWriter) -> None:
        assert writer.sealer is not None
        note = writer.sealer.seal()
        work.promises.append(Promised(len(disk.ops), note=note))
        if len(list_segments(folder / "log")) > 3:  # so that several go at once
            writer.sealer.prune()

    live(work, folder, opened, append, seal, rng, keep_keys)
    return work


def tear(folder: Path, disk: RecordingDisk) -> None:
    """A torn tail on disk, as a cut before this run left it: the next opening must cut it off for good."""
    segment = list_segments(folder)[-1]
    end = find_end(segment)
    assert end is not None
    fd = os.open(segment, os.O_RDWR)
    disk.pwrite(fd, b"VGLA\x02\x00" + bytes(range(1, 200)) * 9, end.offset)
    Disk.fdatasync(disk, fd)
    disk.ops.append(Op("force", os.fstat(fd).st_ino))
    os.close(fd)


def problem(work: Workload, done: int, state: State, folder: Path) -> str:
    """What a log loses that is opened again after a cut; empty when nothing."""
    write_state(state, folder / "log")
    (folder / "keys").mkdir(mode=0o700)
    for name, data in [k for at, k in work.keys if at <= done][-1].items():
        (folder / "keys" / name).write_bytes(data)
        (folder / "keys" / name).chmod(0o600)
    promised = [p for p in work.promises if p.done <= done]
    if any(p.closed and p.done == done for p in promised):
        if not any(n.endswith(".vlog") for n in state):
            return "closed in order, and then no log is there"
        report = verify_folder(folder / "log", [Verifier(work.first_key)])
        if report.exit_code != 0:
            return f"closed in order, and then verdict {report.exit_code}: {report.damage}"
    error = work.reopen(folder)
    if error:
        return f"not opened: {error}"
    known = [Verifier(x) for x in (folder / "keys" / f"audit-{work.log}.pub").read_text().split()]
    trusted = [k for k in known if k.text == work.first_key]
    if not promised and not any(n.endswith(".vlog") for n in state):
        trusted = known  # the first segment never came to be: this is a new log
    report = verify_folder(folder / "log", trusted)
    if report.exit_code != 0 and state:
        return f"verdict {report.exit_code}: {report.damage}"
    leaves = {r.header.sequence: r.leaf for r in read_records(folder / "log")}
    heads = [parse_checkpoint(open_note(p.note, ())[0]) for p in promised if p.note]
    roots = roots_of(folder / "log", [h.size for h in heads])
    for head in heads:
        if head.size >= report.pruned and roots.get(head.size) != head.root:
            return f"contradicts the checkpoint of {head.size} records that was given away"
    for p in promised:
        if p.sequence > report.pruned and leaves.get(p.sequence) != p.leaf:
            return f"record {p.sequence}, answered with durability power, is gone"
    kept = {sequence_of(k.proof) for k in read_kept(folder / "log")}
    for at, sequence in work.kept:
        if at <= done and sequence <= report.pruned and sequence not in kept:
            return f"record {sequence} was pruned and not kept"
    return ""


def roots_of(folder: Path, sizes: list[int]) -> dict[int, bytes]:
    """Roots of the log's first records, at these sizes."""
    tree: CompactRange | None = None
    out: dict[int, bytes] = {}

    def opened(header: layout.SegmentHeader) -> None:
        nonlocal tree
        if tree is None:
            tree = CompactRange.decode(header.first_sequence - 1, header.tree_range)
            out[tree.size] = tree.root()

    for r in follow(folder, opened):
        assert tree is not None
        tree.append(r.leaf)
        if tree.size in sizes:
            out[tree.size] = tree.root()
    return out


def sequence_of(proof: bytes) -> int:
    return int(proof.split(b"\nindex ")[1].split(b"\n")[0]) + 1


def explore(work: Workload, folder: Path, most: int, seed: int = 1) -> tuple[int, list[str]]:
    """Number of distinct states tried, evenly over the recording, and what went wrong."""
    states = list(crash_states(work.disk.ops, random.Random(seed)))
    if len(states) > most:
        states = random.Random(seed).sample(states, most)
    wrong = []
    for i, (done, state) in enumerate(states):
        found = problem(work, done, state, folder / str(i))
        shutil.rmtree(folder / str(i))
        if found:
            wrong.append(f"after {done} operations: {found}")
    return len(states), wrong


Record = Callable[..., Workload]
PYTHON_PLACES = [
    "sealer.py:_forced_head:fdatasync", "segment.py:create_segment:fsync", "segment.py:create_segment:sync_folder",
    "writer.py:_rotate:fdatasync", "writer.py:_append_and_force:fdatasync", "writer.py:close:fdatasync",
    "prune.py:_write:fsync", "prune.py:_write:sync_folder", "prune.py:run:sync_folder",
]  # fmt: skip
GO_PLACES = [
    "sealer.go:force:force", "segment.go:createSegment:force", "segment.go:createSegment:folder",
    "writer.go:newSegment:force", "append.go:follow:force", "writer.go:Close:force",
    "prune.go:write:force", "prune.go:write:folder", "prune.go:run:folder",
]  # fmt: skip


@pytest.fixture(params=["python", "go"])
def record(request: pytest.FixtureRequest, go: GoWriter) -> Record:
    return recorded if request.param == "python" else go.record


@pytest.mark.parametrize("segments", [0, 2], ids=["kept whole", "pruned"])
@pytest.mark.parametrize("durability", ["process", "power"])
def test_power_cuts(fast: Path, record: Record, durability: str, segments: int) -> None:
    """Whatever a cut leaves: the log opens, verifies with the key it began with, and has what was promised."""
    work = record(fast / "life", durability, segments=segments)
    assert segments == 0 or verify_folder(fast / "life" / "log").pruned > 0
    count, wrong = explore(work, fast / "cuts", 1000)
    print(f"{count} crash states with durability {durability}")
    assert not wrong, (len(wrong), wrong[:3])


@pytest.mark.parametrize("place", PYTHON_PLACES + GO_PLACES)
def test_every_forcing_is_needed(fast: Path, go: GoWriter, place: str) -> None:
    """A writer without the forcing at one place loses something in some state: the tests above would notice."""
    pruned = place.startswith("prune")
    for durability, seed in itertools.product(("power", "process"), (3, 4, 5) if pruned else (3,)):
        life = fast / f"{durability}{seed}"
        work = (go.record if ".go:" in place else recorded)(life, durability, place, seed=seed, segments=2 if pruned else 0)
        closed, promised = {p.done for p in work.promises if p.closed}, {p.done for p in work.promises}
        states = list(crash_states(work.disk.ops, random.Random(1)))
        random.Random(1).shuffle(states)
        gone = {i + 1 for i, op in enumerate(work.disk.ops) if op.kind == "unlink"}  # where pruning can go wrong
        states.sort(key=lambda s: (s[0] not in closed, s[0] not in gone, s[0] not in promised))
        for i, (done, state) in enumerate(states[:1500]):
            if problem(work, done, state, life / str(i)):
                return
            shutil.rmtree(life / str(i))
    pytest.fail(f"without {place} nothing is lost")


@pytest.mark.parametrize("places", [PYTHON_PLACES, GO_PLACES], ids=["python", "go"])
def test_all_places_are_known(fast: Path, go: GoWriter, places: list[str]) -> None:
    """The lists above are complete, but for what only background threads and failures do."""
    make = go.record if places is GO_PLACES else recorded
    found = {p for d in ("process", "power") for p in make(fast / d, d, segments=2).disk.places}
    assert found == set(places)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("durability", ["process", "power"])
def test_every_power_cut(fast: Path, record: Record, durability: str) -> None:
    """The same over every state of several lives."""
    total = 0
    for seed in range(4):
        work = record(fast / f"life{seed}", durability, seed=seed, segments=2 * (seed % 2))
        count, wrong = explore(work, fast / "cuts", 1 << 30)
        total += count
        assert not wrong, (seed, len(wrong), wrong[:3])
    print(f"{total} crash states with durability {durability}")
    assert total > (20_000 if durability == "process" else 500)
