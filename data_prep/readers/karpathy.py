"""Karpathy's splits (dataset_coco.json and its siblings): one caption sample an image."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from data_prep.config import SourceConfig
from data_prep.quarantine import Reason, Rejected
from data_prep.readers.base import (
    ReadItem,
    SourceRecord,
    Workspace,
    guarded,
    identity_of,
    place,
    shown,
    take,
)
from data_prep.readers.json_stream import stream_lists

_ID_FIELDS = ("cocoid", "imgid")
_SPLITS = ("train", "restval", "val", "test")


def read(config: SourceConfig, work: Workspace) -> Iterator[ReadItem]:
    """Yields a sample for every image of the configured split, with restval if that is asked for.

    An image whose split is none of the four is rejected, since it cannot be told whose it is.
    """
    path = str(config.annotations)
    wanted = (config.split, "restval") if config.restval else (config.split,)
    for _, number, row in stream_lists(path, ("images",)):
        split = row.get("split") if isinstance(row, dict) else None
        if split in _SPLITS and split not in wanted:
            continue
        where = place(path, f"images[{number}]")
        uid = f"{config.source_name}/{config.split}/{_identity(row) or f'row {number}'}"
        yield guarded(uid, where, partial(_record, uid, where, row))


def _identity(row: Any) -> str | None:
    if not isinstance(row, dict):
        return None
    found = (identity_of(row.get(name)) for name in _ID_FIELDS)
    return next((identity for identity in found if identity), None)


def _record(uid: str, where: str, row: Any) -> SourceRecord:
    if take(row, "split", str) not in _SPLITS:
        raise Rejected(Reason.MALFORMED_ANNOTATION, f"split {shown(row['split'])}")
    if _identity(row) is None:
        raise Rejected(Reason.MALFORMED_ANNOTATION, "there is neither a 'cocoid' nor an 'imgid'")
    sentences = take(row, "sentences", list)
    if not sentences:
        raise Rejected(Reason.MALFORMED_ANNOTATION, "the image has no captions")
    folder = take(row, "filepath", str) if "filepath" in row else ""
    name = take(row, "filename", str)
    captions = [(_order(sentence), take(sentence, "raw", str)) for sentence in sentences]
    captions.sort()
    return SourceRecord(
        uid=uid,
        task="caption",
        image=f"{folder}/{name}" if folder else name,
        position=where,
        references=tuple(caption for _, caption in captions),
    )


def _order(sentence: Any) -> int:
    found = sentence.get("sentid") if isinstance(sentence, dict) else None
    return found if isinstance(found, int) else -1
