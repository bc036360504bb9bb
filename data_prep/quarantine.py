"""What was rejected and why: nothing that enters preparation leaves it without a trace."""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa

from data_prep.errors import DataError


class Reason(StrEnum):
    """Reason codes of rejected samples; stable, since people count and filter by them."""

    MISSING_IMAGE = "missing_image"
    UNREADABLE_IMAGE = "unreadable_image"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED_IMAGE = "truncated_image"
    CORRUPT_IMAGE = "corrupt_image"
    TOO_MANY_PIXELS = "too_many_pixels"
    UNSUPPORTED_IMAGE = "unsupported_image"
    TIMED_OUT = "timed_out"
    BAD_IMAGE_NAME = "bad_image_name"
    SIZE_MISMATCH = "size_mismatch"
    BAD_BOX = "bad_box"
    BAD_TEXT = "bad_text"
    BAD_LABEL = "bad_label"
    MALFORMED_ANNOTATION = "malformed_annotation"
    UNKNOWN_IMAGE = "unknown_image"
    UNKNOWN_QUESTION = "unknown_question"
    UNKNOWN_ANNOTATION = "unknown_annotation"
    NO_ANSWERS = "no_answers"
    DUPLICATE_UID = "duplicate_uid"


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """One rejected sample: its uid, where its annotation lies, a reason code and a detail."""

    uid: str
    position: str
    reason: Reason
    detail: str


class Rejected(Exception):
    """Raised where a sample turns out to be unusable; becomes a Rejection where it is caught."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


QUARANTINE_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("position", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
_SORTED = "SELECT uid, position, reason, detail FROM rejections ORDER BY 1, 2, 3, 4"


def writable_text(text: str) -> str:
    """A text from outside without lone surrogates, which neither Arrow nor SQLite takes."""
    return text.encode("utf-8", "backslashreplace").decode()


class RejectionTable:
    """Collects the rejections of a dataset and gives them back in order.

    SQLite keeps and sorts them in a temporary file, so that memory does not grow when a whole
    dataset is rejected.
    """

    def __init__(self) -> None:
        self._table = sqlite3.connect("")
        self._table.execute("CREATE TABLE rejections (uid, position, reason, detail)")
        self.reasons: Counter[str] = Counter()
        """Rejections per reason code."""

    def add(self, rejections: Iterable[Rejection]) -> None:
        """Takes rejections in any order.

        Raises:
            DataError: There is no room for temporary files.
        """
        try:
            self._table.executemany(
                "INSERT INTO rejections VALUES (?, ?, ?, ?)", map(self._counted, rejections)
            )
        except sqlite3.Error as error:
            raise _no_room(error) from error

    def _counted(self, rejection: Rejection) -> tuple[str, str, str, str]:
        self.reasons[str(rejection.reason)] += 1
        return (
            writable_text(rejection.uid),
            writable_text(rejection.position),
            str(rejection.reason),
            writable_text(rejection.detail),
        )

    def rows(self) -> Iterator[dict[str, str]]:
        """The rows of the quarantine file, ordered by (uid, position, reason, detail)."""
        try:
            for row in self._table.execute(_SORTED):
                yield dict(zip(QUARANTINE_SCHEMA.names, row, strict=True))
        except sqlite3.Error as error:
            raise _no_room(error) from error

    def close(self) -> None:
        """Drops everything."""
        self._table.close()


def _no_room(error: sqlite3.Error) -> DataError:
    return DataError(f"rejections cannot be sorted: {error}; SQLITE_TMPDIR names another folder")
