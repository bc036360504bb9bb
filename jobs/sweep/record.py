"""What MLflow is told of a sweep: the space, the table of trials, the best of them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobs.sweep.folder import CONFIG
from jobs.sweep.results import RESULT, Row
from jobs.sweep.trials import Sweep
from pipeline.errors import RegistryError

if TYPE_CHECKING:
    from pipeline.tracking.sweep_record import SweepRecord

log = logging.getLogger(__name__)


class Record:
    """The record of a sweep, or none where tracking is off."""

    def __init__(self, sweep: Sweep, record: SweepRecord | None) -> None:
        self._sweep, self._record = sweep, record

    def tell(self, found: Sequence[Row], *, alone: bool) -> None:
        """Tells how the trials stand.

        Args:
            found: The trials, best first.
            alone: Whether no other process runs trials of the sweep.
        """
        if self._record is None:
            return
        best, states = found[0], Counter(row.state for row in found)
        metrics = {f"trials/{state}": float(count) for state, count in states.items()}
        tags = {"sweep.trials": ", ".join(f"{n} {state}" for state, n in sorted(states.items()))}
        if best.value is not None:
            metrics[f"best/{self._sweep.metric.name}"] = best.value
            tags |= {"sweep.best_trial": best.trial, "sweep.best": json.dumps(best.settings)}
        folder = self._sweep.folder
        self._record.result(metrics, tags, [folder / RESULT, folder / CONFIG])
        if not alone and (states["running"] or states["waiting"]):
            return  # the last one tells the end
        if all(row.over for row in found):
            self._record.end("FINISHED")
        else:
            self._record.end("FAILED" if states["failed"] else "KILLED")


@contextmanager
def recorded(sweep: Sweep) -> Iterator[Record]:
    """The sweep as MLflow sees it, with the parent that its trials look for."""
    tracking = sweep.base.tracking
    if not tracking.enabled:
        yield Record(sweep, None)
        return
    # Here, because MLflow takes seconds to import.
    from pipeline.tracking.sweep_record import SweepRecord

    config, run = sweep.config, sweep.trials[0].run
    assert run.tracking.experiment is not None, "every trial is given one"
    try:
        record = SweepRecord(
            sweep.folder, config.name, run.tracking.experiment, tracking, sweep.base.output_dir
        )
    except (OSError, RegistryError) as error:
        log.warning("the sweep is not recorded, and goes on: %s", error)
        yield Record(sweep, None)
        return
    space = {f"space.{path}": json.dumps(values) for path, values in config.space.items()}
    how = {"search": config.search, "scheduler": config.scheduler, "metric": sweep.metric.name}
    record.begin({**space, **how, "trials": str(len(sweep.trials))}, _note(sweep))
    yield Record(sweep, record)


def _note(sweep: Sweep) -> str:
    better = "smaller" if sweep.metric.mode == "min" else "larger"
    varied = "\n".join(
        f"- `{path}`: {json.dumps(values)}" for path, values in sweep.config.space.items()
    )
    return (
        f"Sweep of {len(sweep.trials)} trials; {better} `{sweep.metric.name}` is better.\n\n"
        f"{varied}\n\nFolder `{sweep.folder}`. *Artifacts*: `{RESULT}` is the table of trials,"
        f" `{CONFIG}` the whole configuration.\n"
    )
