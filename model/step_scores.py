"""The log-probabilities of one decoding step under constraints.

Dimensions: N rows, L tokens so far (bos included), V vocabulary, W windows of an n-gram's size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.losses import PAD, SPECIALS
from model.trie import Trie

_NEVER = float("-inf")


def step_log_probs(
    logits_NV: Tensor,
    tokens_NL: Tensor,
    *,
    temperature: float = 1.0,
    allowed_range: tuple[int, int] | None = None,
    trie: Trie | None = None,
    prefix_lengths: list[int] | None = None,
) -> Tensor:
    """Normalise a step's logits over the tokens that are allowed.

    Args:
        logits_NV: of any floating type.
        tokens_NL: int64, bos first.
        temperature: Divisor of the logits.
        allowed_range: (first, end) ids allowed beside the specials.
        trie: Allowed answers, which begin after bos and a row's decoder prompt.
        prefix_lengths: Tokens of each row's decoder prompt, where the trie does not hold yet.

    Returns:
        float32 [N, V]; -inf where a token is not allowed, pad included.
    """
    logits_NV = logits_NV.float() / temperature
    if allowed_range is not None:
        first, end = allowed_range
        logits_NV[:, SPECIALS:first] = _NEVER
        logits_NV[:, end:] = _NEVER
    if trie is not None:
        logits_NV.masked_fill_(~_trie_mask(trie, tokens_NL, prefix_lengths, logits_NV), _NEVER)
    log_probs_NV = F.log_softmax(logits_NV, dim=-1)
    # A row in which nothing is allowed has no distribution: softmax gives nan there.
    log_probs_NV = log_probs_NV.nan_to_num_(nan=_NEVER, neginf=_NEVER)
    log_probs_NV[:, PAD] = _NEVER
    return log_probs_NV


def force_prefix(scores_NV: Tensor, prefix_N: Tensor, *, hard: bool) -> None:
    """Prefer, or with hard leave only, the decoder prompt's token, in place.

    Without hard every other token gets one less than the least likely prompt token of the batch,
    as the published generator does, so that what a source gets depends on its neighbours.

    Args:
        scores_NV: Log-probabilities.
        prefix_N: The prompt's token of each row, pad where it has ended.
        hard: Whether other tokens are impossible.
    """
    inside_N = prefix_N != PAD
    if not bool(inside_N.any()):
        return
    wanted_N1 = scores_NV.gather(1, prefix_N[:, None])
    others = _NEVER if hard else wanted_N1[inside_N].min() - 1
    forced_NV = torch.full_like(scores_NV, 0.0) + others
    forced_NV.scatter_(1, prefix_N[:, None], wanted_N1)
    scores_NV[inside_N] = forced_NV[inside_N]


def forbid_repeats(scores_NV: Tensor, tokens_NL: Tensor, size: int) -> None:
    """Make impossible, in place, what would complete an n-gram that the row already holds.

    Args:
        scores_NV: Log-probabilities.
        tokens_NL: int64, bos first; bos counts as a token.
        size: Tokens of an n-gram.
    """
    length = tokens_NL.shape[1]
    if length < size:
        return
    windows_NWn = tokens_NL.unfold(1, size, 1)
    tail_N = tokens_NL[:, length - size + 1 :]
    begun_NW = (windows_NWn[..., :-1] == tail_N[:, None]).all(dim=-1)
    rows, places = begun_NW.nonzero(as_tuple=True)
    scores_NV[rows, windows_NWn[rows, places, -1]] = _NEVER


def _trie_mask(
    trie: Trie, tokens_NL: Tensor, prefix_lengths: list[int] | None, like_NV: Tensor
) -> Tensor:
    mask_NV = torch.zeros(like_NV.shape, dtype=torch.bool)
    for row, tokens in enumerate(tokens_NL.tolist()):
        begin = 1 + (prefix_lengths[row] if prefix_lengths else 0)
        if len(tokens) < begin:
            mask_NV[row] = True
        else:
            mask_NV[row, trie.following(tokens[begin:])] = True
    return mask_NV.to(like_NV.device)
