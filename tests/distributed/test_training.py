"""Training with two real DeepSpeed ranks: what is learnt, killed, stopped, resumed and refused."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from model.checkpoint import fingerprint, load_base
from model.tuning import TunedModel
from pipeline.config import RunConfig, load
from pipeline.errors import TrainingError
from pipeline.training import trainer
from pipeline.training.checkpoint import read_checkpoint
from pipeline.training.checkpoint_folder import checkpoints_in
from pipeline.training.data import ShardReader
from tests.support.small_world import prepared_world
from tests.support.training_run import (
    assert_same,
    best_of,
    finish,
    losses_of,
    ranks_of,
    run,
    run_dir_of,
    start,
    wait_for_step,
    write_recipe,
)

pytestmark = pytest.mark.distributed

PRETRAIN = {
    "base": {"random_init": True},
    "tuning": {"method": "finetune", "train_batch_norm": True},
    "engine": {"precision": "bf16"},
    "training": {"max_steps": 4},
}


def validated(data: Path) -> tuple[str, ...]:
    """Settings of the runs that also show that validation disturbs nothing."""
    return (
        f"--data.validation=[{data}]",
        "--training.validation_samples=3",
        "--training.best_metric=vqa/accuracy",
    )


@pytest.fixture(scope="module")
def at_stage(
    tmp_path_factory: pytest.TempPathFactory, undisturbed: Path, base: Path, data: Path
) -> Callable[[int], Path]:
    """The recipe of an undisturbed run of a ZeRO stage; trained when it is first asked for."""
    recipes = {1: undisturbed}

    def trained(stage: int) -> Path:
        if stage not in recipes:
            folder = tmp_path_factory.mktemp(f"stage{stage}")
            recipe = write_recipe(folder / "run.yaml", base, data, engine={"zero_stage": stage})
            status, said = run(recipe, *validated(data))
            assert status == 0, said
            recipes[stage] = recipe
        return recipes[stage]

    return trained


def test_two_ranks_train_prompts_and_leave_the_base_alone(
    undisturbed: Path, base: Path, data: Path, tmp_path: Path
) -> None:
    untrained = write_recipe(tmp_path / "untrained.yaml", base, data, training={"max_steps": 1})
    assert run(untrained, "--optimizer.lr=1e-12")[0] == 0
    trained, start_values = best_of(undisturbed), best_of(untrained)
    assert any(not torch.allclose(trained[n], start_values[n], atol=1e-4) for n in trained)
    latest = run_dir_of(undisturbed) / "checkpoints" / "step-000006"
    state = json.loads((latest / "state.json").read_text())
    assert state["base_fingerprint"] == fingerprint(load_base(str(base)))
    assert state["ranks"] == 2
    # The prompts of two stacks, each with two means, and nothing of the frozen base.
    held = load_file(latest / "tensors.safetensors")
    kinds = ("parameter", "exp_avg", "exp_avg_sq", "step")
    named = {f"{kind}/method.{name}" for kind in kinds for name in trained}
    assert held.keys() == named | {"engine/steps"}
    held_values = sum(tensor.numel() for tensor in held.values())
    assert held_values == 1 + sum(3 * tensor.numel() + 1 for tensor in trained.values())


def test_only_the_last_checkpoints_stay(undisturbed: Path) -> None:
    folder = run_dir_of(undisturbed) / "checkpoints"
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-000004", "step-000006"]
    assert (folder / "latest").read_text().strip() == "step-000006"


def kill_at(step: int, recipe: Path, settings: Sequence[str], *, while_saving: bool) -> None:
    """Begins a run and kills one rank, or while a checkpoint is written all of them."""
    while True:
        process = start(recipe, *settings)
        wait_for_step(run_dir_of(recipe), step, process)
        while while_saving and process.poll() is None:
            if list((run_dir_of(recipe) / "checkpoints").glob(".partial-*")):
                break
            time.sleep(0.001)
        with contextlib.suppress(psutil.NoSuchProcess):
            for rank in ranks_of(process)[: 2 if while_saving else 1]:
                rank.kill()
        status, said = finish(process)
        if status != 0:
            assert status == 1, said
            return
        # On a busy machine the run was over before this process had its turn.
        shutil.rmtree(run_dir_of(recipe))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_killed_run_resumes_to_the_same_bits(
    stage: int, at_stage: Callable[[int], Path], base: Path, data: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "run.yaml",
        base,
        data,
        engine={"zero_stage": stage},
        training={"save_every_steps": 1, "keep_last": 9},
    )
    settings = validated(data) if stage > 1 else ()
    step = random.Random(stage).randint(1, 3)
    kill_at(step, recipe, settings, while_saving=stage == 2)
    for place in checkpoints_in(run_dir_of(recipe) / "checkpoints"):
        read_checkpoint(place)
    status, said = run(recipe, "--resume", *settings)
    assert status == 0, said
    assert_same(recipe, at_stage(stage))


def test_a_run_that_is_asked_to_stop_saves_and_resumes(
    undisturbed: Path, base: Path, data: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "run.yaml", base, data)
    process = start(recipe)
    wait_for_step(run_dir_of(recipe), 2, process)
    process.send_signal(signal.SIGTERM)
    status, said = finish(process)
    assert status == 75, said
    assert "--resume continues" in said
    status, said = run(recipe, "--resume")
    assert status == 0, said
    assert_same(recipe, undisturbed)


def test_a_corrupt_shard_is_named(base: Path, tmp_path: Path) -> None:
    data = prepared_world(tmp_path / "data", scenes=2)
    shard = sorted(data.glob("shard-*.tar"))[0]
    shard.write_bytes(bytes(shard.stat().st_size))
    recipe = write_recipe(tmp_path / "run.yaml", base, data)
    began = time.monotonic()
    status, said = run(recipe)
    assert status == 1, said
    assert time.monotonic() - began < 90
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert any(shard.name in line and "corrupt" in line for line in lines), said
    assert "Traceback" not in said


def test_a_second_run_of_the_name_is_refused(undisturbed: Path) -> None:
    status, said = run(undisturbed)
    assert status == 2
    assert "--resume continues it" in said


def test_another_recipe_does_not_resume(undisturbed: Path) -> None:
    status, said = run(undisturbed, "--resume", "--optimizer.lr=0.02")
    assert status == 2
    assert "optimizer.lr 0.01 -> 0.02" in said
    assert "--resume --force" in said


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_train_the_same_prompts(
    checkpointing: bool, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels, found = tmp_path / "kernels", {}
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(kernels))
    for name, compiled in (("eager", False), ("compiled", True)):
        engine = {
            "processes": 1,
            "threads_per_process": 2,
            "compile": compiled,
            "activation_checkpointing": checkpointing,
        }
        recipe = write_recipe(
            tmp_path / f"{name}.yaml", base, data, engine=engine, training={"max_steps": 3}
        )
        settings = ("--training.dropout=0", "--training.batch_size_per_rank=4")
        status, said = finish(start(recipe, *settings), timeout_s=280)
        assert status == 0, said
        assert any(kernels.rglob("*.so")) == compiled
        found[name] = best_of(recipe), losses_of(recipe)
    (ours, our_losses), (theirs, their_losses) = found["compiled"], found["eager"]
    assert our_losses == pytest.approx(their_losses, abs=1e-4)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, data: Path, base: Path) -> Path:
    """The recipe of a pretraining run from random weights that nothing happened to."""
    recipe = write_recipe(
        tmp_path_factory.mktemp("pretrained") / "run.yaml", base, data, **PRETRAIN
    )
    status, said = run(recipe)
    assert status == 0, said
    return recipe


def test_pretraining_gives_a_base(pretrained: Path, base: Path) -> None:
    made = load_base(str(run_dir_of(pretrained) / "best" / "base"))
    assert fingerprint(made) != fingerprint(load_base(str(base)))
    trained = best_of(pretrained)
    norm = "encoder.embed_images.bn1.running_mean"
    assert trained[norm].abs().max() > 0
    assert torch.equal(made.state_dict()[norm], trained[norm])


def test_interrupted_pretraining_resumes_to_the_same_bits(
    pretrained: Path, base: Path, data: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "run.yaml", base, data, **PRETRAIN)
    process = start(recipe)
    wait_for_step(run_dir_of(recipe), 1, process)
    process.send_signal(signal.SIGUSR1)
    status, said = finish(process)
    assert status == 75, said
    status, said = run(recipe, "--resume")
    assert status == 0, said
    assert_same(recipe, pretrained)


def test_a_loss_that_is_not_finite_names_its_samples(
    base: Path, data: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "run.yaml", base, data, engine={"processes": 1})
    status, said = run(recipe, "--optimizer.lr=1e30", "--optimizer.clip_norm=0")
    assert status == 1, said
    error = next(line for line in said.splitlines() if line.startswith("error: "))
    assert "the loss is nan at step 2" in error
    uids = error.split("its samples: ")[1].split(", ")
    record = json.loads((run_dir_of(recipe) / "not-finite-rank-0.json").read_text())
    assert record == {"what": "the loss is nan", "step": 2, "rank": 0, "uids": uids}
    with ShardReader(data) as reader:
        assert set(uids) <= set(reader.uids)


def test_missing_inputs_are_said_once(base: Path, data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "run.yaml", tmp_path / "nothing", data)
    for arguments in ((), (f"--base.path={base}", f"--data.train=[{tmp_path}/nowhere]")):
        status, said = run(recipe, *arguments)
        assert status == 1
        assert said.count("error: ") == 1
        assert ("nowhere" if arguments else "nothing") in said


def test_nothing_stays_behind(undisturbed: Path) -> None:
    assert not list(Path("/dev/shm").glob("deepspeed_allreduce_buffer_*"))
    assert not [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(undisturbed) in " ".join(process.info["cmdline"] or [])
    ]


def test_a_full_disk_ends_the_run_in_one_line_and_resume_goes_on(
    undisturbed: Path, base: Path, data: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "run.yaml", base, data)
    # No file may grow past a few kilobytes: the first checkpoint fails as on a full disk.
    status, said = finish(start(recipe, file_size_limit=8_000))
    assert status == 1, said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert any("cannot save" in line or "cannot be written" in line for line in errors), said
    assert "Traceback" not in said
    status, said = run(recipe, "--resume")
    assert status == 0, said
    assert_same(recipe, undisturbed)


@pytest.mark.parametrize("method", ["prefix", "bitfit"])
def test_a_base_that_changed_is_an_error(
    method: str, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(
        tmp_path / "run.yaml",
        base,
        data,
        tuning={"method": method},
        training={"max_steps": 1},
        engine={"processes": 1},
    )
    build = trainer.build_model

    def leaky(*arguments: Any) -> TunedModel:
        model = build(*arguments)
        norm = next(m for m in model.base.modules() if isinstance(m, torch.nn.BatchNorm2d))

        def drift(*_: object) -> None:
            norm.running_mean.add_(1e-3)

        model.base.register_forward_hook(drift)
        return model

    monkeypatch.setattr(trainer, "build_model", leaky)
    with pytest.raises(TrainingError, match="the frozen base changed: sha256:"):
        trainer.train(load(RunConfig, [recipe]))
    assert not (run_dir_of(recipe) / "summary.json").exists()
