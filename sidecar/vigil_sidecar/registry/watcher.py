"""File notification for the model repository."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

__all__ = ["Watcher"]


class _Handler(FileSystemEventHandler):
    def __init__(self, root: Path, mark: Callable[[str], None]) -> None:
        self._root, self._mark = str(root), mark

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in ("opened", "closed_no_write"):
            return
        for path in (event.src_path, event.dest_path):
            text = path.decode(errors="surrogateescape") if isinstance(path, bytes) else path
            inside = text.removeprefix(self._root).lstrip("/")
            if inside and inside != text:
                name = inside.split("/")[0]
                if name:
                    self._mark(name)


class Watcher:
    """Calls ``mark`` with the name of each model folder in which something changed.

    Notification can miss events (overflow, network file systems); the
    reconciler's rescan finds those.
    """

    def __init__(self, root: Path, mark: Callable[[str], None]) -> None:
        self._observer = Observer()
        resolved = root.resolve()
        self._observer.schedule(_Handler(resolved, mark), str(resolved), recursive=True)

    def start(self) -> None:
        """Start watching."""
        self._observer.start()

    def stop(self) -> None:
        """Stop watching."""
        self._observer.stop()
        self._observer.join(timeout=5)
