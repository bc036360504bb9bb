"""What only the run's own record has is told too, once."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.tracking.backfill import missing_reports
from pipeline.tracking.journal import Journal
from pipeline.tracking.reports import metrics_entry


def write(path: Path, *records: object) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 9, "tr')


def test_reports_that_the_journal_lacks_are_found(tmp_path: Path) -> None:
    journal, file = Journal(tmp_path), tmp_path / "metrics.jsonl"
    assert list(missing_reports(journal, file)) == []
    journal.append(metrics_entry(1, {"train/loss": 0.5, "train/lr": 0.1}))
    write(
        file,
        {"step": 1, "train/loss": 0.5, "train/lr": 0.1},
        {"step": 1, "validation/loss": 0.7, "vqa/accuracy": 0.2},
        {"step": 2, "train/loss": 0.4},
        {"step": 2, "train/loss": None},
        [1],
    )
    found = [(e["step"], e["values"]) for e in missing_reports(journal, file)]
    assert found == [
        (1, {"validation/loss": 0.7, "vqa/accuracy": 0.2}),
        (2, {"train/loss": 0.4}),
    ]
    journal.extend(list(missing_reports(journal, file)))
    assert list(missing_reports(journal, file)) == []


def test_reports_that_were_delivered_and_let_go_count_as_told(tmp_path: Path) -> None:
    journal, file = Journal(tmp_path, limit_mb=0.01), tmp_path / "metrics.jsonl"
    steps = range(1, 301)
    write(file, *({"step": step, "train/loss": 0.5} for step in steps))
    for step in steps:
        assert journal.append(metrics_entry(step, {"train/loss": 0.5}))
        for _, place in journal.pending():
            journal.mark_delivered(place)
    assert len(list(journal.entries())) < 200
    assert journal.let_go[0][0] == 1
    assert list(missing_reports(journal, file)) == []
