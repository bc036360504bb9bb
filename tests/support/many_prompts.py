"""One rank that trains several prompts at once, and each of them alone on the very same rows.

    python -m tests.support.many_prompts BASE DATA FOLDER STAGE...

Started by `tests.distributed.test_many_prompts`; the leading rank writes what was trained.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint import TOKENIZER_FILE, load_config
from model.tokenizer import OFATokenizer
from pipeline.config import RunConfig
from pipeline.config_reader import load
from pipeline.training.backend import start_engine
from pipeline.training.data import Batch, Collator, ShardReader
from pipeline.training.flops import StepFlops
from pipeline.training.objective import Objective
from pipeline.training.process_group import join_world, leave_world
from pipeline.training.prompt_losses import count_tokens
from pipeline.training.spans import Spans
from pipeline.training.step import train_step
from pipeline.training.subject import build_model
from pipeline.training.window import StepSums
from pipeline.training.world import World

TASKS = ("grounding", "vqa", "caption")
STEPS = 4
LR = 0.01
ABSENT = (1, "vqa")
"""A step whose rows are none of a task's, on any rank."""
CLIP_NORM = 0.05
"""So little that every step is clipped."""


@dataclass(frozen=True)
class Row:
    """A sample of the data and its task."""

    position: int
    task: str


def rows_of_step(step: int, rank: int, ranks: int, tasks: Sequence[str]) -> list[list[Row]]:
    """The rows of a rank's two micro-batches: other samples each step, and more of some tasks."""
    by_task = {name: [at for at, task in enumerate(tasks) if task == name] for name in TASKS}
    found: list[list[Row]] = []
    for part in range(2):
        rows = []
        for number, name in enumerate(TASKS):
            if (step, name) == ABSENT:
                continue
            own = by_task[name]
            first = (2 * step + part) * 4
            share = range(first, first + 2 * (1 + number % 2))
            rows += [Row(own[at % len(own)], name) for at in share if at % ranks == rank]
        found.append(rows)
    return found


def train(config: RunConfig, batches: Iterator[list[Batch]], world: World) -> dict[str, Tensor]:
    """The trained values after all steps in which there is something to learn."""
    torch.manual_seed(config.seed)
    engine = start_engine(build_model(config), config, world, lambda: build_model(config))
    engine.train()
    objective = Objective(label_smoothing=0.1)
    prompts = len(config.prompt_names()) or 1
    for step, own in enumerate(batches):
        tokens = world.total(count_tokens(objective, own, prompts))
        train_step(
            engine,
            own,
            lr=config.optimizer.lr,
            objective=objective,
            global_tokens=tokens,
            sums=StepSums(),
            spans=Spans(),
            flops=StepFlops(enabled=False),
            step=step,
            world=world,
        )
    with engine.whole_model() as model:
        return model.trainable_state()


def main(base: str, data: str, folder: str, *stages: str) -> None:
    """Trains together and alone in each stage, as one rank."""
    settings = [
        ("name", "many"),
        ("base.path", base),
        ("tuning.prefix", "{length: 4, init_std: 0.5, per_task: true, task_lengths: {vqa: 6}}"),
        ("data.tasks", f"[{', '.join(TASKS)}]"),
        ("optimizer", f"{{lr: {LR}, clip_norm: {CLIP_NORM}}}"),
        ("training", "{batch_size_per_rank: 4, gradient_accumulation: 2}"),
    ]
    world = join_world(load(RunConfig, overrides=settings))
    torch.set_num_threads(1)
    for stage in stages:
        config = load(RunConfig, overrides=[*settings, ("engine.zero_stage", stage)])
        found = together_and_alone(config, data, world)
        if world.leads:
            save_file(found, Path(folder) / f"stage-{stage}.safetensors")
    world.barrier()
    leave_world()


def together_and_alone(config: RunConfig, data: str, world: World) -> dict[str, Tensor]:
    """What is trained at once, what alone, and what each began with."""
    base = config.base.path
    tokenizer = OFATokenizer.from_file(Path(base) / TOKENIZER_FILE)
    with ShardReader(data) as reader:

        def batches(run: RunConfig, wanted: Sequence[str]) -> Iterator[list[Batch]]:
            names = run.prompt_names()
            collate = Collator(tokenizer, load_config(base), 48, prompt_names=names)
            for step in range(STEPS):
                parts = rows_of_step(step, world.rank, world.size, reader.tasks)
                own = [[row for row in part if row.task in wanted] for part in parts]
                if all(own):
                    yield [collate([reader.read(row.position) for row in part]) for part in own]

        found = train(config, batches(config, TASKS), world)
        for task in TASKS:
            alone = config.alone(task)
            trained = train(alone, batches(alone, [task]), world)
            found |= {f"alone.{task}.{name}": tensor for name, tensor in trained.items()}
            begun = build_model(alone).trainable_state()
            found |= {f"begun.{task}.{name}": tensor for name, tensor in begun.items()}
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
