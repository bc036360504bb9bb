"""First values of prompts that are not drawn at random: another prompt's, or the base's own.

Dimensions: B batch, S source tokens, T target tokens, N positions of a stack, L prompt length,
H heads, K head width, D width.
Source: Li and Liang, arXiv 2101.00190, section 7.4: prefixes that start as activations of real
text learn faster than random ones where data are few.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.ofa import OFA
from model.ofa.decoder import DecoderLayer
from model.ofa.encoder import EncoderLayer

_ENTRY = re.compile(r"(encoder|decoder)\.(\d+)\.(key|value)")
"""Name of a layer's keys or values, `[H, L, K]`, among the tensors of a method."""


class Examples(NamedTuple):
    """Samples whose activations are looked at."""

    source_ids_BS: Tensor
    images_BCHW: Tensor
    image_present_B: Tensor
    decoder_ids_BT: Tensor


def resized(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fit another prompt to a prompt that may be longer or shorter.

    Entries have no order and no position, so a shorter prompt takes the first of them, and a
    longer one keeps its own values behind them.

    Args:
        own: keys and values as drawn, `[H, L, K]`, and what else the method exports.
        given: the same of another prompt, of any length.

    Returns:
        `given`, with every prompt as long as in `own`; what differs in more than its length is
        left as it is, for the one who loads it to refuse.
    """
    fitted = dict(given)
    for name, tensor in own.items():
        other = given.get(name)
        if other is None or _ENTRY.fullmatch(name) is None or not _same_heads(tensor, other):
            continue
        taken = min(tensor.shape[1], other.shape[1])
        fitted[name] = torch.cat([other[:, :taken], tensor[:, taken:].to(other.dtype)], dim=1)
    return fitted


def _same_heads(one: Tensor, other: Tensor) -> bool:
    return one.dim() == other.dim() == 3 and one.shape[::2] == other.shape[::2]


@torch.no_grad()
def activated(
    base: OFA, own: Mapping[str, Tensor], examples: Examples, *, seed: int
) -> dict[str, Tensor]:
    """Let prompts begin as keys and values that the base computes for real samples.

    Each entry of a stack is one position of one sample, the same in all layers: of the encoder a
    piece of an image or a token of an instruction, half of each where there are images, of the
    decoder a token of a target. Equal tokens have equal keys in the first layer and would learn
    the same for ever, so what was drawn at random is added.

    Args:
        base: the frozen base.
        own: keys and values as drawn, `[H, L, K]`, by name; other tensors are kept.
        examples: samples to learn from, on the base's device.
        seed: chooses the positions.

    Returns:
        `own` with other keys and values; a function of the arguments alone.
    """
    was_training = base.training
    base.eval()
    source = base.encode(*examples[:3], keep_layer_inputs=True)
    _, decoder_inputs = base.decode(examples.decoder_ids_BT, source)
    base.train(was_training)
    seen_BN = ~source.padding_BN
    text_BS = examples.source_ids_BS.shape[1]
    image_BN = torch.arange(seen_BN.shape[1], device=seen_BN.device) < seen_BN.shape[1] - text_BS
    target_BT = examples.decoder_ids_BT != base.config.vocab.pad
    kinds = {"encoder": [seen_BN & ~image_BN, seen_BN & image_BN], "decoder": [target_BT]}
    inputs = {"encoder": source.layer_inputs, "decoder": decoder_inputs}
    layers = {"encoder": base.encoder.layers, "decoder": base.decoder.layers}
    values = dict(own)
    for name, tensor in own.items():
        match = _ENTRY.fullmatch(name)
        if match is None:
            continue
        stack, layer, part = match[1], int(match[2]), match[3]
        chosen_L = _chosen(kinds[stack], tensor.shape[1], stack, seed)
        x_1LD = inputs[stack][layer].flatten(0, 1)[chosen_L][None]
        key_1HLK, value_1HLK = _projected(layers[stack][layer], x_1LD)
        values[name] = tensor + (key_1HLK if part == "key" else value_1HLK)[0].to(tensor)
    return values


def _projected(layer: nn.Module, x_1LD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the keys and values `[1, H, L, K]` of a layer's self-attention."""
    assert isinstance(layer, EncoderLayer | DecoderLayer)
    return layer.self_attn.project_source(layer.self_attn_layer_norm(x_1LD))


def _chosen(kinds: Sequence[Tensor], length: int, stack: str, seed: int) -> Tensor:
    """Draw `length` places of a flattened batch, from each kind of places that there is alike."""
    generator = torch.Generator().manual_seed(seed)
    rows = [kind.flatten().nonzero()[:, 0].cpu() for kind in kinds]
    shuffled = [row[torch.randperm(len(row), generator=generator)] for row in rows]
    # The smallest kind first: what it lacks, the others give.
    chosen: list[Tensor] = []
    for place, row in enumerate(sorted(shuffled, key=len)):
        left = length - sum(map(len, chosen))
        chosen.append(row[: left // (len(shuffled) - place)])
    found = torch.cat(chosen)
    # Short targets: the same token begins several entries.
    return found.repeat(-(-length // len(found)))[:length]
