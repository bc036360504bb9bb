"""What changed in a dataset's input since its shards were made: counted, not guessed."""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from data_prep.claim import LEDGER
from data_prep.errors import DataError
from data_prep.ledger import entry_or_none
from data_prep.plan import DatasetPlan
from data_prep.readers.base import SourceRecord

_COUNTS = """
SELECT count(*) FILTER (WHERE sides = 2), count(*) FILTER (WHERE sides = 1)
FROM (SELECT sum(DISTINCT side) AS sides FROM uids GROUP BY uid)
"""


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Samples that the shards were not made from, and samples that are no longer there."""

    new: int
    gone: int


def changes(plan: DatasetPlan) -> Changes:
    """Compares the uids of the plan with those of the ledger.

    Both are sorted by SQLite in temporary files, so memory does not grow with the dataset.

    Raises:
        DataError: There is no room for temporary files.
    """
    try:
        with closing(sqlite3.connect("")) as table:
            table.execute("CREATE TABLE uids (uid INTEGER, side INTEGER)")
            table.executemany("INSERT INTO uids VALUES (?, 1)", _short(_before(plan)))
            table.executemany("INSERT INTO uids VALUES (?, 2)", _short(_now(plan)))
            new, gone = table.execute(_COUNTS).fetchone()
    except sqlite3.Error as error:
        raise DataError(
            f"samples cannot be compared: {error}; SQLITE_TMPDIR names another folder"
        ) from error
    return Changes(new=new, gone=gone)


def _short(uids: Iterator[str]) -> Iterator[tuple[int]]:
    for uid in uids:
        digest = hashlib.blake2b(uid.encode(), digest_size=8).digest()
        yield (int.from_bytes(digest, "big", signed=True),)


def _before(plan: DatasetPlan) -> Iterator[str]:
    for path in (plan.folder / LEDGER).glob("shard-*.tar.json"):
        digits = path.name.removeprefix("shard-").split(".")[0]
        entry = entry_or_none(plan.folder, int(digits)) if digits.isdigit() else None
        if entry is not None:
            yield from (row.uid for row in entry.rows)
            yield from (rejection.uid for rejection in entry.rejections)


def _now(plan: DatasetPlan) -> Iterator[str]:
    for number in range(plan.shards):
        for content in plan.contents(number):
            yield SourceRecord.from_bytes(content)[1].uid
