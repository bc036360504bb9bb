"""Rows that a reader has to join, kept on disk: memory must not grow with the annotations."""

import json
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from data_prep.files import TEMPORARY_SUFFIX

CACHE_KIB = 8192
"""Memory of SQLite's cache and of one run of its external sort."""
_BATCH = 1000
_MAX_INTEGER = 2**63 - 1


class Scratch:
    """A SQLite file in a folder, gone when it is closed; a killed run leaves a temporary name."""

    def __init__(self, folder: Path) -> None:
        with tempfile.NamedTemporaryFile(
            dir=folder, prefix=".join.", suffix=TEMPORARY_SUFFIX, delete=False
        ) as file:
            self._path = Path(file.name)
        self.connection = sqlite3.connect(self._path, isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{CACHE_KIB}"):
            self.connection.execute(f"PRAGMA {pragma}")
        # One transaction for everything: without a journal it costs nothing, and begins no new
        # one for each batch.
        self.connection.execute("BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.connection.close()
        self._path.unlink(missing_ok=True)

    def table(self, name: str) -> "Table":
        """A new table; its name is part of an SQL statement and never comes from outside."""
        return Table(self.connection, name)


class Table:
    """Rows by key; several may have the same one. Filled first, then asked."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self._connection, self._name = connection, name
        self._buffer: list[tuple[str, int, int, str]] = []
        self._indexed = False
        connection.execute(f"CREATE TABLE {name} (key TEXT, id INTEGER, number INTEGER, row TEXT)")

    def add(self, key: str, number: int, row: Any) -> None:
        """Adds a row of plain JSON values, with its place in its file."""
        row_id = row.get("id") if isinstance(row, dict) else None
        ordinal = int(row_id) if isinstance(row_id, int) and abs(row_id) <= _MAX_INTEGER else -1
        try:
            content = json.dumps(row)
        except RecursionError:
            # What lies that deep is in none of the fields' forms: they will be found missing.
            content = "{}"
        self._buffer.append((key, ordinal, number, content))
        if len(self._buffer) == _BATCH:
            self._flush()

    def _flush(self) -> None:
        self._connection.executemany(f"INSERT INTO {self._name} VALUES (?, ?, ?, ?)", self._buffer)
        self._buffer.clear()

    def _index(self) -> None:
        if not self._indexed:
            self._flush()
            self._connection.execute(f"CREATE INDEX {self._name}_key ON {self._name} (key)")
            self._indexed = True

    def get(self, key: str) -> list[tuple[int, Any]]:
        """Place and content of the rows with a key, in an order that their places do not decide."""
        self._index()
        rows = self._connection.execute(
            f"SELECT number, row FROM {self._name} WHERE key = ? ORDER BY id, row, number", (key,)
        )
        return [(number, json.loads(row)) for number, row in rows]

    def groups(self) -> Iterator[tuple[str, list[tuple[int, Any]]]]:
        """Every key with its rows, ordered by their ids."""
        self._flush()
        return self._grouped(
            f"SELECT key, number, row FROM {self._name} ORDER BY key, id, row, number"
        )

    def groups_not_in(self, other: "Table") -> Iterator[tuple[str, list[tuple[int, Any]]]]:
        """Every key that another table lacks, with its rows."""
        self._index()
        other._index()
        return self._grouped(
            f"SELECT key, number, row FROM {self._name} AS mine WHERE NOT EXISTS "
            f"(SELECT 1 FROM {other._name} AS o WHERE o.key = mine.key) "
            "ORDER BY key, id, row, number"
        )

    def _grouped(self, query: str) -> Iterator[tuple[str, list[tuple[int, Any]]]]:
        rows = self._connection.execute(query)
        for key, group in groupby(rows, key=lambda row: str(row[0])):
            yield key, [(number, json.loads(row)) for _, number, row in group]


def key_of(identity: object) -> str | None:
    """An id as a key, so that 5 and '5' stay different; None for what is no id."""
    if isinstance(identity, bool) or not isinstance(identity, int | str):
        return None
    if isinstance(identity, int):
        return str(identity) if abs(identity) <= _MAX_INTEGER else None
    return json.dumps(identity)


def picked(row: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a row that its reader needs; polygons and the like stay out of the scratch."""
    return {name: row[name] for name in names if name in row}
