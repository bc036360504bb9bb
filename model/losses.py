"""Label-smoothed cross-entropy as OFA trains with it, with its constraints and regularisers.

The smoothing mass of a token goes to the tokens that are allowed at its position: all of them, a
range of ids (location bins) or what a trie of answers permits. Disallowed tokens leave the softmax.

Dimensions: B batch, T target tokens, V vocabulary, N labelled tokens, K tokens that are allowed
anywhere (V without a range), P allowed tokens listed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PAD = 1
EOS = 2
SPECIALS = 4
"""Ids below this one stay allowed under a range."""


class LossOutput(NamedTuple):
    """Sums over labelled tokens; divide by sample_size for the mean."""

    loss_sum: Tensor
    """What training minimises, scalar float32."""
    nll_sum: Tensor
    """Negative log-likelihood of the labels, weighted by confidence; scalar, without gradient."""
    sample_size: int
    """Tokens that the sums are over."""


def label_smoothed_loss(
    logits_BTV: Tensor,
    target_BT: Tensor,
    *,
    epsilon: float,
    confidence_B: Tensor | None = None,
    allowed_range: tuple[int, int] | None = None,
    constraint_mask_BTV: Tensor | None = None,
    allowed_P3: Tensor | None = None,
    drop_worst_ratio: float = 0.0,
    rdrop_alpha: float | None = None,
    ignore_prefix_size: int = 0,
    ignore_eos: bool = False,
) -> LossOutput:
    """Label-smoothed cross-entropy, summed over tokens.

    Source: Wang et al., arXiv 2202.03052; R-Drop: Liang et al., arXiv 2106.14448.

    Args:
        logits_BTV: of any floating type; the loss is computed in float32.
        target_BT: int64 labels, pad where there is none.
        epsilon: Probability mass that smoothing takes from the label.
        confidence_B: Weight of each sample's log-probabilities (VQA's soft score).
        allowed_range: (first, end) ids that may be said beside the specials. Labels outside raise
            IndexError.
        constraint_mask_BTV: True where a token is allowed; see Trie.mask. Not with a range.
        allowed_P3: int64, row, place and id of each allowed token, for the labels where not all
            are allowed; the same as a mask that is True everywhere else. Not with a range, a mask
            or an ignored prefix or eos. See model.constraints.
        drop_worst_ratio: Share of tokens, those with the largest loss, that are left out.
        rdrop_alpha: Weight of the symmetric divergence between the two halves of the batch, which
            are two dropout passes of the same samples; None for none.
        ignore_prefix_size: Leading target positions without a loss.
        ignore_eos: Leave out the end of sentence.

    Raises:
        ValueError: Several constraints are given together, or R-Drop has an odd batch.
    """
    if sum(each is not None for each in (allowed_range, constraint_mask_BTV, allowed_P3)) > 1:
        raise ValueError("a range, a constraint mask and a list exclude each other")
    if allowed_P3 is not None and (ignore_prefix_size or ignore_eos):
        raise ValueError("a list of allowed tokens is about all labels; none can be ignored")
    if rdrop_alpha is not None and len(target_BT) % 2:
        raise ValueError(f"R-Drop needs two equal halves, not a batch of {len(target_BT)}")
    if ignore_prefix_size:
        logits_BTV = logits_BTV[:, ignore_prefix_size:]
        target_BT = target_BT[:, ignore_prefix_size:]
        if constraint_mask_BTV is not None:
            constraint_mask_BTV = constraint_mask_BTV[:, ignore_prefix_size:]
    labelled_BT = target_BT != PAD
    if ignore_eos:
        labelled_BT = labelled_BT & (target_BT != EOS)
    # Flat places and not a boolean mask: the backward pass of a mask sorts its places.
    place_N = labelled_BT.flatten().nonzero().squeeze(1)
    target_N = target_BT.flatten()[place_N]
    logits_NV = logits_BTV.flatten(0, 1).index_select(0, place_N)
    allowed_NK = None
    if allowed_range is not None:
        logits_NK, target_N = restrict(logits_NV, target_N, allowed_range)
    else:
        if constraint_mask_BTV is not None:
            allowed_NK = constraint_mask_BTV.flatten(0, 1).index_select(0, place_N)
        elif allowed_P3 is not None:
            logits_NV, target_N, allowed_NK = _listed(
                logits_NV, target_N, allowed_P3, place_N, target_BT.shape[1]
            )
        logits_NK = _masked(logits_NV, allowed_NK)
    log_probs_NK = F.log_softmax(logits_NK, dim=-1, dtype=torch.float32)
    weight_N = None
    if confidence_B is not None:
        weight_N = confidence_B.float().repeat_interleave(target_BT.shape[1])[place_N]
    return loss_of_log_probs(
        log_probs_NK,
        target_N,
        epsilon=epsilon,
        weight_N=weight_N,
        allowed_NK=allowed_NK,
        drop_worst_ratio=drop_worst_ratio,
        rdrop_alpha=rdrop_alpha,
    )


def _masked(logits_NK: Tensor, allowed_NK: Tensor | None) -> Tensor:
    return logits_NK if allowed_NK is None else logits_NK.masked_fill(~allowed_NK, float("-inf"))


def _listed(
    logits_NV: Tensor, target_N: Tensor, allowed_P3: Tensor, place_N: Tensor, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits [N, K], labels as columns of them and the mask [N, K] of listed tokens.

    A label without any listed token may be all; where there is none such, only the columns that are
    listed at all are kept, which are few.
    """
    row_P, at_P, id_P = allowed_P3.unbind(1)
    # place_N rises, so a flat place is found by search.
    label_P = torch.searchsorted(place_N, row_P * length + at_P)
    free_N = torch.ones_like(target_N, dtype=torch.bool)
    free_N[label_P] = False
    if not bool(free_N.any()):
        column_K, id_P = id_P.unique(return_inverse=True)
        logits_NV = logits_NV.index_select(1, column_K)
        target_N = torch.searchsorted(column_K, target_N)
    allowed_NK = free_N[:, None].repeat(1, logits_NV.shape[1])
    allowed_NK[label_P, id_P] = True
    return logits_NV, target_N, allowed_NK


