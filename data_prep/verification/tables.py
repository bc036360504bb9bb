"""The index and the quarantine file of a dataset, read from bytes that nobody vouches for."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.manifest import INDEX_NAME, QUARANTINE_NAME, Manifest
from data_prep.quarantine import QUARANTINE_SCHEMA, Reason
from data_prep.shards import INDEX_SCHEMA, IndexRow
from data_prep.verification.problems import Problems


class Index:
    """The rows of an index by shard."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table.sort_by([("shard", "ascending"), ("position", "ascending")])
        self._shards = self._table["shard"].to_numpy()

    def rows(self, shard: int) -> list[IndexRow]:
        """The rows of one shard, by position."""
        first, last = np.searchsorted(self._shards, [shard, shard + 1])
        return [IndexRow(**row) for row in self._table.slice(first, last - first).to_pylist()]


def read_index(folder: Path, manifest: Manifest, problems: Problems) -> Index | None:
    """Reads the index and checks what concerns all shards; None when it cannot be used."""
    content = _content(folder / INDEX_NAME, manifest.index["sha256"], problems)
    table = None if content is None else _table(content, INDEX_NAME, INDEX_SCHEMA, problems)
    if table is None:
        return None
    if table.num_rows != manifest.samples:
        problems.add(INDEX_NAME, f"{table.num_rows} rows, the manifest has {manifest.samples}")
    problems.add_all(INDEX_NAME, _twice(table, "uid"))
    problems.add_all(INDEX_NAME, _twice(table, "position"))
    positions = table["position"].to_numpy()
    shards = table["shard"].to_numpy()
    # Differences of damaged numbers can overflow; comparing neighbours cannot.
    if (positions[1:] < positions[:-1]).any() or (shards[1:] < shards[:-1]).any():
        problems.add(INDEX_NAME, "its rows are not in the order of their positions")
    foreign = np.unique(shards[(shards < 0) | (shards >= len(manifest.shards))])
    for shard in foreign[:10].tolist():
        problems.add(INDEX_NAME, f"shard {shard}, the manifest has {len(manifest.shards)} shards")
    return Index(table)


def check_quarantine(folder: Path, manifest: Manifest, problems: Problems) -> None:
    """Compares the quarantine file with the manifest."""
    name, facts = QUARANTINE_NAME, manifest.quarantine
    content = _content(folder / name, facts["sha256"], problems)
    table = None if content is None else _table(content, name, QUARANTINE_SCHEMA, problems)
    if table is None:
        return
    reasons = dict(sorted(Counter(table["reason"].to_pylist()).items()))
    if reasons != facts["reasons"]:
        problems.add(name, f"rows of {reasons}, the manifest says {facts['reasons']}")
    for reason in sorted(reasons.keys() - set(Reason)):
        problems.add(name, f"{reason!r:.80} is no reason")


def _content(path: Path, sha256: str, problems: Problems) -> bytes | None:
    if not path.is_file():
        problems.add(path.name, "the file is missing")
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        problems.add(path.name, f"cannot be read: {error.strerror or error}")
        return None
    if hashlib.sha256(content).hexdigest() != sha256:
        problems.add(path.name, "its SHA-256 is not the manifest's")
    return content


def _table(content: bytes, name: str, schema: pa.Schema, problems: Problems) -> pa.Table | None:
    try:
        table = pq.read_table(BytesIO(content))
        table.validate(full=True)
    except Exception as error:
        # Damaged parquet makes its reader raise many kinds of errors; each means the same.
        problems.add(name, f"cannot be read as parquet: {error}")
        return None
    if not table.schema.equals(schema):
        found = ", ".join(f"{field.name} {field.type}" for field in table.schema)
        problems.add(name, f"other columns than expected: {found}")
        return None
    if any(column.null_count for column in table.columns):
        problems.add(name, "some of its values are missing")
        return table.drop_null()
    return table


def _twice(table: pa.Table, column: str) -> Iterator[str]:
    counts = table.group_by(column).aggregate([(column, "count")])
    if counts.num_rows == table.num_rows:
        return
    for row in counts.to_pylist():
        if row[f"{column}_count"] > 1:
            yield f"{column} {row[column]!r:.120} is there {row[f'{column}_count']} times"
