"""SNLI-VE JSON lines: one entailment sample a line, about a Flickr30k image."""

import json
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
    image_name,
    place,
    shown,
    take,
)
from data_prep.readers.inputs import lines

LABELS = {"entailment": "yes", "contradiction": "no", "neutral": "maybe"}
"""What entailment's gold labels are called in samples."""
_DEFAULT_IMAGE_NAME = "{id}.jpg"


def read(config: SourceConfig, work: Workspace) -> Iterator[ReadItem]:
    """Yields a sample for every line that is not blank."""
    path = str(config.annotations)
    for number, _, line in lines(path):
        where = place(path, f"line {number}")
        row = _parsed(line)
        pair = identity_of(row.get("pairID")) if isinstance(row, dict) else None
        uid = f"{config.source_name}/{config.split}/{pair or f'line {number}'}"
        yield guarded(uid, where, partial(_record, config, uid, where, row))


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line.decode("utf-8", "replace")


def _record(config: SourceConfig, uid: str, where: str, row: Any) -> SourceRecord:
    hypothesis = take(row, "sentence2", str)
    gold = take(row, "gold_label", str)
    if gold not in LABELS:
        raise Rejected(Reason.BAD_LABEL, f"gold label {shown(gold)}")
    flickr_id = take(row, "Flickr30K_ID", (str, int))
    premise = row.get("sentence1")
    if config.use_premise and not isinstance(premise, str):
        raise Rejected(Reason.MALFORMED_ANNOTATION, f"premise 'sentence1' is {shown(premise)}")
    return SourceRecord(
        uid=uid,
        task="entailment",
        image=image_name(config.image_name or _DEFAULT_IMAGE_NAME, flickr_id),
        position=where,
        text=hypothesis,
        premise=premise if isinstance(premise, str) else None,
        label=LABELS[gold],
    )
