"""Each prompt keeps its own best step, and patience waits for any of them."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.config import RunConfig
from pipeline.config_reader import load
from pipeline.training.checkpoint import RunState, read_state, write_checkpoint
from pipeline.training.prompt_selection import PromptSelection, selection_of
from pipeline.training.selection import Selection
from tests.unit.pipeline.training.test_selection import START

SETTINGS = [
    ("name", "run"),
    ("data.train", "[data/train]"),
    ("data.validation", "[data/val]"),
    ("data.tasks", "[grounding, vqa]"),
    ("tuning.prefix.per_task", "true"),
    ("training", "{answer_tasks: [vqa], patience: 2, validate_every_steps: 5, min_delta: 0.1}"),
]


def measured(loss: float, accuracy: float) -> dict[str, float]:
    """A validation of two tasks; only the answers of vqa are scored."""
    return {
        "validation/loss": 9.0,
        "grounding/loss": loss,
        "vqa/loss": 1.0 - accuracy / 2,
        "vqa/accuracy": accuracy,
    }


def judge(*found: tuple[float, float]) -> tuple[PromptSelection, list[RunState]]:
    selection, state, states = selection_of(load(RunConfig, overrides=SETTINGS)), START, []
    assert isinstance(selection, PromptSelection)
    for step, each in enumerate(found, 1):
        state = selection.judged(RunState(**{**vars(state), "step": step}), measured(*each))
        states.append(state)
    return selection, states


def bests(state: RunState) -> dict[str, tuple[int, float]]:
    return {
        name: (standing.best.step, standing.best.value)
        for name, standing in state.prompts.items()
        if standing.best is not None
    }


def test_each_prompt_is_judged_by_its_own_metric() -> None:
    selection, states = judge((3.0, 0.1), (2.0, 0.0), (2.5, 0.6))
    assert bests(states[-1]) == {"grounding": (2, 2.0), "vqa": (3, 0.6)}
    assert selection.best_metrics(states[-1]) == {
        "grounding/loss": 2.0,
        "vqa/loss": 0.7,
        "vqa/accuracy": 0.6,
    }
    improved = [
        set(selection.improved(before, after))
        for before, after in zip([START, *states], states, strict=False)
    ]
    assert improved == [{"grounding", "vqa"}, {"grounding"}, {"vqa"}]


def test_the_run_gives_up_when_no_prompt_gets_better() -> None:
    # Gains below min_delta are kept, and do not count.
    selection, states = judge((3.0, 0.5), (2.0, 0.4), (2.5, 0.7), (1.95, 0.7), (2.0, 0.7))
    assert [state.stale for state in states] == [0, 0, 0, 1, 2]
    assert [selection.gives_up(state) for state in states] == [False] * 4 + [True]
    assert bests(states[-1])["grounding"] == (4, 1.95)


def test_a_resumed_run_judges_on(tmp_path: Path) -> None:
    selection, states = judge((3.0, 0.5), (2.0, 0.4))
    write_checkpoint(tmp_path, states[-1], {"parameter/a": torch.zeros(1)})
    again = read_state(tmp_path)
    assert again == states[-1]
    assert selection.judged(again, measured(2.5, 0.7)) == selection.judged(
        states[-1], measured(2.5, 0.7)
    )


def test_a_run_of_one_prompt_is_judged_as_a_whole() -> None:
    overrides = [(path, value) for path, value in SETTINGS if "per_task" not in path]
    assert isinstance(selection_of(load(RunConfig, overrides=overrides)), Selection)
