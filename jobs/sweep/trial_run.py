"""Running one trial: `prefixworks train` in processes of its own, followed by what it writes.

The trial is continued from its newest checkpoint, if it has one. It is asked to save and stop when
the sweep is, or when it has fallen behind; both are files, so that they reach every node.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from jobs.sweep.folder import FAILURE, STOPPED, Report, mark, reports, word_of
from jobs.sweep.trials import Metric, Trial
from pipeline.config_reader import save
from pipeline.errors import EXIT_INTERRUPTED, TrainingError
from pipeline.training.run_lock import in_use
from pipeline.training.signals import follow_parent

RECIPE = "trial.yaml"
LOG = "train.log"
_LOOK_EVERY_S = 0.2
_LONGEST_SAVE_S = 600.0
"""Time that an earlier process of the trial may take to save and end."""

# The trial starts ranks of its own, whoever started the process that runs it.
_RANK_VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)
_ROOT = Path(__file__).resolve().parents[2]


class TrialRun:
    """A trial that is being trained."""

    def __init__(
        self, trial: Trial, metric: Metric, told_step: int = -1, asked: Path | None = None
    ) -> None:
        """Starts it.

        Args:
            trial: The trial; one that is finished or stopped is not started.
            metric: What its validations are reported of.
            asked: File that is there once the whole sweep is asked to stop.
            told_step: The last step whose validation was reported before.

        Raises:
            TrainingError: another process is training it, and does not end.
        """
        self._trial, self._metric, self._told = trial, metric, told_step
        self._stop_files = [trial.folder / STOPPED, *([] if asked is None else [asked])]
        self._asked = False
        self._process: subprocess.Popen[bytes] | None = None
        _wait_until_free(trial)
        if word_of(trial) in ("finished", "stopped") or self._unwanted():
            return
        trial.folder.mkdir(parents=True, exist_ok=True)
        (trial.folder / FAILURE).unlink(missing_ok=True)
        save(trial.run, trial.folder / RECIPE)
        log = trial.folder / LOG
        self._log_start = log.stat().st_size if log.exists() else 0
        recipe = f"--config={trial.folder / RECIPE}"
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jobs.train", recipe, "--resume"],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=_environment(),
                preexec_fn=follow_parent,
            )

    def next_report(self) -> Report | None:
        """Waits for a validation that was not reported yet; None once the trial has ended.

        Raises:
            TrainingError: it broke; the message says how, and the trial's log says more.
        """
        while True:
            status = 0 if self._process is None else self._process.poll()
            fresh = [each for each in reports(self._trial, self._metric) if each.step > self._told]
            if fresh:
                self._told = fresh[0].step
                return fresh[0]
            if status is not None:
                self._check(status)
                return None
            if not self._asked and self._unwanted():
                self.ask_to_stop()
            time.sleep(_LOOK_EVERY_S)

    def ask_to_stop(self) -> None:
        """Asks the trial to save and stop; next_report says when it has."""
        self._asked = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def _unwanted(self) -> bool:
        return any(file.exists() for file in self._stop_files)

    def _check(self, status: int) -> None:
        # Whoever preempts a machine may tell each process on it, and not only the one above.
        if status in (0, EXIT_INTERRUPTED, -signal.SIGTERM, -signal.SIGUSR1):
            return
        said = self._last_words() or f"exit status {status}"
        mark(self._trial, FAILURE, {"exit_status": status, "error": said})
        raise TrainingError(
            f"{self._trial.name} ({self._trial.said}): {said}; more in {self._trial.folder / LOG}"
        )

    def _last_words(self) -> str:
        with (self._trial.folder / LOG).open("rb") as stream:
            stream.seek(self._log_start)
            lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines()]
        errors = [line for line in lines if line.startswith("error: ")]
        last = errors or [line for line in lines if line]
        return last[-1].removeprefix("error: ") if last else ""


def _wait_until_free(trial: Trial) -> None:
    until = time.monotonic() + _LONGEST_SAVE_S
    while in_use(trial.folder):
        if time.monotonic() > until:
            raise TrainingError(f"{trial.name}: another process is training in {trial.folder}")
        time.sleep(_LOOK_EVERY_S)


def _environment() -> dict[str, str]:
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: value for name, value in os.environ.items() if name not in _RANK_VARIABLES}
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)}
