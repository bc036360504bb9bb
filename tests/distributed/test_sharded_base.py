"""Every method in every stage: the same result, the base untouched, and in stage 3 never whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model.checkpoint import fingerprint, load_base
from pipeline.config import RunConfig, load
from pipeline.training.subject import build_model
from tests.support.rank_group import run_recipes
from tests.support.training_run import best_of, losses_of, run_dir_of, write_recipe

pytestmark = pytest.mark.distributed

METHODS = ("prefix", "adapter", "bitfit", "finetune")
STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, data: Path, base: Path
) -> dict[tuple[str, int], Path]:
    """The recipes of a short run of each method in each stage, on two ranks."""
    folder = tmp_path_factory.mktemp("methods")
    recipes = {
        (method, stage): write_recipe(
            folder / f"{method}-{stage}.yaml",
            base,
            data,
            tuning={"method": method, "adapter": {"dim": 4}},
            training={"max_steps": 2, "save_every_steps": None},
            engine={"zero_stage": stage, "activation_checkpointing": stage == 3},
        )
        for method in METHODS
        for stage in STAGES
    }
    run_recipes(list(recipes.values()), ranks=2)
    return recipes


def summary_of(recipe: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run_dir_of(recipe) / "summary.json").read_text())
    return summary


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_every_stage_trains_the_same(
    method: str, stage: int, trained: dict[tuple[str, int], Path]
) -> None:
    recipe, unsharded = trained[method, stage], trained[method, 0]
    ours, theirs = best_of(recipe), best_of(unsharded)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=0)
    assert losses_of(recipe) == pytest.approx(losses_of(unsharded), rel=1e-5)
    sizes = [
        {name: summary_of(one)[name] for name in ("trainable_parameters", "base_parameters")}
        for one in (recipe, unsharded)
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_trained_moves(method: str, trained: dict[tuple[str, int], Path]) -> None:
    begun = build_model(load(RunConfig, [trained[method, 3]])).trainable_state()
    moved = [
        name
        for name, last in best_of(trained[method, 3]).items()
        if last.is_floating_point() and not torch.equal(last, begun[name])
    ]
    assert len(moved) > len(begun) / 3


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("method", ["prefix", "adapter"])
def test_the_base_keeps_its_fingerprint(
    method: str, stage: int, trained: dict[tuple[str, int], Path], base: Path
) -> None:
    summary = summary_of(trained[method, stage])
    expected = fingerprint(load_base(str(base)))
    assert summary["fingerprint_before"] == summary["fingerprint_after"] == expected


@pytest.mark.parametrize("stage", STAGES)
def test_bitfit_leaves_a_base_that_differs_by_its_biases_alone(
    stage: int, trained: dict[tuple[str, int], Path], base: Path
) -> None:
    recipe = trained["bitfit", stage]
    summary, original = summary_of(recipe), load_base(str(base))
    assert summary["fingerprint_before"] == fingerprint(original)
    model = build_model(load(RunConfig, [recipe]))
    model.load_trainable_state(best_of(recipe))
    assert summary["fingerprint_after"] == fingerprint(model.base)
    untrained = model.trained_in_base()
    assert fingerprint(model.base, without=untrained) == fingerprint(original, without=untrained)


@pytest.mark.parametrize("stage", STAGES)
def test_a_fine_tuned_base_is_saved_whole(
    stage: int, trained: dict[tuple[str, int], Path], base: Path
) -> None:
    recipe = trained["finetune", stage]
    summary = summary_of(recipe)
    assert summary["fingerprint_before"] == fingerprint(load_base(str(base)))
    made = load_base(str(run_dir_of(recipe) / "best" / "base"))
    assert summary["fingerprint_after"] == fingerprint(made) != summary["fingerprint_before"]


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory, data: Path, base: Path) -> list[Path]:
    """Recipes of a whole and of a sharded base, validated by answering; the latter was watched."""
    folder = tmp_path_factory.mktemp("validated")
    recipes = [
        write_recipe(
            folder / f"{name}.yaml",
            base,
            data,
            data={"validation": [str(data)]},
            # Three answers for two ranks, one at a time: one rank has none left in the last round.
            evaluation={"batch_size": 1},
            training={
                **{"max_steps": 3, "validate_every_steps": 2, "validation_samples": 3},
                **{"save_every_steps": None, "best_metric": "vqa/accuracy"},
            },
            engine={"zero_stage": stage},
        )
        for name, stage in (("whole", 1), ("sharded", 3))
    ]
    run_recipes(recipes, ranks=2, module="tests.support.held_parameters")
    return recipes


def test_no_rank_holds_more_of_a_sharded_base_than_its_share_and_a_layer(
    validated: list[Path], base: Path
) -> None:
    # Tables are looked up by their own modules and used by others, so they stay for a whole pass.
    tables = sum(
        table.weight.numel()
        for name, table in load_base(str(base)).named_modules()
        if isinstance(table, nn.Embedding) and "rel_pos" not in name
    )
    for rank in (0, 1):
        held = json.loads((run_dir_of(validated[-1]) / f"held-{rank}.json").read_text())
        assert held["base"] / 2 <= held["share"] < held["base"] / 2 * 1.02
        assert held["loading"] == held["largest"] < held["base"] / 8
        assert held["training"] < tables + held["largest"] < held["base"] / 2


def test_a_sharded_base_is_validated_as_a_whole_one(validated: list[Path]) -> None:
    whole, sharded = (summary_of(recipe)["best_metrics"] for recipe in validated)
    assert {"validation/loss", "vqa/accuracy"} <= whole.keys()
    assert sharded == pytest.approx(whole, rel=1e-5)
