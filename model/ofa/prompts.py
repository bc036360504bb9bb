"""What a tuning method hands to the model: key/value prompts and adapters, as an argument.

A prompt is handed down the layers explicitly instead of living in a cache: activation
checkpointing, beam search and a batch whose rows carry different prompts take the same path.

Dimensions: B batch (or 1, shared by the batch), H heads, L prompt length, K head width,
N positions, D width, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class LayerPrompt(NamedTuple):
    """Keys and values put in front of one layer's self-attention, each `[B or 1, H, L, K]`."""

    key: Tensor
    value: Tensor


StackPrompt = tuple[LayerPrompt | None, ...]
"""One entry a layer; None where a layer carries no prompt."""

LayerAdapter = Callable[[Tensor], Tensor]
"""Maps what a layer's feed-forward block adds to the residual stream, `[B, N, D]`, to its like."""

StackAdapters = tuple[LayerAdapter | None, ...]
"""One entry a layer; None where a layer carries no adapter."""


def prompt_lengths(stack: StackPrompt | None, depth: int) -> tuple[int, ...]:
    """Return the number of prompt entries of each of `depth` layers."""
    if stack is None:
        return (0,) * depth
    return tuple(0 if prompt is None else prompt.key.shape[2] for prompt in stack)


@dataclass(frozen=True)
class Prompts:
    """The prompts and adapters of both stacks; None where a stack carries none."""

    encoder: StackPrompt | None = None
    decoder: StackPrompt | None = None
    encoder_visible_BL: Tensor | None = None
    """False at the filler of shorter prompts, where the rows' prompts differ in length."""
    decoder_visible_BL: Tensor | None = None
    encoder_adapters: StackAdapters | None = None
    """Shared by the batch, as are those of the decoder."""
    decoder_adapters: StackAdapters | None = None

    def select(self, rows_N: Tensor) -> Prompts:
        """Return the prompts of the given batch rows `[N]`; what is shared stays shared."""

        def pick(tensor: Tensor) -> Tensor:
            return tensor if tensor.shape[0] == 1 else tensor.index_select(0, rows_N)

        def pick_stack(stack: StackPrompt | None) -> StackPrompt | None:
            if stack is None:
                return None
            return tuple(
                None if p is None else LayerPrompt(pick(p.key), pick(p.value)) for p in stack
            )

        def pick_mask(mask_BL: Tensor | None) -> Tensor | None:
            return None if mask_BL is None else pick(mask_BL)

        return Prompts(
            encoder=pick_stack(self.encoder),
            decoder=pick_stack(self.decoder),
            encoder_visible_BL=pick_mask(self.encoder_visible_BL),
            decoder_visible_BL=pick_mask(self.decoder_visible_BL),
            encoder_adapters=self.encoder_adapters,
            decoder_adapters=self.decoder_adapters,
        )


def stack_prompts(prompts: Sequence[Prompts]) -> Prompts:
    """Join prompts of one row each, so that `select` gives every row of a batch one of them.

    Shorter ones get filler behind them, which no query sees. A prompt without a stack is one of
    length zero there.

    Args:
        prompts: P prompts, each shared by a batch (leading dimension 1).

    Returns:
        prompts with the leading dimension P, in the given order.

    Raises:
        ValueError: they lie on different layers, or there are adapters, which rows cannot choose.
    """
    if any(p.encoder_adapters is not None or p.decoder_adapters is not None for p in prompts):
        raise ValueError("rows of a batch can have different prompts, but not different adapters")
    if len(prompts) == 1:
        return prompts[0]
    encoder, encoder_visible_PL = _join([prompt.encoder for prompt in prompts])
    decoder, decoder_visible_PL = _join([prompt.decoder for prompt in prompts])
    return Prompts(
        encoder=encoder,
        decoder=decoder,
        encoder_visible_BL=encoder_visible_PL,
        decoder_visible_BL=decoder_visible_PL,
    )


def _join(stacks: Sequence[StackPrompt | None]) -> tuple[StackPrompt | None, Tensor | None]:
    """Join one stack of several prompts; also where its filler is, None without any."""
    there = [stack for stack in stacks if stack is not None]
    if not there:
        return None, None
    layers = {tuple(prompt is not None for prompt in stack) for stack in there}
    if len(layers) > 1:
        raise ValueError("prompts on different layers cannot share a batch")
    like = next(prompt.key for prompt in there[0] if prompt is not None)
    lengths = [max(prompt_lengths(stack, 0), default=0) for stack in stacks]
    longest = max(lengths)
    joined = tuple(
        None
        if first is None
        else LayerPrompt(
            _rows([None if s is None else s[layer] for s in stacks], 0, longest, like),
            _rows([None if s is None else s[layer] for s in stacks], 1, longest, like),
        )
        for layer, first in enumerate(there[0])
    )
    if min(lengths) == longest:
        return joined, None
    place_L = torch.arange(longest, device=like.device)
    return joined, place_L < torch.tensor(lengths, device=like.device)[:, None]


def _rows(prompts: Sequence[LayerPrompt | None], part: int, length: int, like: Tensor) -> Tensor:
    """Return the keys (part 0) or values of one layer, `[P, H, length, K]`."""
    nothing = like.new_zeros(1, like.shape[1], 0, like.shape[3])
    rows = [nothing if prompt is None else prompt[part] for prompt in prompts]
    return torch.cat([F.pad(row, (0, 0, 0, length - row.shape[2])) for row in rows])
