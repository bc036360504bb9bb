"""Going on elsewhere: with other ranks, in another ZeRO stage, and, by force, on another base."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from jobs.train import main
from model.checkpoint import TOKENIZER_FILE, fingerprint, load_base, save_base
from pipeline.errors import ConfigError
from pipeline.training.checkpoint import read_state
from tests.support.training_run import best_of, losses_of, run, run_dir_of, write_recipe

pytestmark = pytest.mark.distributed

LOSS_BOUND = 1e-5
"""Largest relative difference of a step's loss without dropout; docs/reference/checkpoints.md."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, base: Path, data: Path) -> Path:
    """The recipe of a run without dropout: two ranks, stage 1, steps of four samples."""
    recipe = write_recipe(
        tmp_path_factory.mktemp("whole") / "run.yaml",
        base,
        data,
        training={"dropout": 0.0, "keep_last": 9, "ema_decay": 0.5},
    )
    status, said = run(recipe)
    assert status == 0, said
    return recipe


def copied(recipe: Path, folder: Path) -> Path:
    """A copy of a run, to be continued in another way."""
    shutil.copytree(recipe.parent / "runs", folder / "runs")
    text = recipe.read_text().replace(str(recipe.parent), str(folder))
    target = folder / recipe.name
    target.write_text(text)
    return target


def test_other_ranks_and_another_stage_go_on_along_the_same_curve(
    whole: Path, tmp_path: Path
) -> None:
    recipe = copied(whole, tmp_path / "there")
    status, said = run(
        recipe,
        "--resume=step-000002",
        "--engine.processes=1",
        "--engine.zero_stage=0",
        "--training.gradient_accumulation=2",
    )
    assert status == 0, said
    assert_same_curve(recipe, whole)
    # And back to two ranks, in yet another stage.
    back = copied(recipe, tmp_path / "back")
    status, said = run(back, "--resume=step-000004", "--engine.zero_stage=3")
    assert status == 0, said
    assert_same_curve(back, whole)


def assert_same_curve(recipe: Path, whole: Path) -> None:
    ours, theirs = losses_of(recipe), losses_of(whole)
    assert ours.keys() == theirs.keys() == set(range(1, 7))
    assert all(ours[step] == theirs[step] for step in (1, 2))
    for step in (3, 4, 5, 6):
        assert ours[step] == pytest.approx(theirs[step], rel=LOSS_BOUND)
    trained = best_of(whole)
    for name, tensor in best_of(recipe).items():
        torch.testing.assert_close(tensor, trained[name], atol=1e-4, rtol=0)


def test_another_base_is_refused_by_name_and_forced_with_a_warning(
    whole: Path, base: Path, tmp_path: Path
) -> None:
    other = load_base(str(base))
    with torch.no_grad():
        other.encoder.layers[0].fc1.weight.mul_(1.5)
    save_base(other, base / TOKENIZER_FILE, tmp_path / "other")
    recipe = copied(whole, tmp_path)
    settings = (
        "--resume=step-000004",
        f"--base.path={tmp_path / 'other'}",
        "--engine.processes=1",
        "--training.gradient_accumulation=2",
    )
    status, said = run(recipe, *settings)
    assert status == 2, said
    assert "step-000004 cannot be continued like this: the base sha256:" in said
    assert "Traceback" not in said
    status, said = run(recipe, *settings, "--force", "--optimizer.lr=0.02")
    assert status == 0, said
    warnings = [line for line in said.splitlines() if line.startswith("--force continues")]
    assert len(warnings) == 2, said
    assert "--force continues step-000004 in spite of: optimizer.lr 0.01 -> 0.02" in warnings
    assert any("the base sha256:" in line for line in warnings)
    assert losses_of(recipe)[6] != losses_of(whole)[6]
    # What it has become carries the base that it was trained on last.
    latest = run_dir_of(recipe) / "checkpoints" / "step-000006"
    assert read_state(latest).base_fingerprint == fingerprint(other)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--force",), "--force: belongs to --resume"),
        (("--resume=",), "names no checkpoint"),
        (("--resume", "--resume=step-000002"), "--resume is given twice"),
        (("--resume=step-000003",), "it has step-000002, step-000004, step-000006"),
        (("--resume", "--engine.processes=4"), "4 ranks need training.batch_size_per_rank=1"),
    ],
)
def test_what_cannot_be_continued_is_said_before_any_rank_starts(
    arguments: tuple[str, ...], words: str, whole: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        main([f"--config={whole}", *arguments])
