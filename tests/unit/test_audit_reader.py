"""Reading a log while it is written."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.entry import Entry
from vigil_sidecar.audit.reader import list_segments, read_records, records_of
from vigil_sidecar.audit.verify import verify_folder
from vigil_sidecar.audit.writer import AuditWriter


def by_verifier(folder: Path) -> int:
    report = verify_folder(folder)
    assert report.intact and not report.torn_bytes, report
    return report.records


READERS: dict[str, Callable[[Path], int]] = {
    "verify": by_verifier,
    "read": lambda folder: len(list(read_records(folder))),
    "search": lambda folder: len(list(records_of(list_segments(folder)[-1], None))),
}


@pytest.mark.parametrize("way", READERS)
@pytest.mark.parametrize("cut", [(0, 4), (50, 200), (0, 100), (330, 380)])
def test_a_record_in_the_making_is_no_damage(tmp_path: Path, way: str, cut: tuple[int, int]) -> None:
    """Part of a record is seen late: it is read again, and nothing is called damaged that is whole a moment later."""
    folder = tmp_path / "log"
    writer = AuditWriter(folder, "sidecar", durability="process", segment_bytes=1 << 20)
    for _ in range(40):
        writer.append([Entry(layout.KIND_ANSWER, events.ANSWER, payload=b"p" * 60)])
    writer.close()
    segment = list_segments(folder)[0]
    places = [r.offset for r in read_records(folder)]
    whole = segment.read_bytes()
    part = bytearray(whole)
    part[places[20] + cut[0] : places[20] + cut[1]] = bytes(cut[1] - cut[0])
    segment.write_bytes(part)

    def finish() -> None:
        time.sleep(0.04)
        fd = os.open(segment, os.O_WRONLY)
        os.pwrite(fd, whole, 0)
        os.close(fd)

    thread = threading.Thread(target=finish)
    thread.start()
    try:
        assert READERS[way](folder) == len(places)
    finally:
        thread.join()
