"""One optimizer step: loss over the tokens of all ranks, gradients, update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from model.losses import PAD
from pipeline.errors import TrainingError
from pipeline.training.backend import Engine
from pipeline.training.checkpoint import write_json_whole, writing
from pipeline.training.data import Batch
from pipeline.training.flops import StepFlops
from pipeline.training.objective import Objective
from pipeline.training.prompt_losses import batch_loss
from pipeline.training.spans import BACKWARD, FORWARD, OPTIMIZER, Spans
from pipeline.training.window import StepSums
from pipeline.training.world import World

_SEED_MODULUS = 2**63


def seed_step(seed: int, step: int, rank: int) -> None:
    """Makes dropout a function of seed, step and rank, so that no generator has to be saved."""
    torch.manual_seed((seed * 1_000_003 + step * 4_099 + rank) % _SEED_MODULUS)


def train_step(
    engine: Engine,
    batches: Sequence[Batch],
    *,
    lr: float,
    objective: Objective,
    global_tokens: Sequence[float],
    sums: StepSums,
    spans: Spans,
    flops: StepFlops,
    step: int,
    world: World,
) -> float | None:
    """Runs the micro-batches of a rank and updates the parameters.

    The loss is the mean over the tokens of the whole global batch, so how samples are dealt to
    ranks and micro-batches does not weigh them. Of several prompts each has a mean over its own
    tokens, and one without any stays as it is. Only the worst tokens are looked for in each
    micro-batch by itself, as in the published training.

    Args:
        engine: Model and optimizer.
        batches: The micro-batches.
        lr: Learning rate.
        objective: What the step minimises.
        global_tokens: For each prompt, the tokens that it counts in all ranks' micro-batches.
        sums: Where the losses are added.
        spans: Clock of this rank.
        flops: Counts what is computed.
        step: Steps done before, for errors.
        world: The ranks.

    Returns:
        L2 norm of the gradients before clipping; None where DeepSpeed does not know it.

    Raises:
        NotFinite: a loss or the norm is not finite.
        LostContact: another rank is gone.
    """
    norm: float | None = None
    several = len(global_tokens) > 1
    idle = [prompt for prompt, count in enumerate(global_tokens) if several and not count]
    for batch in batches:
        placed = objective.prepared(batch.to(world.device))
        shape = (placed.source_ids_BS, placed.target_BT, placed.images_BCHW)
        with flops.counted(*shape):
            with spans(FORWARD):
                loss = batch_loss(objective, engine.forward(placed), placed, global_tokens)
            if not math.isfinite(loss.total):
                raise not_finite(f"the loss is {loss.total}", batches, step, world.rank)
            with spans(BACKWARD), world.contact():
                engine.backward(loss.mean)
        with spans(OPTIMIZER), world.contact():
            norm = engine.step(lr, idle)
        sums.loss += loss.total
        sums.nll += loss.nll
        sums.counted += loss.counted
        sums.tokens += batch.tokens
        sums.source_tokens += int((batch.source_ids_BS != PAD).sum())
        sums.samples += len(batch.uids)
        sums.flops += flops.of(*shape)
    if norm is not None and not math.isfinite(norm):
        raise not_finite(f"the gradient's norm is {norm}", batches, step, world.rank)
    sums.steps += 1
    return norm


def not_finite(what: str, batches: Sequence[Batch], step: int, rank: int) -> NotFinite:
    """The error of a step that went wrong, with the samples that it was made of."""
    uids = tuple(uid for batch in batches for uid in batch.uids)
    return NotFinite(what, step=step + 1, rank=rank, uids=uids)


class NotFinite(TrainingError):
    """A loss or a gradient that is no number, and the samples of the rank's step."""

    def __init__(self, what: str, *, step: int, rank: int, uids: tuple[str, ...]) -> None:
        self.what, self.step, self.rank, self.uids = what, step, rank, uids
        super().__init__(f"{what} at step {step} on rank {rank}; its samples: {', '.join(uids)}")

    def write(self, run_dir: Path) -> Path:
        """Writes the samples' uids into the run's folder, each rank into a file of its own.

        Raises:
            TrainingError: the file cannot be written.
        """
        path = run_dir / f"not-finite-rank-{self.rank}.json"
        record = {"what": self.what, "step": self.step, "rank": self.rank, "uids": self.uids}
        with writing(path):
            write_json_whole(path, record)
        return path
