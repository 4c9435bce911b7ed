"""Exports for review, read by tools that are not ours; search, show and stats."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.harness import graphs
from tests.harness.calls import INFER, Stub, infer_request
from tests.harness.forgeries import LOGS
from tests.harness.product import ROOT, VIGIL, Product, wait_for
from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.find import find_by_trace
from vigil_sidecar.audit.verify import Record, read_records
from vigil_sidecar.export.forms import COLUMNS

TRACE = "ab" * 16
ALL = "parquet,csv,mdf4,dlt,a2l,segments,tiles,report"


class Exported:
    """Logs of a product that ran, swapped and refused; and their records."""

    def __init__(self, product: Product) -> None:
        self.audit, self.keys = product.data / "audit", product.data / "keys"
        self.records = {log: list(read_records(self.audit / log)) for log in LOGS}
        self.flags = [x for log in LOGS for x in ("--key", str(self.keys / f"audit-{log}.pub"))]

    def vigil(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run([*VIGIL, "audit", *arguments], capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done
        return done.stdout

    def verify(self, folder: Path, *flags: str) -> tuple[int, dict[str, Any]]:
        command = [str(ROOT / "bin" / "auditverify"), "export", str(folder), "--json", *(flags or self.flags)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, json.loads(done.stdout) if done.stdout else {"problem": done.stderr}

    def all(self) -> list[Record]:
        return [r for log in LOGS for r in self.records[log]]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("reviewed")
    product = Product(folder, {"audit.segment_bytes": 1 << 20, "audit.checkpoint_interval_s": 0.3, "models.settle_ms": 0})
    graphs.scale(2.0, product.models / "scale" / "1" / "model.onnx")
    graphs.scale(5.0, product.models / "other" / "1" / "model.onnx")
    x = np.ones((1, 4), np.float32)
    with product:
        stub = Stub(product.channel())
        send = stub.raw(INFER)
        many = infer_request("scale", {"x": x}, "", "some-id").SerializeToString()
        for _ in range(14):
            for call in [send.future(many, timeout=60) for _ in range(200)]:
                call.result()
        for i in range(30):
            stub.infer(infer_request("other", {"x": x * i}))
            with pytest.raises(grpc.RpcError):
                stub.infer(infer_request("nope", {"x": x}))
        stub.infer(infer_request("scale", {"x": x}), metadata=(("traceparent", f"00-{TRACE}-{'cd' * 8}-01"),))
        graphs.scale(3.0, product.models / "scale" / "2" / "model.onnx")
        wait_for(lambda: product.listed("scale")["serving_version"] == 2, 20, "swapped")
        product.vigil("audit", "rotate-key", "--reason", "review")
    return Exported(product)


@pytest.fixture(scope="module")
def whole(logs: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("export") / "whole"
    logs.vigil("export", str(logs.audit), "-o", str(target), *logs.flags)
    return target


def test_a_whole_export_verifies(logs: Exported, whole: Path) -> None:
    """Manifest, every file, segments: code 0 with keys from elsewhere, 6 without; its own keys are not trusted."""
    code, report = logs.verify(whole)
    assert code == 0 and report["whole"] and [r["exit_code"] for r in report["logs"]] == [0, 0], report
    assert logs.verify(whole, "--json")[0] == 6
    manifest = json.loads((whole / "manifest.json").read_text())
    assert [x["exported"] for x in manifest["logs"]] == [len(logs.records[log]) for log in LOGS]
    assert manifest["forms"] == ALL.split(",") and manifest["layout_digest"] == layout.LAYOUT_DIGEST


def same(record: Record, name: str, value: Any) -> bool:
    mine = getattr(record.header, name)
    return bool((bytes(value) if isinstance(mine, bytes) else int(value)) == mine)


def test_parquet_by_pyarrow(logs: Exported, whole: Path) -> None:
    """Every row and column is the log's; times are timestamps."""
    import pyarrow as pa
    from pyarrow import parquet

    table = parquet.read_table(whole / "records.parquet")
    records = logs.all()
    assert table.num_rows == len(records)
    columns = {name: table[name].to_pylist() for name, *_ in COLUMNS}
    for i in range(0, len(records), 37):
        assert all(same(records[i], name, columns[name][i]) for name in columns), i
    assert table["time"].cast(pa.int64()).to_pylist() == [r.header.time_ns for r in records]
    assert table["payload"].to_pylist() == [r.payload for r in records]
    assert set(table["log"].to_pylist()) == set(LOGS)


