"""Every engine and every way to shard trains the same, on the same two ranks one after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.rank_group import run_recipes
from tests.support.training_run import best_of, losses_of, records_of, write_recipe

pytestmark = pytest.mark.distributed

# All that an engine can do to a gradient, and so little a norm that it is clipped at every step.
EVERYTHING: dict[str, Any] = {
    "training": {
        **{"max_steps": 3, "batch_size_per_rank": 1, "gradient_accumulation": 2},
        **{"ema_decay": 0.5, "save_every_steps": None},
    },
    "optimizer": {
        **{"lr": 0.01, "clip_norm": 0.05},
        "groups": [{"match": "decoder.*", "lr_scale": 0.1}],
    },
}
ENGINES: dict[str, dict[str, Any]] = {
    "stage-0": {"zero_stage": 0},
    "torch": {"zero_stage": 0, "backend": "torch"},
    "stage-1": {"zero_stage": 1},
    "stage-1-offload": {"zero_stage": 1, "offload_optimizer": "cpu"},
    "stage-2": {"zero_stage": 2},
    "stage-2-offload": {"zero_stage": 2, "offload_optimizer": "cpu"},
    "stage-3": {"zero_stage": 3},
    "stage-3-offload": {
        **{"zero_stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"}
    },
    "stage-3-parameters": {"zero_stage": 3, "offload_parameters": "cpu"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path, base: Path) -> dict[str, Path]:
    """The recipes of one run for each engine, on two ranks."""
    folder = tmp_path_factory.mktemp("engines")
    recipes = {
        name: write_recipe(folder / f"{name}.yaml", base, data, engine=engine, **EVERYTHING)
        for name, engine in ENGINES.items()
    }
    run_recipes(list(recipes.values()), ranks=2)
    return recipes


def assert_same_bits(ours: Path, theirs: Path) -> None:
    assert losses_of(ours) == losses_of(theirs)
    mine, other = best_of(ours), best_of(theirs)
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_torch_alone_gives_the_bits_of_stage_0(trained: dict[str, Path]) -> None:
    assert_same_bits(trained["torch"], trained["stage-0"])


def test_torch_alone_gives_the_bits_of_stage_0_on_one_rank(
    base: Path, data: Path, tmp_path: Path
) -> None:
    recipes = [
        write_recipe(
            tmp_path / f"{name}.yaml",
            base,
            data,
            engine={**ENGINES[name], "processes": 1},
            **EVERYTHING,
        )
        for name in ("torch", "stage-0")
    ]
    run_recipes(recipes, ranks=1)
    assert_same_bits(*recipes)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name.startswith("stage-")])
def test_sharding_and_offloading_change_no_more_than_rounding(
    engine: str, trained: dict[str, Path]
) -> None:
    # DeepSpeed sums gradients and the squares of their norm in an order of its own in each.
    ours, theirs = best_of(trained[engine]), best_of(trained["torch"])
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)
    assert losses_of(trained[engine]) == pytest.approx(losses_of(trained["torch"]), rel=1e-6)


def test_gradients_were_clipped(trained: dict[str, Path]) -> None:
    norms = {
        name: [record["train/grad_norm"] for record in records_of(trained[name])]
        for name in ("torch", "stage-1", "stage-3-offload")
    }
    assert max(norms["torch"]) > 0.06
    assert norms["stage-1"] == pytest.approx(norms["torch"], rel=1e-5)
    assert norms["stage-3-offload"] == pytest.approx(norms["torch"], rel=1e-5)


def test_offloaded_parameters_give_the_same_bits(trained: dict[str, Path]) -> None:
    assert_same_bits(trained["stage-3-parameters"], trained["stage-3"])
