"""What a tuning method hands to the model: key/value prompts and adapters, as an argument.

A prompt is handed down the layers explicitly instead of living in a cache: activation
checkpointing, beam search and a batch whose rows carry different prompts take the same path.

Dimensions: B batch (or 1, shared by the batch), H heads, L prompt length, K head width,
N positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

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
