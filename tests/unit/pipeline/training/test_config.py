from __future__ import annotations

import pytest

from pipeline.config import RunConfig, load
from pipeline.errors import ConfigError
from pipeline.training.deepspeed_config import deepspeed_config


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("optimizer.lr", "0", "lr must be above 0"),
        ("schedule.warmup_ratio", "1.0", "warmup_ratio must be at least 0 and below 1"),
        ("schedule", "{name: cosine, power: 2}", "schedule.power = 2.0 needs name = polynomial"),
        ("schedule", "{name: constant, final_lr: 1e-5}", "schedule.final_lr = 1e-05 needs"),
        ("schedule.final_lr", "0.1", "final_lr = 0.1: must not be above optimizer.lr = 0.001"),
        ("schedule.warmup_steps", "-1", "warmup_steps must be 0 or more"),
        ("schedule.name", "linear", "one of polynomial, cosine, constant"),
        ("data.streams", "0", "streams must be at least 1"),
        ("data.task_weights", "{vqa: 0}", "not all 0"),
        ("training.label_smoothing", "1", "label_smoothing must be"),
        ("training", "{r_drop_alpha: 0, dropout: 0.1}", "training.r_drop_alpha must be above 0"),
        ("training.r_drop_alpha", "5", "r_drop_alpha = 5.0 needs dropout or drop_path above 0"),
        ("training.drop_worst_ratio", "1", "drop_worst_ratio must be in"),
        ("training.drop_worst_after_steps", "9", "needs a drop_worst_ratio above 0"),
        ("training.ema_decay", "1", "ema_decay must be above 0 and below 1"),
        ("training.best_direction", "larger", "needs a best_metric"),
        ("training.min_delta", "0.1", "min_delta = 0.1 needs patience"),
        ("training.patience", "2", "patience = 2 needs validate_every_steps"),
        ("training", "{patience: 2, validate_every_steps: 9}", "training.patience = 2: needs a"),
        ("training.patience", "0", "patience must be at least 1"),
        ("optimizer.groups", "[{match: '*', lr_scale: 0}]", "lr_scale must be above 0, not 0"),
        ("optimizer.groups", "[{lr_scale: 2}]", r"optimizer.groups\[0\].match: missing"),
        ("engine.zero_stage", "4", "engine.zero_stage"),
        ("engine.precision", "fp16", "engine.precision"),
        ("engine.backend", "torch", "engine.backend = torch needs zero_stage = 0, not 1"),
        ("engine", "{zero_stage: 0, offload_optimizer: cpu}", "needs zero_stage 1, 2 or 3, not 0"),
        ("engine", "{zero_stage: 2, offload_parameters: cpu}", "needs zero_stage = 3, not 2"),
        ("engine.offload_optimizer", "nvme", "engine.offload_optimizer"),
        ("engine", "{compile: true, zero_stage: 3}", "compile and zero_stage = 3"),
    ],
)
def test_impossible_values_are_named(path: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(RunConfig, [], [("name", "run"), (path, value)])


def test_length_is_given_once() -> None:
    overrides = [("name", "run"), ("training.epochs", "1"), ("training.max_steps", "1")]
    with pytest.raises(ConfigError, match="exclude each other"):
        load(RunConfig, [], overrides)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_settings_follow_from_the_run(stage: int) -> None:
    overrides = [
        ("name", "run"),
        ("engine.zero_stage", str(stage)),
        ("training.batch_size_per_rank", "4"),
        ("training.gradient_accumulation", "3"),
        ("optimizer.clip_norm", "0.5"),
    ]
    settings = deepspeed_config(load(RunConfig, [], overrides), ranks=2, trainable=1000)
    assert settings["train_batch_size"] == 24
    assert settings["gradient_clipping"] == 0.5
    assert settings["zero_optimization"]["stage"] == stage
    assert settings["zero_optimization"]["reduce_bucket_size"] == 1000


def test_what_is_offloaded_is_said_to_deepspeed() -> None:
    overrides = [("name", "run"), ("engine.zero_stage", "3"), ("engine.offload_parameters", "cpu")]
    settings = deepspeed_config(load(RunConfig, [], overrides), ranks=2, trainable=9, pinned=True)
    zero = settings["zero_optimization"]
    assert zero["offload_param"] == {"device": "cpu", "pin_memory": True}
    assert "offload_optimizer" not in zero


@pytest.mark.parametrize(("metric", "tasks"), [("vqa/accuracy", ["vqa"]), ("validation/nll", [])])
def test_best_metric_names_the_task_to_answer(metric: str, tasks: list[str]) -> None:
    config = load(
        RunConfig,
        [],
        [
            ("name", "run"),
            ("data.validation", "[somewhere]"),
            ("training.best_metric", metric),
        ],
    )
    assert config.training.answered_tasks() == tasks
    assert load(RunConfig, [], [("name", "run")]).training.answered_tasks() == []
