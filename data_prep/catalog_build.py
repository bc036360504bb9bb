"""Makes a dataset's catalog: reads the annotations of all sources and puts the records in order.

Records stream into a SQLite file, and SQLite's external sort brings them into order, so memory
does not grow with the data.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from data_prep.config import SourceConfig
from data_prep.errors import DataError
from data_prep.fields import canonical_json
from data_prep.files import temporary_path
from data_prep.quarantine import Reason, Rejected, Rejection, writable_text
from data_prep.readers import READERS, SourceRecord, Workspace
from data_prep.readers.scratch import CACHE_KIB

BLOB_NAME: Final = "images-{key:.16}.blob"

_VERSION: Final = "prefixworks.catalog/1"
"""Raised when the same input gives another catalog than before."""
_BATCH = 1000

Progress = Callable[[str, int], None]
"""Called with the name of a source and how many of its annotations were read so far."""


@dataclass(frozen=True, kw_only=True)
class CatalogInput:
    """Everything that decides a catalog's content.

    Attributes:
        sources: The sources as they are read.
        described: What is read of each, by content and not by path.
        seed: Seed of the order.
        store_images: Whether an image's samples stay together.
    """

    sources: tuple[SourceConfig, ...]
    described: tuple[Mapping[str, Any], ...]
    seed: int
    store_images: str

    @property
    def key(self) -> str:
        """Names the input."""
        within = [source.images is None for source in self.sources]
        content = [_VERSION, list(self.described), within, self.seed, self.store_images]
        return hashlib.sha256(canonical_json(content)).hexdigest()

    def blob_name(self, number: int) -> str:
        """Name of the file for images of a source that cannot be reached where they are."""
        source = canonical_json(dict(self.described[number]))
        return BLOB_NAME.format(key=hashlib.sha256(source).hexdigest())


class CatalogBuild:
    """Reads all sources into an unordered table, and writes the ordered one from it."""

    def __init__(
        self, path: Path, wanted: CatalogInput, blobs: Path | None, on_progress: Progress | None
    ) -> None:
        self._path, self._wanted, self._blobs = path, wanted, blobs
        self._on_progress = on_progress or (lambda source, count: None)
        self._staged: list[tuple[object, ...]] = []
        self._rejected: list[tuple[str, ...]] = []

    def run(self) -> None:
        """Writes the catalog."""
        self._connection = sqlite3.connect(self._path, isolation_level=None)
        staged = temporary_path(self._path.with_name("staged"))
        try:
            self._prepare(staged)
            for number, source in enumerate(self._wanted.sources):
                self._read(number, source)
            self._reject_duplicates()
            self._write()
        finally:
            self._connection.close()
            staged.unlink(missing_ok=True)

    def _prepare(self, staged: Path) -> None:
        run = self._connection.execute
        run("ATTACH ? AS staged", (str(staged),))
        for database in ("main", "staged"):
            # A crash starts the catalog again: nothing has to be taken back.
            run(f"PRAGMA {database}.journal_mode=OFF")
            run(f"PRAGMA {database}.synchronous=OFF")
            run(f"PRAGMA {database}.cache_size=-{CACHE_KIB}")
        run("BEGIN")
        run("CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT)")
        run(
            "CREATE TABLE records "
            "(number INTEGER PRIMARY KEY, source INTEGER, address TEXT, content BLOB)"
        )
        run(
            "CREATE TABLE rejections "
            "(number INTEGER PRIMARY KEY, uid TEXT, position TEXT, reason TEXT, detail TEXT)"
        )
        run(
            "CREATE TABLE staged.records (uid_rank BLOB, image_rank BLOB, meaning BLOB, "
            "source INTEGER, task TEXT, address TEXT, content BLOB)"
        )
        run("CREATE TABLE staged.rejections (uid TEXT, position TEXT, reason TEXT, detail TEXT)")

    def _read(self, number: int, source: SourceConfig) -> None:
        name = self._wanted.blob_name(number)
        blob = self._blobs / name if self._blobs else None
        work = Workspace(folder=self._path.parent, blob=blob, blob_name=name)
        count = 0
        for item in READERS[source.reader](source, work):
            count += 1
            self._add(number, item)
            if count % _BATCH == 0:
                self._flush()
                self._on_progress(source.source_name, count)
        self._flush()
        self._on_progress(source.source_name, count)
        if count == 0:
            raise DataError(
                f"{source.annotations or source.questions}: no samples of split {source.split!r}"
            )

    def _add(self, number: int, item: SourceRecord | Rejection) -> None:
        if isinstance(item, Rejection):
            self._reject(item)
            return
        try:
            content = item.to_bytes(number)
            uid_rank = _rank(self._wanted.seed, item.uid)
            together = self._wanted.store_images == "once_per_shard"
            image_rank = _rank(self._wanted.seed, item.image) if together else b""
        except Rejected as rejected:
            self._reject(item.rejection(rejected))
            return
        address = item.address or item.image
        meaning = _meaning(item)
        self._staged.append((uid_rank, image_rank, meaning, number, item.task, address, content))

    def _reject(self, rejection: Rejection) -> None:
        texts = (rejection.uid, rejection.position, str(rejection.reason), rejection.detail)
        self._rejected.append(tuple(map(writable_text, texts)))

    def _flush(self) -> None:
        self._connection.executemany(
            "INSERT INTO staged.records VALUES (?, ?, ?, ?, ?, ?, ?)", self._staged
        )
        self._connection.executemany(
            "INSERT INTO staged.rejections VALUES (?, ?, ?, ?)", self._rejected
        )
        self._staged.clear()
        self._rejected.clear()

    def _reject_duplicates(self) -> None:
        """Keeps one record of each uid; which one depends on their content, not on their rows."""
        self._connection.execute(
            "CREATE TABLE staged.again AS SELECT place FROM (SELECT rowid AS place, row_number() "
            "OVER (PARTITION BY uid_rank ORDER BY meaning, rowid) AS nth FROM staged.records) "
            "WHERE nth > 1"
        )
        found = self._connection.execute(
            "SELECT content FROM staged.records WHERE rowid IN (SELECT place FROM staged.again)"
        )
        for (content,) in found:
            _, record = SourceRecord.from_bytes(content)
            again = Rejected(Reason.DUPLICATE_UID, "another sample has the same uid")
            self._reject(record.rejection(again))
            if len(self._rejected) == _BATCH:
                self._flush()
        self._flush()
        self._connection.execute(
            "DELETE FROM staged.records WHERE rowid IN (SELECT place FROM staged.again)"
        )

    def _write(self) -> None:
        run = self._connection.execute
        # The numbers that SQLite gives count from 1, positions from 0.
        run(
            "INSERT INTO records SELECT NULL, source, address, content FROM staged.records "
            "ORDER BY image_rank, uid_rank"
        )
        run(
            "INSERT INTO rejections SELECT NULL, uid, position, reason, detail "
            "FROM staged.rejections ORDER BY uid, position, reason, detail"
        )
        by_task = dict(
            run("SELECT task, count(*) FROM staged.records GROUP BY task ORDER BY task").fetchall()
        )
        facts = {
            "records": sum(by_task.values()),
            "rejected": run("SELECT count(*) FROM rejections").fetchone()[0],
            "by_task": by_task,
        }
        self._connection.executemany(
            "INSERT INTO facts VALUES (?, ?)",
            [(name, json.dumps(value)) for name, value in facts.items()],
        )
        run("COMMIT")


def _rank(seed: int, text: str) -> bytes:
    try:
        return hashlib.sha256(f"{seed}:{text}".encode()).digest()
    except UnicodeEncodeError as error:
        raise Rejected(Reason.BAD_TEXT, str(error)) from error


def _meaning(record: SourceRecord) -> bytes:
    """A digest of what a record says, wherever it stands."""
    fields = {**vars(record), "position": None, "address": None}
    return hashlib.sha256(canonical_json(fields)).digest()
