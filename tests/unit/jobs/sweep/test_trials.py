"""What a sweep makes of its space: the same trials everywhere, or one line that says why not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from jobs.sweep.space import points
from jobs.sweep.trials import plan, resolved
from pipeline.errors import ConfigError
from tests.support.sweep import sweep_config

RANDOM: dict[str, Any] = {
    "search": "random",
    "samples": 40,
    "space": {
        "optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True},
        "tuning.prefix.length": {"low": 2, "high": 9, "int": True},
        "training.dropout": {"low": 0.0, "high": 0.5},
        "seed": [1, 2],
    },
}


def test_a_grid_has_every_combination_in_order(tmp_path: Path) -> None:
    space = {"optimizer.lr": [0.1, 0.2], "tuning.prefix.length": [4, 8]}
    sweep = plan(sweep_config(tmp_path, space=space))
    assert [trial.name for trial in sweep.trials] == [f"trial-00{n}" for n in range(4)]
    found = [(each.run.optimizer.lr, each.run.tuning.prefix.length) for each in sweep.trials]
    assert found == [(0.1, 4), (0.1, 8), (0.2, 4), (0.2, 8)]
    for trial in sweep.trials:
        assert trial.folder == tmp_path / "runs" / "lr" / trial.name
        assert trial.run.tracking.parent_run == "lr"
        # The store of all runs, not one for each sweep.
        assert trial.run.tracking.uri == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_random_points_keep_to_their_ranges_and_are_the_same_again(tmp_path: Path) -> None:
    config = sweep_config(tmp_path, **RANDOM)
    found = points(config)
    assert found == points(sweep_config(tmp_path, **RANDOM))
    assert found != points(sweep_config(tmp_path, **RANDOM, seed=1))
    assert len({repr(point) for point in found}) == 40
    rates = [point["optimizer.lr"] for point in found]
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)
    # Evenly over the logarithm: about half of them in the lower half of it.
    assert 10 <= sum(math.log10(rate) < -2.5 for rate in rates) <= 30
    assert {point["tuning.prefix.length"] for point in found} == set(range(2, 10))
    assert plan(config).trials[7].run.optimizer.lr == rates[7]


def test_a_sweep_keeps_its_recipe_inside(tmp_path: Path) -> None:
    recipe = tmp_path / "train.yaml"
    recipe.write_text("name: ours\noptimizer: {lr: 0.5}\ntuning: {prefix: {length: 3}}\n")
    space = {"seed": [1, 2]}
    sweep = plan(sweep_config(tmp_path, recipe=str(recipe), space=space))
    recipe.write_text("name: theirs\n")
    again = plan(sweep.config)
    assert again.trials == sweep.trials
    assert again.trials[0].run.optimizer.lr == 0.5
    assert resolved(again.config)[0] == sweep.config


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"space": {"optimizer.lrr": [0.1]}}, "optimizer.lrr = 0.1: no such setting"),
        ({"space": {"optimizer.lr": ["fast"]}}, "optimizer.lr = 'fast': must be a number"),
        ({"space": {"optimizer.lr": [0.1, 0.1]}}, "space.optimizer.lr = [0.1, 0.1]"),
        ({"space": {"optimizer.lr": []}}, "space.optimizer.lr = []"),
        ({"space": {"optimizer.lr": 0.1}}, "space.optimizer.lr = 0.1: must be a list"),
        ({"space": {}}, "space = {}"),
        ({"space": {"engine.backend": ["torch"]}}, "trial-000 cannot be trained: engine"),
        ({"space": {"tracking.uri": ["x"]}}, "space.tracking.uri: is set by the sweep"),
        ({"space": {"name": ["x"]}}, "space.name: is set by the sweep"),
        ({"space": {"optimizer": [{"lr": 1.0}], "optimizer.lr": [1.0]}}, "space.optimizer.lr"),
        ({"space": {"optimizer.lr": {"low": 1, "high": 2}}}, "needs search = random"),
        ({**RANDOM, "samples": None}, "samples = None: search = random needs"),
        ({**RANDOM, "space": {"seed": [1, 2]}}, "no more than 2 points"),
        (
            {**RANDOM, "space": {"optimizer.lr": {"low": 0, "high": 2, "log": True}}},
            "space.optimizer.lr.low = 0.0: must be above 0",
        ),
        ({**RANDOM, "space": {"seed": {"low": 1.5, "high": 2, "int": True}}}, "space.seed.low"),
        ({"samples": 3}, "samples = 3: belongs to search = random"),
        ({"scheduler": "asha"}, "training.max_steps = null: scheduler = asha"),
        ({"asha": {"grace_steps": 3}}, "asha: belongs to scheduler = asha"),
        ({"metric": "vqa/accuracy"}, "metric = 'vqa/accuracy': trial-000 would not measure it"),
        ({"metric": "validation/los"}, "metric = 'validation/los': must be one of"),
        ({"settings": {"data": {"train": ["x"]}}}, "data.validation = []"),
        ({"settings": {"tracking": {"parent_run": "x"}}}, "settings.tracking.parent_run = 'x'"),
        ({"settings": {"tracking": {"uri": "http://a:secret@b"}}}, "hold a password"),
        ({"name": "a/b"}, "name = 'a/b'"),
        ({"concurrency": 0}, "concurrency = 0"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        plan(sweep_config(tmp_path, **settings))
    assert said in str(refused.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("settings", "training", "metric"),
    [
        ({}, {}, ("validation/loss", "min")),
        ({}, {"best_metric": "grounding/acc_at_0.5"}, ("grounding/acc_at_0.5", "max")),
        ({}, {"answer_tasks": ["vqa"]}, ("vqa/accuracy", "max")),
        ({"mode": "min"}, {"answer_tasks": ["vqa"]}, ("vqa/accuracy", "min")),
        ({"metric": "validation/nll"}, {"answer_tasks": ["vqa"]}, ("validation/nll", "min")),
        (
            {},
            {"best_metric": "grounding/acc_at_0.5", "best_direction": "smaller"},
            ("grounding/acc_at_0.5", "min"),
        ),
    ],
)
def test_trials_are_compared_by_what_the_run_is_judged_by(
    settings: dict[str, Any],
    training: dict[str, Any],
    metric: tuple[str, str],
    tmp_path: Path,
) -> None:
    data = {"train": [str(tmp_path / "data")], "validation": [str(tmp_path / "data")]}
    base = {"data": data, "training": training}
    found = plan(sweep_config(tmp_path, **settings, settings=base)).metric
    assert (found.name, found.mode) == metric


def test_the_cores_of_a_trial_are_those_of_its_threads(tmp_path: Path) -> None:
    space = {"engine.processes": [1, 2]}
    one, two = plan(sweep_config(tmp_path, space=space)).trials
    assert (one.cpus, two.cpus) == (1, 2)
    one, two = plan(sweep_config(tmp_path, space=space, resources={"cpus": 4})).trials
    assert (one.run.engine.threads_per_process, two.run.engine.threads_per_process) == (4, 2)
