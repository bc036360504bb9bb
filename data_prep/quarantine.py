"""What was rejected and why: nothing that enters preparation leaves it without a trace."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq


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


_COLUMNS = pa.schema(
    [
        ("uid", pa.string()),
        ("position", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


def quarantine_parquet(rejections: Sequence[Rejection]) -> bytes:
    """The quarantine file, its rows ordered by (uid, position, reason)."""
    ordered = sorted(rejections, key=lambda r: (r.uid, r.position, r.reason, r.detail))
    columns = {
        # A text from outside may hold lone surrogates, which Arrow refuses.
        name: [str(getattr(r, name)).encode("utf-8", "backslashreplace").decode() for r in ordered]
        for name in _COLUMNS.names
    }
    sink = BytesIO()
    pq.write_table(pa.table(columns, schema=_COLUMNS), sink, compression="zstd")
    return sink.getvalue()


def count_reasons(rejections: Sequence[Rejection]) -> dict[str, int]:
    """Rejections per reason code, in the order of the codes' names."""
    return dict(sorted(Counter(str(r.reason) for r in rejections).items()))
