"""SNLI-VE JSON lines: one entailment sample a line, about a Flickr30k image."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from data_prep.config import SourceConfig
from data_prep.quarantine import Reason, Rejected
from data_prep.readers.base import ReadItem, SourceRecord, guarded, image_name, place, take
from data_prep.stores import open_input

_LABELS = {"entailment": "yes", "contradiction": "no", "neutral": "maybe"}
_DEFAULT_IMAGE_NAME = "{id}.jpg"


def read(config: SourceConfig) -> Iterator[ReadItem]:
    """Yields a sample for every line that is not blank."""
    path = str(config.annotations)
    with open_input(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = place(path, f"line {number}")
            row = _parsed(line)
            pair = row.get("pairID") if isinstance(row, dict) else None
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
    if gold not in _LABELS:
        raise Rejected(Reason.BAD_LABEL, f"gold label {gold!r:.80}")
    flickr_id = take(row, "Flickr30K_ID", (str, int))
    premise = row.get("sentence1")
    if config.use_premise and not isinstance(premise, str):
        raise Rejected(Reason.MALFORMED_ANNOTATION, f"premise 'sentence1' is {premise!r:.80}")
    return SourceRecord(
        uid=uid,
        task="entailment",
        image=image_name(config.image_name or _DEFAULT_IMAGE_NAME, flickr_id),
        position=where,
        text=hypothesis,
        premise=premise if isinstance(premise, str) else None,
        label=_LABELS[gold],
    )
