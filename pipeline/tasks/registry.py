"""The tasks by name."""

from __future__ import annotations

from functools import lru_cache

from pipeline.errors import ConfigError
from pipeline.tasks.base import Task
from pipeline.tasks.caption import Caption
from pipeline.tasks.detection import Detection
from pipeline.tasks.entailment import Entailment
from pipeline.tasks.grounding import Grounding
from pipeline.tasks.vqa import VQA

_TASKS: dict[str, Task] = {
    task.name: task for task in (Caption(), VQA(), Grounding(), Entailment(), Detection())
}


def task_names() -> tuple[str, ...]:
    """Every task that can be trained and scored."""
    return tuple(_TASKS)


def get_task(name: str, answers: tuple[str, ...] = ()) -> Task:
    """The task of a name.

    Args:
        name: The task.
        answers: The only answers that may be given to questions; none leaves them open.

    Raises:
        ConfigError: there is none.
    """
    if name not in _TASKS:
        raise ConfigError(f"unknown task {name!r}; known are {', '.join(_TASKS)}")
    return _closed_vqa(answers) if name == VQA.name and answers else _TASKS[name]


@lru_cache(maxsize=8)
def _closed_vqa(answers: tuple[str, ...]) -> VQA:
    return VQA(answers)
