"""What a run has to tell, on disk first: an append-only journal and how far it was delivered.

A journal is a row of segments, so that what was delivered can be let go by deleting whole files.
Whoever delivers (a thread of the run, or a later `prefixworks runs sync`) reads on from the last
delivered place, so nothing is lost when a tracking server is down, and nothing is held in memory
while it stays down. Passwords inside addresses are hidden before anything is written.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.tracking.copies import Copies
from pipeline.tracking.entries import Entry, is_expendable, parse_entry
from pipeline.tracking.secrets import redact_all

log = logging.getLogger(__name__)

JOURNAL_FOLDER = "tracking"
NODES_FOLDER = "nodes"
DEFAULT_LIMIT_MB = 256.0
_SEGMENT_BYTES = 4 * 2**20


@dataclass(frozen=True, order=True)
class Place:
    """A position between two entries."""

    segment: int
    offset: int
    """Bytes from the segment's start."""


class Journal:
    """The journal of one run folder, or of one node of that run.

    Several processes may write and one delivers; locks in the folder keep them apart.
    """

    def __init__(
        self, run_dir: str | Path, *, node: str | None = None, limit_mb: float = DEFAULT_LIMIT_MB
    ) -> None:
        """Opens a journal, which is made where it is missing.

        Args:
            run_dir: Folder of the run.
            node: A machine, for what it tells of itself.
            limit_mb: Most that the journal and its files hold, in MB of 10^6 bytes.
        """
        self.run_dir = Path(run_dir).resolve()
        self.folder = self.run_dir / JOURNAL_FOLDER
        if node is not None:
            self.folder = self.folder / NODES_FOLDER / node
        self.folder.mkdir(parents=True, exist_ok=True)
        self._limit = int(limit_mb * 1e6)
        self._segment_bytes = max(1, min(_SEGMENT_BYTES, self._limit // 8))
        self._copies = Copies(self.folder / "files")
        self._position_file = self.folder / "delivered.json"
        self._lost_file = self.folder / "lost.json"
        self._let_go_file = self.folder / "let_go.json"
        with self._locked("writing"):
            self._cut_torn_line()

    def append(self, entry: Entry) -> bool:
        """Writes one entry; False when the journal is full and the entry was not taken."""
        return self.extend([entry]) == 1

    def extend(self, entries: Sequence[Entry]) -> int:
        """Writes entries; they survive the death of the process, not of the machine.

        An entry of kind `artifact` names a file, of which the journal takes a copy.

        Returns:
            How many were taken. What a full journal leaves out is counted in `lost`.

        Raises:
            OSError: the disk is full or the folder is gone; what was not taken is as before.
        """
        taken, lost = 0, Counter[str]()
        with self._locked("writing"):
            for entry in entries:
                size = self._size_of(entry)
                if is_expendable(entry) and not self._make_room(size):
                    lost[entry["kind"]] += 1
                    continue
                self._write(self._with_copy(entry))
                taken += 1
        if lost:
            self._count_lost(lost)
        return taken

    @property
    def delivered(self) -> Place:
        """The place up to which entries were delivered."""
        try:
            return Place(**json.loads(self._position_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Place(0, 0)
        except (OSError, ValueError, TypeError):
            # Delivering again is safe, and not delivering is not.
            log.warning("%s is damaged: the journal is delivered again", self._position_file)
            return Place(0, 0)

    @property
    def lost(self) -> dict[str, int]:
        """How many entries of each kind a full journal has not taken."""
        return _read_json(self._lost_file)

    def pending(self) -> Iterator[tuple[Entry, Place]]:
        """Yields each undelivered entry with the place behind it."""
        yield from self._read(self.delivered)

    def entries(self) -> Iterator[Entry]:
        """Yields all entries that are still there, delivered ones too."""
        return (entry for entry, _ in self._read(Place(0, 0)))

    def forget_lost(self, kind: str) -> None:
        """Says that what was left out of a kind has been told by another way."""
        counts = {name: count for name, count in self.lost.items() if name != kind}
        write_json(self._lost_file, counts)

    @property
    def let_go(self) -> list[tuple[int, int]]:
        """First and last step that each segment told of which is not there any more."""
        spans = _read_json(self._let_go_file).get("steps", [])
        return [(first, last) for first, last in spans]

    def mark_delivered(self, place: Place) -> None:
        """Remembers that everything before a place was delivered."""
        write_json(self._position_file, asdict(place))

    def forget_files(self) -> None:
        """Deletes the copies of files, unless something is still to be delivered."""
        with self._locked("writing"):
            if next(self.pending(), None) is None:
                self._copies.clear()

    def refuse(self, entry: Entry, reason: str) -> None:
        """Keeps an entry that the store will never take, with its reason, out of the way."""
        line = json.dumps(redact_all({"reason": reason, "entry": entry}), sort_keys=True)
        with (self.folder / "refused.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    @property
    def refused(self) -> int:
        """How many entries the store has refused."""
        path = self.folder / "refused.jsonl"
        return len(path.read_bytes().splitlines()) if path.is_file() else 0

    @contextmanager
    def delivering(self) -> Iterator[bool]:
        """Keeps others from delivering the same entries; False when another one is at it."""
        with (self.folder / ".delivering").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield True

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self.folder / f".{name}").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _segments(self) -> list[int]:
        return sorted(int(path.stem[8:]) for path in self.folder.glob("journal-*.jsonl"))

    def _path(self, segment: int) -> Path:
        return self.folder / f"journal-{segment:06d}.jsonl"

    def _read(self, start: Place) -> Iterator[tuple[Entry, Place]]:
        for segment in self._segments():
            if segment < start.segment:
                continue
            try:
                stream = self._path(segment).open("rb")
            except FileNotFoundError:
                continue  # delivered and let go a moment ago
            with stream:
                stream.seek(start.offset if segment == start.segment else 0)
                while (line := stream.readline()).endswith(b"\n"):
                    yield parse_entry(line), Place(segment, stream.tell())

    def _write(self, entry: Entry) -> None:
        line = (json.dumps(redact_all(entry), sort_keys=True) + "\n").encode()
        last = (self._segments() or [1])[-1]
        path = self._path(last)
        before = path.stat().st_size if path.is_file() else 0
        if before >= self._segment_bytes:
            path, before = self._path(last + 1), 0
        with path.open("ab", buffering=0) as stream:
            try:
                written = stream.write(line)
            except OSError:
                os.truncate(path, before)
                raise
            if written != len(line):
                os.truncate(path, before)
                raise OSError(f"{path}: the disk is full")

    def _with_copy(self, entry: Entry) -> Entry:
        if entry["kind"] != "artifact" or not Path(entry["path"]).is_file():
            return entry
        copy = self._copies.add(Path(entry["path"]))
        return {**entry, "path": str(copy.relative_to(self.run_dir))}

    def _size_of(self, entry: Entry) -> int:
        size = len(json.dumps(entry))
        if entry["kind"] == "artifact" and Path(entry["path"]).is_file():
            size += Path(entry["path"]).stat().st_size
        return size

    def _make_room(self, size: int) -> bool:
        """Lets delivered segments go where the journal is full; whether there is room then."""
        segments = {number: self._path(number).stat().st_size for number in self._segments()}
        total = sum(segments.values()) + self._copies.size() + size
        if total <= self._limit:
            return True
        delivered = self.delivered.segment
        for number in [number for number in segments if number < delivered]:
            self._let_go_of(number)
            total -= segments[number]
            if total <= self._limit:
                return True
        return False

    def _let_go_of(self, segment: int) -> None:
        path = self._path(segment)
        with path.open("rb") as stream:
            entries = [parse_entry(line) for line in stream]
        steps = [entry["step"] for entry in entries if entry["kind"] == "metrics"]
        if steps:
            spans = [*self.let_go, (min(steps), max(steps))]
            write_json(self._let_go_file, {"steps": spans})
        path.unlink()

    def _count_lost(self, more: Counter[str]) -> None:
        counts = self.lost
        if not counts:
            log.warning(
                "%s is full with what MLflow has not taken: metrics and pictures are left out until"
                " it does; metrics.jsonl of the run keeps the metrics",
                self.folder,
            )
        write_json(self._lost_file, Counter(counts) + more)

    def _cut_torn_line(self) -> None:
        # A killed process can leave half a line, and the next entry must not be glued to it.
        for segment in self._segments()[-1:]:
            content = self._path(segment).read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self._path(segment), whole)


def _read_json(path: Path) -> dict[str, Any]:
    """A small file of counts; one that is damaged is not worth the rest."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return values


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a small JSON file by rename, so that a reader never sees half of it."""
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    scratch.replace(path)