def test_csv_by_the_standard_library(logs: Exported, whole: Path) -> None:
    """Every row and column again, as text."""
    with (whole / "records.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    records = logs.all()
    assert len(rows) == len(records)
    for i in range(0, len(records), 29):
        for name, kind, *_ in COLUMNS:
            assert same(records[i], name, bytes.fromhex(rows[i][name]) if kind == "bytes" else rows[i][name]), (i, name)


def test_mdf4_by_asammdf(logs: Exported, whole: Path) -> None:
    """A channel group a log, a channel a field; time is exact in its own channel."""
    from asammdf import MDF

    with MDF(str(whole / "records.mf4")) as mdf:
        assert mdf.version.startswith("4.1") and mdf.header.abs_time == logs.records["gateway"][0].header.time_ns
        for group, log in enumerate(LOGS):
            for name in ("sequence", "time_ns", "trace_id", "output_hash", "safety_state"):
                samples = mdf.get(name, group=group, raw=True).samples
                assert len(samples) == len(logs.records[log])
                for i in range(0, len(samples), 41):
                    assert same(logs.records[log][i], name, samples[i].tobytes() if samples.ndim == 2 else samples[i]), (log, name, i)


def test_dlt_by_pydlt(logs: Exported, whole: Path) -> None:
    """A message a record, with its sequence, trace and leaf hash."""
    from pydlt import DltFileReader

    with DltFileReader(str(whole / "records.dlt")) as reader:
        messages = list(reader)
    records = logs.all()
    assert len(messages) == len(records)
    for i in range(0, len(records), 23):
        data = [a.data for a in messages[i].verbose_payload.arguments]
        r = records[i]
        assert (
            data[1] == r.header.sequence and data[2] == r.header.trace_id and data[10] == r.leaf and f"DIA-{r.header.event_id}" in data[0]
        )


def test_a2l_by_a2ltool(whole: Path) -> None:
    """The strict parser takes it, and every field stands at the layout's place with its type."""
    tool, file = str(ROOT / ".venv" / "bin" / "a2ltool"), str(whole / "record.a2l")
    assert subprocess.run([tool, "--strict", "--check", file], capture_output=True).returncode == 0
    shown = subprocess.run([tool, "--debug-print", file], capture_output=True, text=True).stdout
    found = re.findall(r'StructureComponent \{\s*name: "(\w+)",\s*component_type: "T_(\w+)",\s*address_offset: (\d+)', shown)
    types = {"u8": "UBYTE", "u16": "UWORD", "u32": "ULONG", "u64": "A_UINT64", "bytes": "UBYTE"}
    at, expected = 0, []
    for name, kind, size, _ in layout.FIELDS:
        expected.append((name, types[kind], str(at)))
        at += size
    assert found == expected
    broken = whole.parent / "broken.a2l"
    broken.write_text(Path(file).read_text().replace("T_UWORD 0x4", "T_NOTHING 0x4"))
    assert subprocess.run([tool, "--strict", "--check", str(broken)], capture_output=True).returncode != 0


@pytest.fixture(scope="module")
def tilescheck() -> str:
    tool = ROOT / "build" / "tilescheck"
    subprocess.run(["go", "build", "-o", str(tool), "./tilescheck"], cwd=ROOT / "gateway-go", check=True)
    return str(tool)


@pytest.mark.parametrize("log", LOGS)
def test_tiles_by_tessera(logs: Exported, whole: Path, tilescheck: str, tmp_path: Path, log: str) -> None:
    """Tessera's fsck accepts the tiles under the log's own key, and rejects them with one byte changed anywhere."""
    key = (logs.keys / f"audit-{log}.pub").read_text().split()[-1]
    tiles = whole / "tiles" / log
    done = subprocess.run([tilescheck, str(tiles), key], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for path in sorted(p for p in tiles.rglob("*") if p.is_file())[:: max(1, len(logs.records[log]) // 900)]:
        shutil.copytree(tiles, tmp_path / "t")
        broken = tmp_path / "t" / path.relative_to(tiles)
        data = bytearray(broken.read_bytes())
        data[len(data) // 2] ^= 1
        broken.write_bytes(data)
        assert subprocess.run([tilescheck, str(tmp_path / "t"), key], capture_output=True, timeout=60).returncode == 1, path
        shutil.rmtree(tmp_path / "t")


def test_report_is_one_page_that_fetches_nothing(whole: Path) -> None:
    """Pictures are in it; the verdict comes with the command that repeats it; callers' words cannot be markup."""
    page = (whole / "report.html").read_text()
    assert page.count("<svg") >= 3 and "auditverify export --key" in page and "<span class=good>verified</span>" in page
    assert not re.search(r"(src|href)=|url\(|@import|<script", page)
    assert "version_switched" in page and "key_rotated" in page


CHANGES = {
    "a table changed": lambda e: e / "records.csv", "a segment changed": lambda e: next((e / "segments" / "sidecar").iterdir()),
    "the report changed": lambda e: e / "report.html",
}  # fmt: skip


@pytest.mark.parametrize("what", [*CHANGES, "a file more", "a file less", "rewritten with its manifest", "a path outside"])
def test_a_changed_export_is_rejected(logs: Exported, whole: Path, tmp_path: Path, what: str) -> None:
    """Whatever is changed, with or without the manifest: code 4, and words that say what."""
    export = tmp_path / "export"
    shutil.copytree(whole, export)
    manifest = json.loads((export / "manifest.json").read_text())
    if what in CHANGES:
        path = CHANGES[what](export)
        data = bytearray(path.read_bytes())
        data[5000] ^= 1
        path.write_bytes(data)
    elif what == "a file more":
        (export / "more.txt").write_text("x")
    elif what == "a file less":
        (export / "records.dlt").unlink()
    elif what == "a path outside":
        manifest["files"][0]["path"] = "../outside"
    else:
        import hashlib

        path = next((export / "segments" / "sidecar").iterdir())
        data = bytearray(path.read_bytes())
        data[5000] ^= 1
        path.write_bytes(data)
        for file in manifest["files"]:
            if file["path"].endswith(path.name) and "sidecar" in file["path"]:
                file["sha256"] = hashlib.sha256(data).hexdigest()
    (export / "manifest.json").write_text(json.dumps(manifest))
    code, report = logs.verify(export)
    assert code == 4 and (report["problem"] or any(r["damage"] for r in report["logs"])), report


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (("--model", "other"), lambda r: r.header.model_version and b"other" in r.payload),
        (("--trace", TRACE), lambda r: r.header.trace_id.hex() == TRACE),
        (("--event", "unknown_model"), lambda r: r.header.event_id == events.UNKNOWN_MODEL),
    ],
    ids=["model", "trace", "event"],
)
def test_a_filtered_export_shows_nobody_elses(logs: Exported, tmp_path: Path, flags: tuple[str, ...], wanted: Any) -> None:
    """Only the records that are meant, each proven; no other's payload, trace or hash stands in any file."""
    target = tmp_path / "part"
    logs.vigil("export", str(logs.audit), "-o", str(target), *flags, *logs.flags)
    code, report = logs.verify(target)
    assert code == 0 and not report["whole"], report
    manifest = json.loads((target / "manifest.json").read_text())
    with (target / "records.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [r for r in logs.all() if wanted(r)]
    assert len(rows) >= len(expected) > 0 and sum(report["proven"].values()) == len(rows) == sum(x["exported"] for x in manifest["logs"])
    shown = {(row["log"], int(row["sequence"])) for row in rows}
    others = [r for log in LOGS for r in logs.records[log] if (log, r.header.sequence) not in shown and any(r.header.trace_id)]
    content = b"".join(p.read_bytes() for p in target.rglob("*") if p.is_file())
    assert others and not any(r.header.trace_id.hex().encode() in content or r.header.trace_id in content for r in others)
    assert not (target / "segments").exists() and not (target / "tiles").exists()
    proofs = next(p for p in (target / "proofs").iterdir() if p.stat().st_size)
    data = bytearray(proofs.read_bytes())
    data[200] ^= 1
    proofs.write_bytes(data)
    assert logs.verify(target)[0] == 4


def test_zip_and_errors(logs: Exported, tmp_path: Path) -> None:
    """A ZIP holds the same; what cannot be is told in a line."""
    logs.vigil("export", str(logs.audit), "-o", str(tmp_path / "e.zip"), "--forms", "csv,segments", *logs.flags)
    with zipfile.ZipFile(tmp_path / "e.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    assert logs.verify(tmp_path / "unpacked")[0] == 0
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".vigil")]
    for flags, code, said in (
        (("-o", str(tmp_path / "e.zip")), 1, "is there already"), (("-o", "x", "--forms", "xml"), 2, "known are"),
        (("-o", "x", "--trace", "12"), 2, "32 hex digits"), (("-o", "x", "--event", "nonsense"), 2, "catalogue"),
        (("-o", "x", "--from", "yesterday"), 2, "give a time as"), (("-o", str(tmp_path / "no" / "e.zip")), 1, "No such file"),
    ):  # fmt: skip
        done = subprocess.run([*VIGIL, "audit", "export", str(logs.audit), *flags], capture_output=True, text=True)
        assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr, done


def test_search_show_stats(logs: Exported) -> None:
    """Each filter finds what reading everything finds; a record is shown with every field; counts are the log's."""
    found = [json.loads(x) for x in logs.vigil("search", str(logs.audit), "--trace", TRACE, "--json").splitlines()]
    assert [f["position"] for f in found] == [
        f"{log}/{r.header.boot_id.hex()}/{r.header.sequence}" for log in LOGS for r in logs.records[log] if r.header.trace_id.hex() == TRACE
    ]
    answers = [r for r in logs.records["sidecar"] if r.header.event_id == events.ANSWER]
    first = logs.vigil("search", str(logs.audit), "--log", "sidecar", "--event", "DIA-1001", "-n", "5", "--json").splitlines()
    assert [int(json.loads(x)["position"].rsplit("/", 1)[1]) for x in first] == [r.header.sequence for r in answers[:5]]
    middle = answers[len(answers) // 2].header
    late = logs.vigil(
        "search", str(logs.audit), "--log", "sidecar", "--after", str(middle.sequence), "--event", "answer", "-n", "100000", "--json"
    )
    assert len(late.splitlines()) == sum(r.header.sequence > middle.sequence for r in answers)
    shown = json.loads(logs.vigil("show", found[0]["position"], "--dir", str(logs.audit), "--json"))
    assert shown["trace_id"] == TRACE and shown["header"]["sequence"] == int(found[0]["position"].rsplit("/", 1)[1])
    assert all(name in logs.vigil("show", found[0]["position"], "--dir", str(logs.audit)) for name, *_ in layout.FIELDS)
    logs.vigil("show", "sidecar/" + "00" * 16 + "/5", "--dir", str(logs.audit), code=1)
    stats = json.loads(logs.vigil("stats", str(logs.audit), "--json"))
    assert [s["records"] for s in stats] == [len(logs.records[log]) for log in LOGS]
    assert stats[1]["events"]["DIA-1001 answer"] == len(answers)


def test_a_trace_is_found_without_reading_everything(logs: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With indexes only the places that they name are read; a damaged or missing index costs time, never a record."""
    folder = tmp_path / "sidecar"
    shutil.copytree(logs.audit / "sidecar", folder)
    indexes = sorted(folder.glob("*.index"))
    assert indexes, "the writer makes them"
    trace = next(r for r in logs.records["sidecar"] if any(r.header.trace_id)).header.trace_id
    expected = [r.header.sequence for r in logs.records["sidecar"] if r.header.trace_id == trace]
    read: list[int] = []
    from vigil_sidecar.audit import find

    real = find.records_of

    def counting(path: Path, places: Any) -> Iterator[Record]:
        for record in real(path, places):
            read.append(record.header.sequence)
            yield record

    monkeypatch.setattr(find, "records_of", counting)
    assert [r.header.sequence for r in find_by_trace(folder, trace)] == expected
    in_last = sum(1 for r in logs.records["sidecar"] if r.file == logs.records["sidecar"][-1].file)
    assert len(read) <= in_last + len(expected)
    data = bytearray(indexes[0].read_bytes())
    data[40] ^= 1
    indexes[0].write_bytes(data)
    assert [r.header.sequence for r in find_by_trace(folder, trace)] == expected
    indexes[0].unlink()
    assert [r.header.sequence for r in find_by_trace(folder, trace)] == expected
