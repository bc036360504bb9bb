"""Scoring of all candidate answers, instead of searching one.

Dimensions: B sources, S source tokens, P tokens of a decoder prompt, A candidates, M rows of one
pass (candidates of one source adjacent), T target tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.ofa.encoder import EncoderOutput
from model.ofa.model import OFA
from model.ofa.prompts import Prompts
from model.trie import Trie

_ROWS_PER_PASS = 256
_PAD = 1


@torch.no_grad()
def score_candidates(
    model: OFA,
    source_ids_BS: Tensor,
    images_BCHW: Tensor | None = None,
    image_present_B: Tensor | None = None,
    *,
    candidates: Sequence[Sequence[int]],
    prompts: Prompts | None = None,
    prefix_ids_BP: Tensor | None = None,
) -> Tensor:
    """Score every candidate answer for every source. Set the model to eval before.

    The source is encoded once, however many candidates there are.

    Args:
        model: The base.
        source_ids_BS: int64, bos first, eos last, right-padded.
        images_BCHW: float, scaled to -1..1.
        image_present_B: bool, False for sources without an image.
        candidates: Ids of the answers without bos and eos.
        prompts: Shared by the batch or one for each source.
        prefix_ids_BP: int64 decoder prompts without bos, right-padded; here they may hold eos.

    Returns:
        float32 [B, A]: the sum of the log-probabilities of the answer's tokens and eos, each
        normalised over what the candidates allow there.
    """
    source = model.encode(source_ids_BS, images_BCHW, image_present_B, prompts)
    trie = Trie(candidates, eos=model.config.vocab.eos)
    heads = _heads(source_ids_BS, prefix_ids_BP, model.config.vocab.bos)
    pairs = [(row, answer) for row in range(len(heads)) for answer in range(len(candidates))]
    scores = []
    for start in range(0, len(pairs), _ROWS_PER_PASS):
        chunk = pairs[start : start + _ROWS_PER_PASS]
        rows_M = torch.tensor([row for row, _ in chunk], device=source_ids_BS.device)
        decoder_MT, target_MT = _targets(
            [heads[row] for row, _ in chunk],
            [[*candidates[answer], trie.eos] for _, answer in chunk],
            source_ids_BS.device,
        )
        chosen = prompts.select(rows_M) if prompts is not None else None
        scores.append(_score(model, source.select(rows_M), decoder_MT, target_MT, trie, chosen))
    return torch.cat(scores).view(len(heads), len(candidates))


def _heads(source_ids_BS: Tensor, prefix_ids_BP: Tensor | None, bos: int) -> list[list[int]]:
    if prefix_ids_BP is None:
        return [[bos] for _ in range(len(source_ids_BS))]
    return [[bos, *(i for i in row if i != _PAD)] for row in prefix_ids_BP.tolist()]


def _targets(
    heads: list[list[int]], answers: list[list[int]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return decoder inputs and labels `[M, T]`; the labels are pad over the decoder prompt."""
    length = max(len(head) + len(answer) - 1 for head, answer in zip(heads, answers, strict=True))
    decoder_MT = torch.full((len(heads), length), _PAD)
    target_MT = torch.full((len(heads), length), _PAD)
    for row, (head, answer) in enumerate(zip(heads, answers, strict=True)):
        end = len(head) + len(answer) - 1
        decoder_MT[row, :end] = torch.tensor([*head, *answer[:-1]])
        target_MT[row, len(head) - 1 : end] = torch.tensor(answer)
    return decoder_MT.to(device), target_MT.to(device)


def _score(
    model: OFA,
    source: EncoderOutput,
    decoder_MT: Tensor,
    target_MT: Tensor,
    trie: Trie,
    prompts: Prompts | None,
) -> Tensor:
    """Return the summed log-probability `[M]` of each row's labels."""
    logits_MTV, _ = model.decode(decoder_MT, source, prompts)
    allowed_MTV = trie.mask(target_MT, logits_MTV.shape[-1])
    labelled_MT = target_MT != _PAD
    logits_MTV = logits_MTV.float().masked_fill(
        ~allowed_MTV & labelled_MT[..., None], float("-inf")
    )
    log_probs_MTV = F.log_softmax(logits_MTV, dim=-1)
    token_MT = log_probs_MTV.gather(-1, target_MT[..., None]).squeeze(-1)
    return token_MT.masked_fill(~labelled_MT, 0.0).sum(dim=1)
