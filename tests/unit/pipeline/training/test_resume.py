"""What may differ when a run is continued, what may not, and what is said about it."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import RunConfig
from pipeline.config_tree import build, paths, plain
from pipeline.errors import CheckpointError, ConfigError
from pipeline.training.checkpoint import Best, RunState, write_checkpoint
from pipeline.training.resume import (
    BOUND,
    FREE,
    Resume,
    adapted,
    check_settings,
    chosen_checkpoint,
    continuation,
    continued,
    input_differences,
    refuse,
    settings_differences,
)

BEGUN: dict[str, Any] = {
    "name": "run",
    "data": {"train": ["a", "b"], "validation": ["c"], "streams": 8},
    "training": {"max_steps": 6, "batch_size_per_rank": 4, "validate_every_steps": 2},
    "engine": {"processes": 2},
}


@functools.cache
def begun() -> RunConfig:
    config: RunConfig = build(RunConfig, BEGUN)
    return config


def config_of(**changes: Any) -> RunConfig:
    """The settings of a run, with changes by path; `__` stands for a dot."""
    if not changes:
        return begun()
    tree: dict[str, Any] = plain(begun())
    for path, value in changes.items():
        *sections, last = path.split("__")
        here = tree
        for section in sections:
            here = here[section]
        here[last] = value
    config: RunConfig = build(RunConfig, tree)
    return config


def saved_state(config: RunConfig | None = None) -> RunState:
    return RunState(
        step=4,
        total_steps=6,
        base_fingerprint="sha256:base",
        datasets={"/x/a": "sha256:1", "/x/b": "sha256:2"},
        ranks=2,
        zero_stage=1,
        global_batch=8,
        seconds=9.0,
        best=Best(step=2, value=0.5, metrics={}),
        mark=0.5,
        stale=1,
        config=plain(config or config_of()),
    )


def said(ranks: int = 2, **changes: Any) -> list[str]:
    found = settings_differences(saved_state(), config_of(**changes), ranks, Path("step-000004"))
    return list(map(str, found))


FREE_CHANGES: dict[str, Any] = {
    "output_dir": "elsewhere",
    "base__path": "moved/base",
    "tracking__enabled": False,
    "engine__zero_stage": 3,
    "engine__threads_per_process": 3,
    "engine__activation_checkpointing": True,
    "engine__compile": True,
    "data__train": ["moved/a", "moved/b"],
    "data__cache_gb": 7.0,
    "data__cache_dir": "/cache",
    "data__loader": "processes",
    "data__loader_workers": 5,
    "data__loader_timeout_s": 5.0,
    "training__log_every_steps": 3,
    "training__save_every_steps": 3,
    "training__keep_last": 9,
    "training__async_checkpoints": False,
    "training__step_timeout_s": 3.0,
}
BOUND_CHANGES: dict[str, Any] = {
    "seed": 1,
    "engine__precision": "bf16",
    "tuning__method": "bitfit",
    "tuning__prefix__length": 9,
    "data__tasks": ["vqa"],
    "data__image_size": 64,
    "data__max_source_length": 9,
    "data__max_target_length": 9,
    "data__streams": 16,
    "data__uneven": "drop",
    "data__validation": ["d"],
    "optimizer__lr": 0.02,
    "optimizer__eps": 1e-6,
    "optimizer__weight_decay": 0.5,
    "optimizer__clip_norm": 0.5,
    "schedule__name": "cosine",
    "schedule__warmup_ratio": 0.5,
    "schedule__final_lr": 1e-6,
    "training__max_steps": 7,
    "training__label_smoothing": 0.2,
    "training__dropout": 0.2,
    "training__drop_path": 0.2,
    "training__drop_worst_ratio": 0.2,
    "training__validate_every_steps": 3,
    "training__validation_samples": 3,
    "training__best_metric": "vqa/accuracy",
    "training__min_delta": 0.1,
    "training__ema_decay": 0.9,
    "training__beam_size": 2,
}


@pytest.mark.parametrize("path", FREE_CHANGES)
def test_what_only_decides_where_and_how_fast_may_change(path: str) -> None:
    assert said(**{path: FREE_CHANGES[path]}) == []


@pytest.mark.parametrize("path", BOUND_CHANGES)
def test_what_decides_the_result_is_named_with_both_values(path: str) -> None:
    changes = {path: BOUND_CHANGES[path]}
    if path == "training__min_delta":
        changes["training__patience"] = 3
    found = said(**changes)
    dotted = path.replace("__", ".")
    assert any(line.startswith(f"{dotted} ") and " -> " in line for line in found)
    assert len(found) == len(changes)


def test_each_difference_is_listed_with_the_way_out() -> None:
    found = settings_differences(saved_state(), config_of(seed=3, optimizer__lr=0.5), 2, Path("s"))
    with pytest.raises(ConfigError) as caught:
        refuse(Path("runs/run/checkpoints/step-000004"), found)
    line = str(caught.value)
    assert (
        "step-000004 cannot be continued like this: optimizer.lr 0.001 -> 0.5; seed 0 -> 3" in line
    )
    assert "--resume --force" in line
    refuse(Path("s"), [])


def test_the_list_of_what_may_change_names_settings() -> None:
    known = list(paths(RunConfig))
    for entry in (*FREE, *BOUND):
        assert any(path.startswith(entry) for path in known), entry


@pytest.mark.parametrize(
    ("ranks", "size", "accumulation"), [(2, 2, 2), (1, 4, 2), (1, 8, 1), (4, 2, 1), (8, 1, 1)]
)
def test_ranks_and_sizes_may_change_while_a_step_has_as_many_samples(
    ranks: int, size: int, accumulation: int
) -> None:
    changes = {
        "training__batch_size_per_rank": size,
        "training__gradient_accumulation": accumulation,
    }
    assert said(ranks, **changes) == []


@pytest.mark.parametrize(
    ("ranks", "size", "fitting"),
    [
        (1, 4, "1 ranks need training.batch_size_per_rank=4 training.gradient_accumulation=2"),
        (4, 4, "4 ranks need training.batch_size_per_rank=2 training.gradient_accumulation=1"),
        (8, 3, "8 ranks need training.batch_size_per_rank=1 training.gradient_accumulation=1"),
        (3, 4, "8 samples do not divide by 3 ranks: take another number of ranks"),
    ],
)
def test_another_number_of_samples_is_refused_with_numbers_that_fit(
    ranks: int, size: int, fitting: str
) -> None:
    (line,) = said(ranks, training__batch_size_per_rank=size)
    assert line.startswith(f"samples of a step 8 -> {ranks * size} (training.batch_size_per_rank")
    assert line.endswith(fitting)


def test_data_sets_that_are_more_or_fewer_are_named() -> None:
    (line,) = said(data__train=["a", "b", "b"])
    assert line == 'data.train ["a", "b"] -> ["a", "b", "b"]'


def test_another_base_and_other_data_are_named() -> None:
    saved = saved_state()
    moved = replace(saved, datasets={"/y/a": "sha256:1", "/y/b": "sha256:2"})
    assert input_differences(saved, moved) == []
    now = replace(
        saved, base_fingerprint="sha256:other", datasets={"/x/b": "sha256:2", "/x/a": "sha256:1"}
    )
    assert list(map(str, input_differences(saved, now))) == [
        "the base sha256:base -> sha256:other",
        "the data in /x/b sha256:1 -> sha256:2",
        "the data in /x/a sha256:2 -> sha256:1",
    ]
    fewer = replace(saved, datasets={"/x/a": "sha256:1"})
    assert list(map(str, input_differences(saved, fewer))) == [
        "the data in /x/b sha256:2 -> nothing"
    ]


def test_settings_of_another_version_are_said_to_be() -> None:
    saved = saved_state()
    younger = {name: value for name, value in saved.config.items() if name != "evaluation"}
    same = replace(saved, config=younger)
    assert settings_differences(same, config_of(), 2, Path("s")) == []
    for config in ({**saved.config, "colour": 1}, {}):
        with pytest.raises(CheckpointError, match="the settings in s are of another version"):
            settings_differences(replace(saved, config=config), config_of(), 2, Path("s"))


def test_a_run_goes_on_under_the_settings_of_now() -> None:
    saved = saved_state()
    now = replace(saved, step=0, total_steps=99, zero_stage=3, ranks=1, seconds=0.0, best=None)
    state = continued(saved, now, [])
    assert (state.step, state.seconds, state.best, state.stale) == (4, 9.0, saved.best, 1)
    assert (state.total_steps, state.zero_stage, state.ranks) == (99, 3, 1)


def test_a_best_of_another_kind_does_not_stay() -> None:
    saved = saved_state()
    for path in ("training__best_metric", "training__validation_samples", "data__validation"):
        changed = config_of(**{path: BOUND_CHANGES[path]})
        found = settings_differences(saved, changed, 2, Path("s"))
        state = continued(saved, saved, found)
        assert (state.best, state.mark, state.stale) == (None, None, 0)


def test_averages_and_statistics_follow_what_the_run_keeps() -> None:
    kinds = ("parameter", "exp_avg", "average")
    whole = {f"{kind}/a": torch.ones(2) for kind in kinds} | {"buffer/b": torch.ones(1)}
    assert adapted(whole, config_of()).keys() == {"parameter/a", "exp_avg/a"}
    anew = adapted({"parameter/a": torch.ones(2)}, config_of(training__ema_decay=0.5))
    assert anew["average/a"] is anew["parameter/a"]
    kept = adapted(whole, config_of(training__ema_decay=0.5))
    assert all(kept[name] is whole[name] for name in ("parameter/a", "exp_avg/a", "average/a"))
    pretraining = config_of(tuning__method="finetune", tuning__train_batch_norm=True)
    assert "buffer/b" in adapted(whole, pretraining)


def run_of(folder: Path, config: RunConfig) -> RunState:
    """Writes a run with one checkpoint; its state."""
    place = folder / "checkpoints" / "step-000004"
    place.mkdir(parents=True)
    write_checkpoint(place, saved_state(config), {"parameter/a": torch.ones(2)})
    return saved_state(config)


def test_what_changed_is_refused_and_forced_with_one_warning_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = replace(run_of(tmp_path, config_of()), base_fingerprint="sha256:other", step=0, best=None)
    now = replace(now, datasets={"/x/a": "sha256:1", "/x/b": "sha256:3"})
    changed = config_of(seed=1)
    with pytest.raises(ConfigError, match=r"seed 0 -> 1; the base .*; the data in /x/b sha256:2"):
        continuation(tmp_path, changed, now, Resume(), told=True)
    assert not caplog.records
    forced = continuation(tmp_path, changed, now, Resume(force=True), told=True)
    assert forced is not None
    assert (forced.state.step, forced.state.base_fingerprint) == (4, "sha256:other")
    assert [record.getMessage() for record in caplog.records] == [
        "--force continues step-000004 in spite of: seed 0 -> 1",
        "--force continues step-000004 in spite of: the base sha256:base -> sha256:other",
        "--force continues step-000004 in spite of: the data in /x/b sha256:2 -> sha256:3",
    ]
    caplog.clear()
    continuation(tmp_path, changed, now, Resume(force=True), told=False)
    assert not caplog.records


def test_settings_are_refused_before_any_work(tmp_path: Path) -> None:
    run_of(tmp_path, config_of())
    with pytest.raises(ConfigError, match="seed 0 -> 1"):
        check_settings(tmp_path, config_of(seed=1), 2, Resume())
    check_settings(tmp_path, config_of(seed=1), 2, Resume(force=True))
    check_settings(tmp_path, config_of(), 2, Resume())
    check_settings(tmp_path / "nothing", config_of(seed=1), 2, Resume())


def test_damage_is_no_difference_that_force_could_pass_over(tmp_path: Path) -> None:
    state = run_of(tmp_path, config_of())
    path = tmp_path / "checkpoints" / "step-000004" / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"damaged.*; there is no whole one"):
        continuation(tmp_path, config_of(), state, Resume(force=True), told=True)


@pytest.mark.parametrize("name", ["step-000005", "../step-000004", "latest", "step-4"])
def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints" / "step-000004").mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"--resume={name}: .* it has step-000004"):
        chosen_checkpoint(tmp_path, Resume(checkpoint=name))
