"""Metrics that the run's own record has and the journal has not.

A process that is killed takes along what its threads had not yet written, and a full journal leaves
metrics out; `metrics.jsonl` of the run folder has them all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.tracking.entries import Entry
from pipeline.tracking.history import kinds_of
from pipeline.tracking.journal import Journal
from pipeline.tracking.reports import metrics_entry


def missing_reports(journal: Journal, metrics_file: Path) -> Iterator[Entry]:
    """Entries for the reports of a run that its journal does not hold.

    Args:
        journal: The run's. Steps between those of a segment that it has let go count as told.
        metrics_file: The run's own record; lines that are damaged are left out.
    """
    if not metrics_file.is_file():
        return
    told = {
        (entry["step"], kind)
        for entry in journal.entries()
        if entry["kind"] == "metrics"
        for kind in kinds_of(entry["values"])
    }
    let_go = journal.let_go
    with metrics_file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            record = _parse(line)
            if record is None or any(a <= record["step"] <= b for a, b in let_go):
                continue
            step = record.pop("step")
            kinds = kinds_of(record)
            if kinds and not any((step, kind) in told for kind in kinds):
                yield metrics_entry(step, record)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        if all(isinstance(value, int | float) for value in record.values()):
            return {**record, "step": int(record["step"])}
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    return None
