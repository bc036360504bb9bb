"""The training hook that records a run in MLflow, and the record of an evaluation.

The hook puts entries into a queue and nothing else: one thread writes them into a journal (see
recorder.py), another delivers them (see courier.py). So a tracking server that is slow, down or
refusing costs training one place in a queue per entry.
"""

from __future__ import annotations

import atexit
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import EXIT_INTERRUPTED, RegistryError, TrainingError
from pipeline.tracking.backfill import missing_reports
from pipeline.tracking.checkpoint_models import kept_checkpoints, model_entry
from pipeline.tracking.config import TrackingConfig, resolve_store
from pipeline.tracking.courier import Courier
from pipeline.tracking.curves import draw_curves, read_points
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.entries import Entry
from pipeline.tracking.history import History
from pipeline.tracking.identity import read_identity
from pipeline.tracking.introduction import artifact, inputs, introduce, opening, tuned_with
from pipeline.tracking.journal import Journal
from pipeline.tracking.recorder import Recorder
from pipeline.tracking.reports import metrics_entry, now_ms
from pipeline.tracking.secrets import redact
from pipeline.training.hooks import METRICS_FILE

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.training.summary import TrainingResult

log = logging.getLogger(__name__)

PICTURES_FOLDER = "pictures"
"""Folder of a run whose PNG files are recorded at its end."""
PREDICTIONS_FOLDER = f"{PICTURES_FOLDER}/predictions"
"""Folder of a run with a PNG of each validation."""
CURVES_FILE = "curves.png"
_SHORT_GOODBYE_S = 10.0
"""Longest wait of a run that broke or was asked to stop; `runs sync` delivers what is left."""


class MlflowHook:
    """Records one training run: parameters, metrics, data sets, code, checkpoints, pictures."""

    def __init__(self) -> None:
        self._record: _RunRecord | None = None

    def on_start(self, run_dir: Path, config: RunConfig) -> None:
        """Opens the journal, or continues it when the run folder has one, and tells who runs."""
        try:
            self._record = _RunRecord(run_dir, config)
        except (OSError, RegistryError) as error:
            log.warning("this run is not recorded, training goes on: %s", error)
            return
        atexit.register(self.abandon)

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records training metrics of a step."""
        if self._record is not None:
            self._record.report(step, metrics)
            self._record.look_for_checkpoints()

    def on_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records validation metrics of a step, with its pictures."""
        if self._record is not None:
            self._record.report(step, metrics)
            self._record.show_validation(step)

    def on_end(self, result: TrainingResult) -> None:
        """Records what came out, with the run's pictures, and waits a bounded time for delivery."""
        if self._record is None:
            return
        best = {f"best/{name}": value for name, value in result.best_metrics.items()}
        numbers = {"run/seconds": result.seconds, "run/steps": float(result.final_step)}
        self._record.report(result.final_step, best | numbers)
        self._record.tag(
            {
                "base.fingerprint.before": result.fingerprint_before,
                "base.fingerprint.after": result.fingerprint_after,
                "run.ended_by": "patience" if result.stopped_early else "its last step",
            }
        )
        self._close("FINISHED")

    def abandon(self, error: BaseException | None = None) -> None:
        """Says that the run did not reach its end; a resumed run is RUNNING again.

        Args:
            error: What broke it; None where the process just ends.
        """
        if self._record is None:
            return
        asked = isinstance(error, TrainingError) and error.exit_code == EXIT_INTERRUPTED
        if error is not None:
            self._record.tag({"run.ended_by": " ".join(str(error).split()) or repr(error)})
        # The other ranks, and whoever starts the run again, wait for this process.
        self._close("KILLED" if error is None or asked else "FAILED", _SHORT_GOODBYE_S)

    def _close(self, status: str, most_s: float = math.inf) -> None:
        atexit.unregister(self.abandon)
        assert self._record is not None
        record, self._record = self._record, None
        record.close(status, most_s)


