"""A prompt's loss is the mean over its own tokens, whatever the other rows hold."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from data_prep.schema import Sample
from model.losses import PAD
from pipeline.training.data import Batch
from pipeline.training.objective import Objective
from pipeline.training.prompt_losses import batch_loss, count_tokens

PROMPTS = 3
PASSES = {
    "plain": Objective(label_smoothing=0.1),
    "r_drop": Objective(label_smoothing=0.1, r_drop_alpha=2.0),
    "drop_worst": Objective(label_smoothing=0.1, drop_worst_ratio=0.3),
    "both": Objective(label_smoothing=0.1, drop_worst_ratio=0.3, r_drop_alpha=2.0),
}


def batch(prompts: list[int], *, seed: int, longest: int = 7) -> Batch:
    """Rows of random targets of different lengths."""
    torch.manual_seed(seed)
    count = len(prompts)
    target = torch.randint(4, 11, (count, longest))
    lengths = torch.randint(2, longest + 1, (count,))
    target[torch.arange(longest) >= lengths[:, None]] = PAD
    return Batch(
        uids=tuple(f"{seed}-{row}" for row in range(count)),
        tasks=("vqa",) * count,
        samples=tuple(cast(Sample, object()) for _ in prompts),
        source_ids_BS=torch.zeros(count, 2, dtype=torch.int64),
        images_BCHW=torch.zeros(count, 3, 2, 2),
        image_present_B=torch.ones(count, dtype=torch.bool),
        decoder_ids_BT=target,
        target_BT=target,
        confidence_B=torch.rand(count) / 2 + 0.5,
        prompt_index_B=torch.tensor(prompts),
        tokens=int(lengths.sum()),
    )


def logits_of(prepared: Batch, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(*prepared.target_BT.shape, 11, requires_grad=True)


def rows_alone(whole: Batch, prompt: int) -> tuple[Batch, Tensor]:
    rows = (whole.prompt_index_B == prompt).nonzero().flatten()
    fields: dict[str, Any] = {
        name: value[rows] if isinstance(value, Tensor) else value
        for name, value in vars(whole).items()
    }
    fields["uids"] = tuple(whole.uids[row] for row in rows.tolist())
    fields["tasks"] = ("vqa",) * len(rows)
    fields["samples"] = tuple(whole.samples[row] for row in rows.tolist())
    fields["tokens"] = int((fields["target_BT"] != PAD).sum())
    return Batch(**fields), rows


@pytest.mark.parametrize("name", list(PASSES))
def test_gradients_are_those_of_the_rows_alone(name: str) -> None:
    objective = PASSES[name]
    whole, other = batch([2, 0, 0, 2, 2], seed=1), batch([1, 2, 2], seed=2)
    tokens = count_tokens(objective, [whole, other], PROMPTS)
    prepared = objective.prepared(whole)
    logits = logits_of(prepared, 3)
    found = batch_loss(objective, logits, prepared, tokens)
    found.mean.backward()
    assert logits.grad is not None
    counted, means = 0, torch.zeros(())
    for prompt in range(PROMPTS):
        alone, rows = rows_alone(whole, prompt)
        if not len(rows):
            continue
        elsewhere, _ = rows_alone(other, prompt)
        count = objective.tokens(alone) + objective.tokens(elsewhere)
        assert tokens[prompt] == count
        doubled = torch.cat([rows, rows + 5]) if len(prepared.uids) == 10 else rows
        own = logits.detach()[doubled].requires_grad_()
        loss_sum, _, kept = objective.loss(own, objective.prepared(alone))
        (loss_sum / count).backward()
        means, counted = means + loss_sum.detach() / count, counted + kept
        torch.testing.assert_close(logits.grad[doubled], own.grad)
    assert found.counted == counted
    torch.testing.assert_close(found.mean.detach(), means)


def test_one_prompt_for_all_rows_has_the_mean_over_all_tokens() -> None:
    objective, whole = PASSES["plain"], batch([0, 0, 0], seed=1)
    (tokens,) = count_tokens(objective, [whole], 1)
    assert tokens == whole.tokens
    logits = logits_of(whole, 3).detach()
    found = batch_loss(objective, logits, whole, [tokens])
    loss_sum, nll, counted = objective.loss(logits, whole)
    assert torch.equal(found.mean, loss_sum / whole.tokens)
    assert (found.total, found.nll, found.counted) == (float(loss_sum), float(nll), counted)


def test_a_prompt_without_tokens_adds_nothing() -> None:
    objective = Objective(label_smoothing=0.1, drop_worst_ratio=0.999)
    whole = batch([0, 1], seed=1)
    tokens = count_tokens(objective, [whole], PROMPTS)
    assert tokens == [0.0, 0.0, 0.0]
    assert float(batch_loss(objective, logits_of(whole, 2), whole, tokens).mean.detach()) == 0.0
