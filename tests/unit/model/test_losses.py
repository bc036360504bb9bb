"""The loss beyond its golden values: gradients, constraints, regularisers, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.losses import label_smoothed_loss, symmetric_divergence

V = 12


def _batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, V, generator=generator, requires_grad=True)
    return logits, torch.tensor([[5, 6, 2, 1], [7, 2, 1, 1]])


def test_without_smoothing_it_is_cross_entropy_of_the_labelled_tokens() -> None:
    logits, target = _batch()
    found = label_smoothed_loss(logits, target, epsilon=0.0)
    expected = F.cross_entropy(
        logits.flatten(0, 1), target.flatten(), ignore_index=1, reduction="sum"
    )
    assert found.loss_sum.item() == pytest.approx(expected.item(), rel=1e-6)
    assert found.sample_size == 5
    assert not found.nll_sum.requires_grad


def test_gradient_equals_numerical_differences() -> None:
    logits, target = _batch()
    mask = torch.ones(2, 4, V, dtype=torch.bool)
    mask[..., 9:] = False

    def loss(x: torch.Tensor) -> torch.Tensor:
        # gradcheck needs float64, and the loss is float32: compare against a float64 formula.
        kept = target != 1
        allowed = mask[kept]
        log_probs = x[kept].masked_fill(~allowed, float("-inf")).log_softmax(-1)
        nll = -log_probs.gather(1, target[kept][:, None]).squeeze(1)
        spread = -log_probs.masked_fill(~allowed, 0.0).sum(1)
        share = 0.1 / (9 - 1 + 1e-6)
        return ((1 - 0.1 - share) * nll + share * spread).sum()

    exact = logits.detach().double().requires_grad_()
    loss(exact).backward()
    label_smoothed_loss(logits, target, epsilon=0.1, constraint_mask_BTV=mask).loss_sum.backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, atol=1e-6, rtol=1e-5)
    assert logits.grad[..., 9:].abs().max() == 0
    assert logits.grad[target == 1].abs().max() == 0


def test_a_single_allowed_token_costs_nothing() -> None:
    logits, target = _batch()
    mask = torch.zeros(2, 4, V, dtype=torch.bool).scatter_(2, target[..., None], True)
    found = label_smoothed_loss(logits, target, epsilon=0.1, constraint_mask_BTV=mask)
    assert found.loss_sum.item() == 0.0


def test_range_and_mask_of_the_same_tokens_agree() -> None:
    logits, _ = _batch()
    target = torch.tensor([[6, 7, 2, 1], [8, 2, 1, 1]])
    mask = torch.zeros(2, 4, V, dtype=torch.bool)
    mask[..., :4] = mask[..., 6:9] = True
    by_range = label_smoothed_loss(logits, target, epsilon=0.1, allowed_range=(6, 9))
    by_mask = label_smoothed_loss(logits, target, epsilon=0.1, constraint_mask_BTV=mask)
    assert by_range.loss_sum.item() == pytest.approx(by_mask.loss_sum.item(), rel=1e-6)


@pytest.mark.parametrize("label", [4, 5, 9, 11])
def test_a_label_outside_the_range_is_an_error(label: int) -> None:
    logits, _ = _batch()
    target = torch.full((2, 4), label)
    with pytest.raises((IndexError, RuntimeError)):
        label_smoothed_loss(logits, target, epsilon=0.1, allowed_range=(6, 9))


def test_confidence_scales_each_sample() -> None:
    logits, target = _batch()
    alone = [
        label_smoothed_loss(logits[i : i + 1], target[i : i + 1], epsilon=0.1).loss_sum.item()
        for i in range(2)
    ]
    weighted = label_smoothed_loss(
        logits, target, epsilon=0.1, confidence_B=torch.tensor([0.3, 1.0])
    )
    assert weighted.loss_sum.item() == pytest.approx(0.3 * alone[0] + alone[1], rel=1e-6)


def test_dropping_the_worst_keeps_the_easiest_tokens() -> None:
    logits, target = _batch()
    kept = target != 1
    losses = F.cross_entropy(logits[kept], target[kept], reduction="none").sort().values
    found = label_smoothed_loss(logits, target, epsilon=0.0, drop_worst_ratio=0.4)
    assert found.sample_size == 3
    assert found.loss_sum.item() == pytest.approx(losses[:3].sum().item(), rel=1e-6)


def test_equal_passes_have_no_divergence_and_unequal_ones_do() -> None:
    first, target = _batch()
    other, _ = _batch(1)
    twice = torch.cat([target, target])
    same = label_smoothed_loss(torch.cat([first, first]), twice, epsilon=0.1, rdrop_alpha=3.0)
    plain = label_smoothed_loss(torch.cat([first, first]), twice, epsilon=0.1)
    assert same.loss_sum.item() == pytest.approx(plain.loss_sum.item())
    p, q = first[0].log_softmax(-1), other[0].log_softmax(-1)
    expected = 0.5 * (
        F.kl_div(q, p, reduction="sum", log_target=True)
        + F.kl_div(p, q, reduction="sum", log_target=True)
    )
    assert symmetric_divergence(torch.cat([p, q])).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_divergence_under_a_trie_is_finite() -> None:
    first, target = _batch()
    other, _ = _batch(1)
    mask = torch.ones(4, 4, V, dtype=torch.bool)
    mask[..., 9:] = False
    found = label_smoothed_loss(
        torch.cat([first, other]),
        torch.cat([target, target]),
        epsilon=0.1,
        constraint_mask_BTV=mask,
        rdrop_alpha=1.0,
    )
    found.loss_sum.backward()
    assert torch.isfinite(found.loss_sum)
    assert torch.isfinite(first.grad).all()


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits, target = _batch()
    half = logits.detach().bfloat16()
    found = label_smoothed_loss(half, target, epsilon=0.1)
    full = label_smoothed_loss(half.float(), target, epsilon=0.1)
    assert found.loss_sum.dtype == torch.float32
    assert found.loss_sum.item() == full.loss_sum.item()


def test_impossible_combinations_are_refused() -> None:
    logits, target = _batch()
    mask = torch.ones(2, 4, V, dtype=torch.bool)
    with pytest.raises(ValueError, match="exclude"):
        label_smoothed_loss(
            logits, target, epsilon=0.1, allowed_range=(6, 9), constraint_mask_BTV=mask
        )
    with pytest.raises(ValueError, match="halves"):
        label_smoothed_loss(logits[:1], target[:1], epsilon=0.1, rdrop_alpha=1.0)
