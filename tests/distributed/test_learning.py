"""What decides how a run learns: tokens that count, rates by group, averages, patience."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import RunConfig, load
from pipeline.training.inputs import open_inputs
from pipeline.training.subject import build_model
from pipeline.training.world import World
from tests.support.training_run import (
    assert_same,
    best_of,
    finish,
    losses_of,
    records_of,
    run,
    run_dir_of,
    start,
    wait_for_step,
    write_recipe,
)

pytestmark = pytest.mark.distributed


def test_two_ranks_agree_on_the_tokens_that_count(base: Path, data: Path, tmp_path: Path) -> None:
    # So little dropout drops nothing, and equal passes diverge by nothing: only the tokens double.
    training = {"max_steps": 2, "dropout": 1e-12}
    found = {}
    for name, more in (("once", {}), ("twice", {"r_drop_alpha": 4.0})):
        recipe = write_recipe(tmp_path / f"{name}.yaml", base, data, training=training | more)
        status, said = run(recipe)
        assert status == 0, said
        found[name] = records_of(recipe)
    for once, twice in zip(found["once"], found["twice"], strict=True):
        for metric in ("train/loss", "train/nll", "train/grad_norm"):
            assert twice[metric] == pytest.approx(once[metric], rel=1e-3)


@pytest.mark.parametrize("stage", [1, 3])
def test_a_group_learns_at_its_own_rate(stage: int, base: Path, data: Path, tmp_path: Path) -> None:
    # So little that only the encoder's prompt learns; also a run that is continued does so.
    groups = [{"match": "decoder.*", "lr_scale": 1e-9}]
    recipe = write_recipe(
        tmp_path / "run.yaml",
        base,
        data,
        engine={"zero_stage": stage},
        optimizer={"groups": groups, "weight_decay": 0.0},
    )
    process = start(recipe)
    wait_for_step(run_dir_of(recipe), 2, process)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 75
    status, said = run(recipe, "--resume")
    assert status == 0, said
    begun = build_model(load(RunConfig, [recipe])).trainable_state()
    moved = {
        name: float((last - begun[name]).abs().max()) for name, last in best_of(recipe).items()
    }
    assert moved["decoder.embedding.weight"] < 1e-6
    assert moved["encoder.embedding.weight"] > 1e-3


@pytest.mark.parametrize("stage", [1, 3])
def test_a_run_with_averages_resumes_to_the_same_bits(
    stage: int, undisturbed: Path, base: Path, data: Path, tmp_path: Path
) -> None:
    settings = {"engine": {"zero_stage": stage}, "training": {"ema_decay": 0.5}}
    whole = write_recipe(tmp_path / "whole.yaml", base, data, **settings)
    status, said = run(whole)
    assert status == 0, said
    resumed = write_recipe(tmp_path / "resumed.yaml", base, data, **settings)
    process = start(resumed)
    wait_for_step(run_dir_of(resumed), 2, process)
    process.send_signal(signal.SIGTERM)
    status, said = finish(process)
    assert status == 75, said
    status, said = run(resumed, "--resume")
    assert status == 0, said
    assert_same(resumed, whole)
    # The loop is the same with averages; what is kept as the best is not its last step.
    for step, loss in losses_of(undisturbed).items():
        assert losses_of(whole)[step] == pytest.approx(loss, rel=1e-3)
    last, averaged = best_of(undisturbed), best_of(whole)
    assert any(not torch.allclose(averaged[name], last[name], atol=1e-3) for name in last)
    latest = run_dir_of(whole) / "checkpoints" / "step-000006"
    held = load_file(latest / "tensors.safetensors")
    assert all(torch.equal(held[f"average/method.{n}"], averaged[n]) for n in averaged)


def test_the_best_of_a_run_with_averages_is_what_was_measured(
    base: Path, data: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "run.yaml",
        base,
        data,
        data={"validation": [str(data)]},
        training={"ema_decay": 0.9, "validation_samples": 3, "validate_every_steps": 2},
        engine={"processes": 1},
    )
    status, said = run(recipe)
    assert status == 0, said
    config = load(RunConfig, [recipe])
    measured = json.loads((run_dir_of(recipe) / "best" / "state.json").read_text())["metrics"]
    model = build_model(config)
    alone = World(rank=0, size=1, device=torch.device("cpu"))
    with contextlib.ExitStack() as stack:
        validator = open_inputs(config, model.base.config, alone, stack).validator
        assert validator is not None
        untrained = validator.measure(model)
        model.load_trainable_state(best_of(recipe))
        again = validator.measure(model)
    assert again == pytest.approx(measured, rel=1e-5)
    assert untrained["validation/loss"] > again["validation/loss"] + 0.01


def test_patience_ends_a_run_and_its_resumption(base: Path, data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "run.yaml",
        base,
        data,
        data={"validation": [str(data)]},
        training={
            **{"max_steps": 50, "validate_every_steps": 2, "validation_samples": 2},
            # Nothing is ever so much better.
            **{"patience": 2, "min_delta": 100.0, "save_every_steps": None},
        },
    )
    status, said = run(recipe)
    assert status == 0, said
    assert "ends at step 6: no better validation/loss in 2 validations" in said
    summary = run_dir_of(recipe) / "summary.json"
    first = json.loads(summary.read_text())
    assert (first["final_step"], first["stopped_early"]) == (6, True)
    kept = best_of(recipe)
    status, said = run(recipe, "--resume")
    assert status == 0, said
    assert json.loads(summary.read_text())["final_step"] == 6
    assert all(torch.equal(tensor, kept[name]) for name, tensor in best_of(recipe).items())