def restrict(
    values_NV: Tensor, target_N: Tensor, allowed_range: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Keep the columns of the specials and of a range of ids.

    Returns:
        the values [N, K] and the labels as columns of them; -1 for a label that is not allowed.
    """
    first, end = allowed_range
    values_NK = torch.cat([values_NV[:, :SPECIALS], values_NV[:, first:end]], dim=1)
    inside_N = (target_N >= first) & (target_N < end)
    column_N = torch.where(inside_N, target_N - first + SPECIALS, -1)
    return values_NK, torch.where(target_N < SPECIALS, target_N, column_N)


def loss_of_log_probs(
    log_probs_NK: Tensor,
    target_N: Tensor,
    *,
    epsilon: float,
    weight_N: Tensor | None = None,
    allowed_NK: Tensor | None = None,
    drop_worst_ratio: float = 0.0,
    rdrop_alpha: float | None = None,
) -> LossOutput:
    """The loss of labelled tokens whose log-probabilities are known.

    Args:
        log_probs_NK: float32, -inf where a token is not allowed.
        target_N: Label of each token, a column of log_probs_NK.
        epsilon: Probability mass that smoothing takes from the label.
        weight_N: Factor on a token's log-probabilities.
        allowed_NK: False where log_probs_NK is -inf; None where nothing is.
        drop_worst_ratio: Share of tokens that are left out.
        rdrop_alpha: Weight of the divergence between the first and the second half of the tokens.
    """
    nll_N, spread_N, allowed_count = _token_terms(log_probs_NK, target_N, allowed_NK)
    # The small constant keeps a lone allowed token finite; its two terms are zero then.
    share = epsilon / (allowed_count - 1 + 1e-6)
    loss_N = (1 - epsilon - share) * nll_N + share * spread_N
    if weight_N is not None:
        nll_N, loss_N = weight_N * nll_N, weight_N * loss_N
    kept_M = _easiest(loss_N.detach(), drop_worst_ratio, halves=rdrop_alpha is not None)
    if kept_M is not None:
        nll_N, loss_N = nll_N[kept_M], loss_N[kept_M]
    loss_sum = loss_N.sum()
    if rdrop_alpha is not None:
        if weight_N is not None:
            log_probs_NK = log_probs_NK * weight_N[:, None]
        if allowed_NK is not None:
            log_probs_NK = log_probs_NK.masked_fill(~allowed_NK, float("-inf"))
        if kept_M is not None:
            log_probs_NK = log_probs_NK[kept_M]
        loss_sum = loss_sum + rdrop_alpha * symmetric_divergence(log_probs_NK)
    return LossOutput(loss_sum, nll_N.detach().sum(), loss_N.numel())


def kept_tokens(tokens: int, drop_worst_ratio: float) -> int:
    """Return how many of some labelled tokens are left when those with the largest loss go."""
    return int(tokens * (1 - drop_worst_ratio)) if drop_worst_ratio > 0 else tokens


def _token_terms(
    log_probs_NK: Tensor, target_N: Tensor, allowed_NK: Tensor | None
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Return the label's and the summed negative log-probabilities [N] and the allowed tokens."""
    nll_N = -log_probs_NK.gather(1, target_N[:, None]).squeeze(1)
    if allowed_NK is None:
        return nll_N, -log_probs_NK.sum(dim=1), log_probs_NK.shape[1]
    spread_N = -log_probs_NK.masked_fill(~allowed_NK, 0.0).sum(dim=1)
    return nll_N, spread_N, allowed_NK.sum(dim=1)


def _easiest(loss_N: Tensor, drop_ratio: float, *, halves: bool) -> Tensor | None:
    """Return the tokens with the smallest losses; with halves, the first half decides for both."""
    if drop_ratio <= 0:
        return None
    count = len(loss_N) // 2 if halves else len(loss_N)
    kept_M = loss_N[:count].topk(kept_tokens(count, drop_ratio), largest=False).indices
    return torch.cat([kept_M, kept_M + count]) if halves else kept_M


def symmetric_divergence(log_probs_NK: Tensor) -> Tensor:
    """Half the sum of both Kullback-Leibler divergences between the two halves of the rows.

    Tokens that are impossible in both halves (-inf) add nothing.
    """
    first, second = log_probs_NK.chunk(2)
    possible = torch.isfinite(first) & torch.isfinite(second)
    first = first.masked_fill(~possible, 0.0)
    second = second.masked_fill(~possible, 0.0)
    # p(log p - log q) + q(log q - log p) in one product.
    return 0.5 * ((first.exp() - second.exp()) * (first - second)).sum()
