"""The recipes of the paper's baselines change what they name, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import RunConfig
from pipeline.config_reader import load
from pipeline.config_tree import plain
from pipeline.training.augmentation import AugmentationConfig

RECIPES = Path(__file__).parents[3] / "jobs" / "recipes"
PROMPT = RECIPES / "train_ofa_large_refcoco.yaml"
REGULARISED = RECIPES / "train_ofa_large_refcoco_regularised.yaml"
RANKS = 8


def baseline(method: str) -> Path:
    return RECIPES / f"train_ofa_large_refcoco_{method}.yaml"


def settings(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Values by dotted path."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        deeper = isinstance(value, dict)
        found |= settings(value, f"{path}{name}.") if deeper else {f"{path}{name}": value}
    return found


@pytest.mark.parametrize("method", ["adapter", "bitfit", "finetune"])
def test_a_baseline_changes_what_it_names(method: str) -> None:
    prompt, other = (
        settings(plain(load(RunConfig, files))) for files in ([PROMPT], [PROMPT, baseline(method)])
    )
    assert other["tuning.method"] == method
    said = settings(yaml.safe_load(baseline(method).read_text()))
    changed = {name for name in prompt if prompt[name] != other[name]}
    assert changed <= set(said)
    # What a recipe repeats of the defaults, it repeats to be read.
    assert {"name", "tuning.method", "optimizer.lr"} <= changed
    assert all(other[name] == value for name, value in said.items())


def test_the_regularised_recipe_adds_to_the_prompts() -> None:
    plain_run, regularised = (load(RunConfig, files) for files in ([PROMPT], [PROMPT, REGULARISED]))
    said = settings(yaml.safe_load(REGULARISED.read_text()))
    before, after = settings(plain(plain_run)), settings(plain(regularised))
    assert {name for name in after if before[name] != after[name]} == set(said)
    for run in (plain_run, regularised):
        assert run.training.batch_size_per_rank * run.training.gradient_accumulation == 128


@pytest.mark.parametrize(("name", "constrained"), [("vqav2", "vqa"), ("snli_ve", "entailment")])
def test_another_task_changes_what_it_names(name: str, constrained: str) -> None:
    recipe = RECIPES / f"train_ofa_large_{name}.yaml"
    before, after = (
        settings(plain(load(RunConfig, files))) for files in ([PROMPT], [PROMPT, recipe])
    )
    said = settings(yaml.safe_load(recipe.read_text()))
    assert {path for path in after if before[path] != after[path]} <= set(said)
    assert all(after[path] == value for path, value in said.items())
    assert after["training.constrain_loss"] == after["data.tasks"] == [constrained]
    # The published recipes resize, and nothing else.
    assert load(RunConfig, [PROMPT, recipe]).data.augmentation == AugmentationConfig()


@pytest.mark.parametrize(
    ("method", "batch"), [(None, 1024), ("adapter", 1024), ("bitfit", 1024), ("finetune", 128)]
)
def test_the_global_batch_is_the_published_one(method: str | None, batch: int) -> None:
    files = [PROMPT] if method is None else [PROMPT, baseline(method)]
    config = load(RunConfig, files)
    assert config.engine.processes == RANKS
    training = config.training
    assert training.batch_size_per_rank * training.gradient_accumulation * RANKS == batch
