"""What the loop asks of an engine, and which engine answers.

An engine is imported when a run names it: debugging without DeepSpeed must not need DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from torch import Tensor

from model.tuning import TunedModel
from pipeline.config import RunConfig
from pipeline.training.data import Batch
from pipeline.training.world import World


class Engine(Protocol):
    """A tuned model, its optimizer and where they lie on all ranks."""

    trainable: int
    """Number of trained values."""

    def train(self) -> None:
        """Training mode."""

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, T, V] of a batch on the engine's device."""

    def backward(self, loss: Tensor) -> None:
        """Adds a loss's gradients; they are summed over micro-batches and ranks, not averaged."""

    def step(self, lr: float) -> float | None:
        """Ends a micro-batch; the last of a step clips and updates.

        Args:
            lr: Learning rate of the step; groups scale it.

        Returns:
            L2 norm of all gradients before clipping; None before the last micro-batch, or where
            the engine does not know it.
        """

    def whole_model(self, *, averaged: bool = False) -> AbstractContextManager[TunedModel]:
        """The model with all its parameters in one place, to be read on every rank.

        Args:
            averaged: With the moving averages of what is trained, where the run keeps them.
        """

    def save(self, folder: Path, tag: str) -> None:
        """Writes what is trained, its averages and optimizer states into folder/tag.

        Every rank calls it.

        Raises:
            TrainingError: a file cannot be written.
        """

    def check_saved(self, place: Path) -> None:
        """Reads a checkpoint of this engine again and looks for everything that is trained.

        Raises:
            CheckpointError: a trained parameter is not in it.
        """

    def load(self, folder: Path, tag: str) -> None:
        """Takes back what save wrote, with as many ranks and the same engine.

        Raises:
            CheckpointError: it does not fit this run.
        """


def start_engine(
    model: TunedModel, config: RunConfig, world: World, rebuild: Callable[[], TunedModel]
) -> Engine:
    """Puts the model into the run's engine.

    Args:
        model: On the CPU, the same on every rank.
        config: The run.
        world: The ranks.
        rebuild: Makes another such model.
    """
    if config.engine.backend == "torch":
        from pipeline.training.torch_engine import TorchEngine

        return TorchEngine(model, config, world)
    from pipeline.training.engine import DeepSpeedEngine

    return DeepSpeedEngine(model, config, world, rebuild)
