"""The loss of a step whose rows have different prompts: each prompt's own mean.

A mean over all tokens would weigh a prompt by its share of them, and by what the other rows hold.
So each prompt's loss is summed over its own rows and divided by its own tokens in the global batch:
its gradient is the one that it would get from these rows alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.constraints import allowed_of_rows
from model.losses import PAD
from pipeline.training.data import Batch
from pipeline.training.objective import Objective


@dataclass(frozen=True, kw_only=True)
class BatchLoss:
    """The loss of a micro-batch, over all of its prompts."""

    mean: Tensor
    """The micro-batch's part of the sum of every prompt's mean over the global batch; scalar."""
    total: float
    """Sum over the counted tokens."""
    nll: float
    """Negative log-likelihood, summed likewise."""
    counted: int
    """Tokens that the sums are over."""


def count_tokens(objective: Objective, batches: Sequence[Batch], prompts: int) -> list[float]:
    """Counts the tokens of some micro-batches that the loss is over.

    Args:
        objective: What the step minimises.
        batches: The micro-batches of a rank.
        prompts: Prompts that rows choose from.

    Returns:
        a count for each prompt.
    """
    counts = [0.0] * prompts
    for batch in batches:
        for prompt, _, part in parts_of(batch, prompts):
            counts[prompt] += objective.tokens(part)
    return counts


def batch_loss(
    objective: Objective, logits_BTV: Tensor, prepared: Batch, global_tokens: Sequence[float]
) -> BatchLoss:
    """Computes the loss of a prepared micro-batch.

    Args:
        objective: What the step minimises.
        logits_BTV: Of the prepared batch.
        prepared: What `objective.prepared` gave.
        global_tokens: For each prompt, the tokens that count in all ranks' micro-batches.
    """
    mean, total, nll, counted = logits_BTV.new_zeros((), dtype=torch.float32), 0.0, 0.0, 0
    for prompt, rows, part in parts_of(prepared, len(global_tokens)):
        logits = logits_BTV if rows is None else logits_BTV.index_select(0, rows)
        loss_sum, nll_sum, tokens = objective.loss(logits, part)
        # A drop of nearly all tokens can leave none.
        mean = mean + loss_sum / max(1.0, global_tokens[prompt])
        total += float(loss_sum.detach())
        nll += float(nll_sum)
        counted += tokens
    return BatchLoss(mean=mean, total=total, nll=nll, counted=counted)


def parts_of(batch: Batch, prompts: int) -> Iterator[tuple[int, Tensor | None, Batch]]:
    """Splits a batch by prompt.

    Args:
        batch: The batch; of one that was doubled, both halves stay halves of each part.
        prompts: Prompts that rows choose from.

    Yields:
        a prompt's place, its rows (None for all rows), and these rows as a batch of the same width,
        without images: no loss looks at them, and copying them takes time.
    """
    if prompts == 1:
        yield 0, None, batch
        return
    for prompt in sorted(set(batch.prompt_index_B.tolist())):
        rows = (batch.prompt_index_B == prompt).nonzero().squeeze(1)
        yield prompt, rows, _rows_of(batch, rows)


def _rows_of(batch: Batch, rows_N: Tensor) -> Batch:
    picked = rows_N.tolist()
    fields: dict[str, Any] = {}
    for name, value in vars(batch).items():
        if name == "images_BCHW":
            fields[name] = value[:0]
        elif name == "allowed":
            fields[name] = allowed_of_rows(value, rows_N)
        elif isinstance(value, Tensor):
            fields[name] = value.index_select(0, rows_N)
        elif isinstance(value, tuple):
            fields[name] = tuple(value[row] for row in picked)
        else:
            fields[name] = value
    fields["tokens"] = int((fields["target_BT"] != PAD).sum())
    return Batch(**fields)
