"""RunConfig refuses what its sections cannot see alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import RunConfig, load, save
from pipeline.errors import ConfigError

BASIC = [("name", "run"), ("data.train", "[data/train]")]


def test_a_name_and_data_are_enough_and_read_back_equal(tmp_path: Path) -> None:
    config = load(RunConfig, overrides=BASIC)
    save(config, tmp_path / "config.yaml")
    assert load(RunConfig, [tmp_path / "config.yaml"]) == config


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        (("name", "a/b"), ["name = 'a/b'", "folder's name"]),
        (("seed", "-1"), ["seed = -1", "0 or more"]),
        (("base.random_init", "true"), ["base.random_init", "tuning.method = finetune"]),
        (("training.best_metric", "vqa/accuracy"), ["training.best_metric", "data.validation"]),
        (("engine.processes", "3"), ["engine.processes = 3", "data.streams"]),
        (("training.batch_size", "8"), ["did you mean training.batch_size_per_rank?"]),
        (("tuning.method", "prefx"), ["tuning.method = 'prefx'", "did you mean prefix?"]),
        (("tuning.method", "bitfits"), ["tuning.method = 'bitfits'", "did you mean bitfit?"]),
        (("tuning.adapter.dim", "0"), ["tuning.adapter.dim: 0 is not at least 1"]),
        (("tuning.adapter.width", "8"), ["tuning.adapter.width", "allowed here: dim, init_std"]),
        (("tuning.bitfit.biases", "some"), ["tuning.bitfit.biases", "one of published, all"]),
        (("optimizer.lr", "0"), ["optimizer.lr", "above 0"]),
        (("evaluation.beam_size", "0"), ["evaluation.beam_size", "at least 1"]),
        (("training.constrain_loss", "[vqa]"), ["names vqa", "data.vqa.answers = closed"]),
        (("training.constrain_loss", "[caption]"), ["training.constrain_loss", "grounding"]),
        (("evaluation.vqa", "trie"), ["evaluation.vqa = trie", "data.vqa.answers = closed"]),
        (("evaluation.vqa", "beam"), ["evaluation.vqa = 'beam'", "candidates"]),
        (("data.vqa.file", "a.txt"), ["data.vqa", "needs answers = closed"]),
        (("data.vqa.most", "0"), ["data.vqa", "at least 1"]),
        (("data.augmentation.vqa.mirror", "0.5"), ["data.augmentation", "must be 0"]),
        (("data.augmentation.vqa.zoom", "[0.5]"), ["data.augmentation.vqa.zoom"]),
        (("lr", "1"), ["did you mean optimizer.lr?"]),
    ],
)
def test_impossible_settings_are_one_line(override: tuple[str, str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(RunConfig, overrides=[*BASIC, override])
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


PER_TASK = [*BASIC, ("tuning.prefix.per_task", "true"), ("data.tasks", "[vqa, grounding]")]


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        (
            ("data.tasks", "null"),
            ["tuning.prefix.per_task", "needs data.tasks or data.task_weights"],
        ),
        (("data.tasks", "[vqa, groundin]"), ["data.tasks names 'groundin'", "caption, vqa"]),
        (("data.task_weights", "{vqa: 0, x: 1}"), ["data.task_weights names 'x'"]),
        (("tuning.prefix.task_lengths", "{caption: 3}"), ["task_lengths names 'caption'"]),
        (("tuning.prefix.task_lengths", "{vqa: 0}"), ["task_lengths.vqa: 0 is not at least 1"]),
        (("training.answer_tasks", "[caption]"), ["training.answer_tasks names 'caption'"]),
        (("tuning.method", "adapter"), ["tuning.prefix.per_task", "tuning.method=prefix"]),
    ],
)
def test_impossible_prompts_are_one_line(override: tuple[str, str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(RunConfig, overrides=[*PER_TASK, override])
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_one_metric_for_several_prompts_is_refused() -> None:
    metric = [("data.validation", "[data/val]"), ("training.best_metric", "vqa/accuracy")]
    with pytest.raises(ConfigError, match=r"best_metric = 'vqa/accuracy': .*leave it out"):
        load(RunConfig, overrides=[*PER_TASK, *metric])


def test_prompts_are_named_by_the_tasks_that_are_drawn() -> None:
    assert load(RunConfig, overrides=BASIC).prompt_names() == ()
    assert load(RunConfig, overrides=PER_TASK).prompt_names() == ("vqa", "grounding")
    weights = ("data.task_weights", "{grounding: 2, vqa: 0, caption: 1}")
    assert load(RunConfig, overrides=[*PER_TASK, weights]).prompt_names() == (
        "grounding",
        "caption",
    )


def test_a_prompt_alone_is_a_whole_configuration(tmp_path: Path) -> None:
    lengths = ("tuning.prefix.task_lengths", "{vqa: 9}")
    answered = ("training.answer_tasks", "[grounding]")
    config = load(RunConfig, overrides=[*PER_TASK, lengths, answered])
    for name, length, answers in (("vqa", 9, None), ("grounding", 64, ["grounding"])):
        alone = config.alone(name)
        assert (alone.name, alone.data.tasks) == (f"run-{name}", [name])
        assert (alone.tuning.prefix.per_task, alone.tuning.prefix.length) == (False, length)
        assert alone.training.answer_tasks == answers
        save(alone, tmp_path / "config.yaml")
        assert load(RunConfig, [tmp_path / "config.yaml"]) == alone
