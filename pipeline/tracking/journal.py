"""What a run has to tell, on disk first: an append-only journal and how far it was delivered.

Training only ever writes a line to this file. Whoever delivers (a thread of the run, or a later
`prefixworks registry sync`) reads on from the last delivered byte, so nothing is lost when a
tracking server is down, and nothing is held in memory while it stays down.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Entry = dict[str, Any]
"""One line: `kind` and the values of that kind (see pipeline.tracking.mlflow)."""

JOURNAL_FOLDER = "tracking"


class Journal:
    """The journal of one run folder, with one writer and one reader that may be two threads."""

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir).resolve()
        self.folder = self.run_dir / JOURNAL_FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "journal.jsonl"
        self._position_file = self.folder / "delivered.json"
        self._lock = threading.Lock()
        self._cut_torn_line()

    def append(self, entry: Entry) -> None:
        """Writes one entry; it survives the death of the process, not of the machine."""
        line = json.dumps(entry, sort_keys=True) + "\n"
        with self._lock, self.path.open("a", encoding="utf-8") as stream:
            stream.write(line)

    @property
    def delivered(self) -> int:
        """Position in bytes up to which entries were delivered."""
        if not self._position_file.is_file():
            return 0
        return int(json.loads(self._position_file.read_text())["position"])

    def pending(self) -> Iterator[tuple[Entry, int]]:
        """Yields each undelivered entry with the position behind it."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as stream:
            stream.seek(self.delivered)
            while (line := stream.readline()).endswith(b"\n"):
                yield json.loads(line), stream.tell()

    def mark_delivered(self, position: int) -> None:
        """Remembers that everything before position was delivered."""
        write_json(self._position_file, {"position": position})

    def refuse(self, entry: Entry, reason: str) -> None:
        """Keeps an entry that the store will never take, with its reason, out of the way."""
        with (self.folder / "refused.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"reason": reason, "entry": entry}, sort_keys=True) + "\n")

    def _cut_torn_line(self) -> None:
        # A killed process can leave half a line, and the next entry must not be glued to it.
        if not self.path.is_file():
            return
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a small JSON file by rename, so that a reader never sees half of it."""
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    scratch.replace(path)
