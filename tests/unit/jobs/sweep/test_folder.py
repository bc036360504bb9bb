"""What the files of a sweep say, also after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.sweep.command import main
from jobs.sweep.folder import claim, held, mark, word_of
from jobs.sweep.results import rows, write_result
from jobs.sweep.trials import Sweep, plan
from pipeline.errors import ConfigError, TrainingError
from pipeline.training.run_folder import locked
from tests.support.sweep import sweep_config


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    found = plan(sweep_config(tmp_path))
    claim(found, resume=False)
    return found


def measured(sweep: Sweep, number: int, *losses: float) -> None:
    folder = sweep.trials[number].folder
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"step": 5 * n, "validation/loss": loss} for n, loss in enumerate(losses, 1)]
    text = "".join(json.dumps(line) + "\n" for line in [{"step": 1, "train/loss": 9.0}, *lines])
    (folder / "metrics.jsonl").write_text(text + '{"step": 99, "valid')


def test_trials_stand_as_their_folders_say(sweep: Sweep) -> None:
    first, second, third = sweep.trials
    assert word_of(first) == "waiting"
    measured(sweep, 0, 3.0, float("nan"), 2.0, 2.5)
    assert word_of(first) == "interrupted"
    with locked(first.run):
        assert word_of(first) == "running"
    mark(first, "failure.json", {"exit_status": 1, "error": "no such pattern"})
    assert word_of(first) == "failed"
    measured(sweep, 1, 1.0)
    mark(second, "stopped.json", {"by": "asha"})
    assert word_of(second) == "stopped"
    (second.folder / "summary.json").write_text("{}")
    assert word_of(second) == "finished"
    found = write_result(sweep)
    assert [(row.trial, row.value, row.step) for row in found] == [
        ("trial-001", 1.0, 5),
        ("trial-000", 2.0, 15),
        ("trial-002", None, None),
    ]
    assert found[1].error == "no such pattern"
    record = json.loads((sweep.folder / "sweep.json").read_text())
    assert record["best"] == "trial-001"
    assert record["states"] == {"finished": 1, "failed": 1, "waiting": 1}
    assert third.name not in {row.trial for row in rows(sweep) if row.over}


def test_a_sweep_is_not_begun_twice(sweep: Sweep) -> None:
    with pytest.raises(ConfigError, match="--resume continues it"):
        claim(sweep, resume=False)
    claim(sweep, resume=True)
    with held(sweep), pytest.raises(TrainingError, match="another process"), held(sweep):
        pass


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"space": {"optimizer.lr": [0.1, 0.2]}}, "space.optimizer.lr = [0.1, 0.2]: the sweep in"),
        ({"metric": "validation/nll"}, 'metric = "validation/nll": the sweep in'),
        ({"concurrency": 3, "max_failures": 2, "resources": {"cpus": 1}}, None),
    ],
)
def test_a_sweep_goes_on_as_itself(
    changed: dict[str, Any], said: str | None, sweep: Sweep, tmp_path: Path
) -> None:
    other = plan(sweep_config(tmp_path, **changed))
    if said is None:
        claim(other, resume=True)
        return
    with pytest.raises(ConfigError) as refused:
        claim(other, resume=True)
    assert said in str(refused.value)


def test_a_dry_run_shows_the_trials_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep_config(tmp_path)
    assert main([f"--config={tmp_path / 'sweep.yaml'}", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "would train 3 trials" in said
    assert "trial-002" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trial=3"], "--trial=3: there are trials 0 to 2"),
        (["--trial=x"], "--trial=x: must be given once"),
        (["--trial=1", "--trial=2"], "--trial=2: must be given once"),
    ],
)
def test_a_trial_is_one_of_the_sweep(words: list[str], said: str, tmp_path: Path) -> None:
    sweep_config(tmp_path)
    with pytest.raises(ConfigError) as refused:
        main([f"--config={tmp_path / 'sweep.yaml'}", *words])
    assert said in str(refused.value)


def test_a_sweep_is_shown(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    measured(sweep, 1, 1.0)
    assert main(["show", str(sweep.folder)]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("trial-001  interrupted  1.0000")
    with pytest.raises(ConfigError, match="is not the folder of a sweep"):
        main(["show", str(sweep.folder.parent)])
