"""What came out of a sweep: a table, best first, and `sweep.json`."""

from __future__ import annotations

import fcntl
import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.sweep.folder import FAILURE, Report, Word, reports, word_of
from jobs.sweep.space import Point
from jobs.sweep.trials import Metric, Sweep, Trial
from pipeline.training.checkpoint import write_json_whole

RESULT = "sweep.json"
FORMAT = "prefixworks.sweep/1"
_LOCK = ".result-lock"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A trial, and its best validation so far."""

    trial: str
    state: Word
    value: float | None
    """None where nothing was measured."""
    step: int | None
    """Of that validation."""
    settings: Point
    error: str | None
    """How it broke."""

    @property
    def over(self) -> bool:
        """Whether it needs no more training."""
        return self.state in ("finished", "stopped")


def rows(sweep: Sweep) -> list[Row]:
    """All trials, best first; those that measured nothing last."""
    found = [_row(trial, sweep.metric) for trial in sweep.trials]
    sign = 1 if sweep.metric.mode == "min" else -1

    def rank(row: Row) -> tuple[float, str]:
        return (math.inf if row.value is None else sign * row.value, row.trial)

    return sorted(found, key=rank)


def write_result(sweep: Sweep) -> list[Row]:
    """Writes `sweep.json`; of several trials that end at once, the last one sees all of them.

    Returns:
        what was written.
    """
    with (sweep.folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = rows(sweep)
        record: dict[str, Any] = {
            "format": FORMAT,
            "name": sweep.config.name,
            "metric": asdict(sweep.metric),
            "states": dict(Counter(row.state for row in found)),
            "best": None if found[0].value is None else found[0].trial,
            "trials": [asdict(row) for row in found],
        }
        write_json_whole(sweep.folder / RESULT, record)
    return found


def print_rows(sweep: Sweep, found: list[Row]) -> None:
    """Prints the table."""
    table = Table(box=None, pad_edge=False)
    for column in ("TRIAL", "STATE", sweep.metric.name.upper(), "STEP", *sweep.config.space):
        table.add_column(column, overflow="fold")
    for row in found:
        value = "-" if row.value is None else f"{row.value:.4f}"
        step = "-" if row.step is None else str(row.step)
        settings = (
            each if isinstance(each, str) else json.dumps(each) for each in row.settings.values()
        )
        table.add_row(row.trial, row.state, value, step, *settings)
    # A file or a pipe gets whole lines.
    console = Console(width=None if Console().is_terminal else 200, highlight=False, markup=False)
    console.print(table)


def _row(trial: Trial, metric: Metric) -> Row:
    state, best = word_of(trial), _best(reports(trial, metric), metric)
    return Row(
        trial=trial.name,
        state=state,
        value=None if best is None else best.value,
        step=None if best is None else best.step,
        settings=trial.point,
        error=_error(trial) if state == "failed" else None,
    )


def _best(found: list[Report], metric: Metric) -> Report | None:
    best: Report | None = None
    for report in found:
        if math.isfinite(report.value) and (
            best is None or metric.better(report.value, best.value)
        ):
            best = report
    return best


def _error(trial: Trial) -> str:
    try:
        return str(json.loads((trial.folder / FAILURE).read_text(encoding="utf-8"))["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"see {trial.folder}"
