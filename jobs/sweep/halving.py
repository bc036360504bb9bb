"""Which trials have fallen behind: Ray Tune's ASHA, told of the sweep's validations.

Ray's scheduler lives as long as one process. Here each validation is written down before it is
judged; a sweep that goes on tells them all again, in the same order, and comes to the same
judgements. A trial is told to stop by a file in its folder, since Tune would only end its process.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from jobs.sweep.config import AshaConfig
from jobs.sweep.folder import STOPPED, Report, mark
from jobs.sweep.trials import Metric, Sweep, Trial
from pipeline.errors import DataError

LEDGER = "validations.jsonl"


class Halving:
    """Judges trials by their validations."""

    def __init__(self, sweep: Sweep) -> None:
        """Takes up what the sweep has judged before.

        Raises:
            DataError: the record of that is damaged.
        """
        rules = sweep.config.asha
        self._lengths = {trial.name: _steps(trial) for trial in sweep.trials}
        self._trials = {trial.name: trial for trial in sweep.trials}
        self._asha = _asha(rules, sweep.metric, max(rules.grace_steps, *self._lengths.values()))
        for trial in sweep.trials:
            self._asha.on_trial_add(None, _named(trial.name))
        self._ledger = sweep.folder / LEDGER
        self._told: dict[str, int] = {}
        for line in _whole_lines(self._ledger):
            if line["trial"] not in self._trials:
                raise DataError(f"{self._ledger}: there is no {line['trial']} in this sweep")
            self._judge(line["trial"], Report(step=line["step"], value=line["value"]))

    def told_step(self, trial: Trial) -> int:
        """The last step of a trial that was judged; -1 for none."""
        return self._told.get(trial.name, -1)

    def judge(self, name: str, report: Report) -> None:
        """Writes a validation down, and marks its trial where that has fallen behind."""
        record = {"trial": name, "step": report.step, "value": report.value}
        with self._ledger.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        self._judge(name, report)

    def _judge(self, name: str, report: Report) -> None:
        self._told[name] = max(self.told_step(self._trials[name]), report.step)
        decision = self._asha.on_trial_result(
            None, _named(name), {"step": report.step, "value": report.value}
        )
        trial = self._trials[name]
        behind = decision == TrialScheduler.STOP and report.step < self._lengths[name]
        if behind and not (trial.folder / STOPPED).exists():
            mark(trial, STOPPED, {"by": "asha", "step": report.step, "value": report.value})


def _asha(rules: AshaConfig, metric: Metric, steps: int) -> Any:
    # Its types ask for Tune's own trials and controller; of these it only reads a trial's id.
    return ASHAScheduler(
        time_attr="step",
        metric="value",
        mode=metric.mode,
        max_t=steps,
        grace_period=rules.grace_steps,
        reduction_factor=rules.reduction_factor,
        stop_last_trials=False,
    )


def _named(name: str) -> SimpleNamespace:
    # Tune's own ids are other ones after a restart.
    return SimpleNamespace(trial_id=name)


def _steps(trial: Trial) -> int:
    steps = trial.run.training.max_steps
    assert steps is not None, "checked when the sweep was planned"
    return steps


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of the ledger; what a kill cut short is taken off."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as stream:
            stream.truncate(len(whole))
    try:
        return [_checked(json.loads(line)) for line in whole.splitlines()]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({error!r}); without it, the sweep goes on and judges its trials"
            " anew"
        ) from error


def _checked(line: dict[str, Any]) -> dict[str, Any]:
    step, value = int(line["step"]), float(line["value"])
    return {"trial": str(line["trial"]), "step": step, "value": value}