class _RunRecord:
    """The open record of a run."""

    def __init__(self, run_dir: Path, config: RunConfig) -> None:
        tracking = config.tracking
        self._config = config
        self._journal = Journal(run_dir, limit_mb=tracking.journal_mb)
        self._run_dir = self._journal.run_dir
        address = resolve_store(tracking, config.output_dir).uri
        identity = read_identity(self._run_dir, address) or introduce(self._journal, config)
        if redact(address) != redact(identity.location.uri):
            log.warning(
                "this run began in %s and stays there; tracking.uri names another store",
                redact(identity.location.uri),
            )
        self._history = History()
        self._models: set[str] = set()
        self._shown: set[str] = set()
        for entry in self._journal.entries():
            self._recall(entry)
        self._courier = Courier(
            Delivery(self._journal, identity, tracking.request_timeout_s), tracking
        )
        self._recorder = Recorder(self._journal, self._courier)
        self._recorder.tell({"kind": "begin"})
        for entry in missing_reports(self._journal, self._run_dir / METRICS_FILE):
            self._tell_metrics(entry)
        self._recorder.tell_later(lambda: opening(self._run_dir, config))

    def _recall(self, entry: Entry) -> None:
        """Takes up what an earlier part of the run has told."""
        if entry["kind"] == "metrics":
            self._history.add(entry)
        elif entry["kind"] == "artifact":
            self._shown.add(Path(entry["path"]).name)
        elif entry["kind"] == "model":
            self._models.add(entry["key"])
        elif entry["kind"] == "model_gone":
            self._models.discard(entry["key"])

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tells metrics, unless a part of the run before a resume told the same."""
        entry = metrics_entry(step, metrics)
        if not self._history.repeats(step, entry["values"]):
            self._tell_metrics(entry)

    def _tell_metrics(self, entry: Entry) -> None:
        self._history.add(entry)
        self._recorder.tell(entry)

    def tag(self, values: dict[str, str]) -> None:
        self._recorder.tell({"kind": "tags", "values": values})

    def look_for_checkpoints(self) -> None:
        """Tells which checkpoints there are now and which are no longer."""
        self._recorder.tell_later(self._checkpoints)

    def show_validation(self, step: int) -> None:
        """Tells the pictures of a validation."""
        self._recorder.tell_later(lambda: self._pictures(step))

    def close(self, status: str, most_s: float) -> None:
        """Tells how the run ended, and waits a bounded time until all is written and delivered."""
        self._recorder.tell_later(self._checkpoints)
        self._recorder.tell_later(self._last_pictures)
        until = time.monotonic() + min(most_s, self._config.tracking.close_timeout_s)
        self._recorder.close(lambda: self._ending(status), until - time.monotonic())
        self._courier.close(max(0.0, until - time.monotonic()))

    def _ending(self, status: str) -> Iterator[Entry]:
        lost = {f"tracking.lost_{kind}": str(n) for kind, n in self._journal.lost.items()}
        if lost:
            yield {"kind": "tags", "values": lost}
        yield {"kind": "end", "status": status, "time_ms": now_ms()}

    def _checkpoints(self) -> Iterator[Entry]:
        kept = kept_checkpoints(self._run_dir)
        for key in sorted(self._models - kept.keys()):
            self._models.discard(key)
            yield {"kind": "model_gone", "key": key}
        about = {
            "name": self._config.name,
            "method": self._config.tuning.method,
            "params": {"tuned with": tuned_with(self._config), "base": self._config.base.path},
        }
        for key in sorted(kept.keys() - self._models):
            step, place = kept[key]
            self._models.add(key)
            yield model_entry(key, step, place, self._history.at(step), about)

    def _pictures(self, step: int) -> Iterator[Entry]:
        yield from self._curves()
        predictions = self._run_dir / PREDICTIONS_FOLDER / f"step-{step:06d}.png"
        if predictions.is_file():
            self._shown.add(predictions.name)
            yield artifact(predictions, PREDICTIONS_FOLDER)

    def _last_pictures(self) -> Iterator[Entry]:
        yield from self._curves()
        for picture in sorted((self._run_dir / PICTURES_FOLDER).glob("*.png")):
            if picture.name != CURVES_FILE:
                yield artifact(picture, PICTURES_FOLDER)
        # What a part of the run that was killed had no time to tell.
        for picture in sorted((self._run_dir / PREDICTIONS_FOLDER).glob("*.png")):
            if picture.name not in self._shown:
                yield artifact(picture, PREDICTIONS_FOLDER)

    def _curves(self) -> Iterator[Entry]:
        record = self._run_dir / METRICS_FILE
        points = read_points(record) if record.is_file() else {}
        if points:
            picture = self._run_dir / PICTURES_FOLDER / CURVES_FILE
            draw_curves(points, self._config.name, picture)
            yield artifact(picture, PICTURES_FOLDER)


def record_evaluation(
    run_dir: str | Path,
    metrics: Mapping[str, float],
    *,
    step: int = 0,
    dataset: str | None = None,
    pictures: Sequence[Path] = (),
) -> bool:
    """Adds an evaluation to the MLflow run of a run folder.

    Args:
        run_dir: Folder of the training run.
        metrics: Scores by `namespace/name`.
        step: Training step that was evaluated.
        dataset: Folder of the dataset that was evaluated on.
        pictures: PNG files of predictions.

    Returns:
        Whether MLflow has it now. It is False for a run that is not tracked, and when the store is
        not reached: the entries then wait in the journal, and a warning says so.
    """
    identity = read_identity(run_dir)
    if identity is None:
        return False
    journal = Journal(run_dir)
    if dataset is not None:
        journal.extend(list(inputs({"evaluation": [dataset]})))
    journal.append(metrics_entry(step, {f"evaluation/{name}": v for name, v in metrics.items()}))
    journal.extend([artifact(picture, PICTURES_FOLDER) for picture in pictures])
    courier = Courier(Delivery(journal, identity), TrackingConfig())
    return courier.close()
