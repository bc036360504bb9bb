"""ASHA's judgements outlive the process that made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.sweep.folder import Report
from jobs.sweep.halving import LEDGER, Halving
from jobs.sweep.trials import Sweep, plan
from pipeline.errors import DataError
from tests.support.sweep import sweep_config

STORY = [
    ("trial-000", 10, 0.5),
    ("trial-001", 10, 0.4),
    ("trial-000", 20, 0.45),
    ("trial-002", 10, 0.6),
    ("trial-001", 20, 0.3),
    ("trial-000", 40, 0.4),
    ("trial-001", 40, 0.35),
]


def asha(folder: Path) -> Sweep:
    training = {"max_steps": 40, "validate_every_steps": 10}
    data = {"train": [str(folder / "data")], "validation": [str(folder / "data")]}
    settings: dict[str, Any] = {"output_dir": str(folder / "runs"), "training": training}
    config = sweep_config(
        folder,
        settings={**settings, "data": data},
        scheduler="asha",
        asha={"grace_steps": 10, "reduction_factor": 2},
    )
    sweep = plan(config)
    sweep.folder.mkdir(parents=True, exist_ok=True)
    return sweep


def stopped(sweep: Sweep) -> list[str]:
    return [trial.name for trial in sweep.trials if (trial.folder / "stopped.json").exists()]


def test_the_worse_half_stops_at_a_rung(tmp_path: Path) -> None:
    sweep = asha(tmp_path)
    halving = Halving(sweep)
    for name, step, value in STORY[:4]:
        halving.judge(name, Report(step=step, value=value))
    # The first that comes to a rung has nobody to be behind.
    assert stopped(sweep) == ["trial-002"]


def test_a_trial_at_its_last_step_is_not_stopped(tmp_path: Path) -> None:
    sweep = asha(tmp_path)
    halving = Halving(sweep)
    halving.judge("trial-000", Report(step=40, value=0.1))
    halving.judge("trial-001", Report(step=40, value=0.9))
    assert stopped(sweep) == []


def test_a_sweep_that_goes_on_judges_as_one_that_was_never_killed(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    undisturbed = asha(tmp_path / "one")
    halving = Halving(undisturbed)
    for name, step, value in STORY:
        halving.judge(name, Report(step=step, value=value))
    for killed_after in range(len(STORY)):
        folder = tmp_path / f"killed-{killed_after}"
        folder.mkdir()
        sweep = asha(folder)
        for part in (STORY[:killed_after], STORY[killed_after:]):
            halving = Halving(sweep)
            for name, step, value in part:
                halving.judge(name, Report(step=step, value=value))
            # What a kill cuts short was not judged.
            with (sweep.folder / LEDGER).open("a") as ledger:
                ledger.write('{"trial": "trial-0')
        again = Halving(sweep)
        assert stopped(sweep) == stopped(undisturbed)
        assert [again.told_step(trial) for trial in sweep.trials] == [40, 40, 10]
        whole = (undisturbed.folder / LEDGER).read_text()
        assert (sweep.folder / LEDGER).read_text() == whole


def test_a_judgement_that_was_not_carried_out_is_carried_out_later(tmp_path: Path) -> None:
    sweep = asha(tmp_path)
    halving = Halving(sweep)
    for name, step, value in STORY[:4]:
        halving.judge(name, Report(step=step, value=value))
    (sweep.trials[2].folder / "stopped.json").unlink()
    Halving(sweep)
    assert stopped(sweep) == ["trial-002"]


@pytest.mark.parametrize(
    "line", ["garbage", '{"step": 1}', "[]", '{"trial": "x", "step": 1, "value": 1}']
)
def test_a_damaged_record_is_one_line(line: str, tmp_path: Path) -> None:
    sweep = asha(tmp_path)
    (sweep.folder / LEDGER).write_text(line + "\n")
    with pytest.raises(DataError, match=LEDGER):
        Halving(sweep)
