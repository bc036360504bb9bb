"""What the loop asks of an engine, and which engine answers.

An engine is imported when a run names it: debugging without DeepSpeed must not need DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor, nn

from model.tensor_files import Whole
from model.tuning import TunedModel
from model.tuning.tuned import ParameterCounts
from pipeline.config import RunConfig
from pipeline.training.data import Batch
from pipeline.training.world import World

ResultT = TypeVar("ResultT")


class Engine(Protocol):
    """A tuned model, its optimizer and where they lie on all ranks."""

    sizes: ParameterCounts
    """Number of trained values, and of those of the base."""

    def train(self) -> None:
        """Training mode."""

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, T, V] of a batch on the engine's device."""

    def backward(self, loss: Tensor) -> None:
        """Adds a loss's gradients; they are summed over micro-batches and ranks, not averaged."""

    def step(self, lr: float, idle: Sequence[int] = ()) -> float | None:
        """Ends a micro-batch; the last of a step clips and updates.

        Args:
            lr: Learning rate of the step; groups scale it.
            idle: Places of the prompts, of several, that have no token in the step and stay as they
                are.

        Returns:
            L2 norm of all gradients before clipping; None before the last micro-batch, or where
            the engine does not know it.
        """

    def measure(self, run: Callable[[TunedModel], ResultT]) -> ResultT:
        """Runs the model with the moving averages of what is trained, where the run keeps them.

        Where parameters are sharded, `run` must make the same calls of the model on every rank.
        """

    def whole_model(self) -> AbstractContextManager[TunedModel]:
        """The model with all that is trained, as `measure` runs it, to be read on the leading rank.

        Every rank calls it. A base that is frozen may stay sharded.
        """

    def full_state(self) -> dict[str, Tensor]:
        """What is trained and what its optimizer remembers, on the leading rank; else nothing.

        Every rank calls it. It depends on no engine and no number of ranks.

        Raises:
            TrainingError: another rank is gone.
        """

    def take_full_state(self, tensors: dict[str, Tensor]) -> None:
        """Takes what `full_state` returned, the same on every rank.

        Raises:
            CheckpointError: it does not fit this run; nothing is taken.
        """


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the parameters of a base lie, already before there is an engine."""

    settle: Callable[[nn.Module], None] | None = None
    """Leaves of a module's own parameters this rank's share; None where a rank holds all."""
    whole: Whole | None = None
    """Collects a tensor of which ranks hold shares."""


def placement_of(config: RunConfig) -> Placement:
    """Chooses it; the ranks have joined already."""
    if config.engine.zero_stage < 3:
        return Placement()
    from pipeline.training.sharding import Sharding, whole

    return Placement(settle=Sharding(config).settle, whole=whole)


def start_engine(
    model: TunedModel, config: RunConfig, world: World, rebuild: Callable[[], TunedModel]
) -> Engine:
    """Puts the model into the run's engine.

    Args:
        model: Placed as `placement_of` says, the same on every rank.
        config: The run.
        world: The ranks.
        rebuild: Makes another such model that is whole.
    """
    if config.engine.backend == "torch":
        from pipeline.training.torch_engine import TorchEngine

        return TorchEngine(model, config, world)
    from pipeline.training.engine import DeepSpeedEngine

    return DeepSpeedEngine(model, config, world, rebuild)
