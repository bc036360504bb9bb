"""Prefix tuning: trainable keys and values in front of every layer's self-attention.

Dimensions: L prompt length, D width, H heads, K head width, W values of an entry in all layers.
Source: arXiv 2208.02532; the slot layout (key, value, layer by layer) is the published code's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.errors import CheckpointError
from model.ofa import OFA, OFAConfig
from model.ofa.prompts import LayerPrompt, Prompts, StackPrompt
from model.tuning.config import PrefixConfig, TuningConfig
from model.tuning.method import TuningMethod, fill


class StackPrefix(nn.Module):
    """The prompts of one stack: an embedding `[L, slots * D]`, directly or through an MLP."""

    def __init__(self, base: OFAConfig, depth: int, config: PrefixConfig) -> None:
        super().__init__()
        layers = list(range(depth)) if config.layers is None else sorted(set(config.layers))
        outside = [index for index in layers if not 0 <= index < depth]
        if outside:
            raise ValueError(
                f"tuning.prefix.layers: {outside[0]} is not among the layers 0..{depth - 1}"
            )
        self.depth, self.layers = depth, layers
        self.length, self.dropout = config.length, config.dropout
        self.heads, self.head_dim = base.attention_heads, base.head_dim
        width = 2 * len(layers) * base.d_model
        direct = config.projection_dim is None
        self.embedding = nn.Embedding(config.length, width if direct else base.d_model)
        nn.init.normal_(self.embedding.weight, std=config.init_std)
        self.scale_W: Tensor | None
        # AdamW's step is the same whatever scale a gradient has, so values that are a multiple of
        # what is trained move by that multiple. It follows from the settings, hence is not saved.
        scale_W = _layer_scales(len(layers), config.layer_lr_decay, 2 * base.d_model)
        self.register_buffer("scale_W", scale_W, persistent=False)
        if scale_W is not None:
            self.embedding.weight.data /= scale_W
        self.trans: nn.Sequential | None = None
        if config.projection_dim is not None:
            self.trans = nn.Sequential(
                nn.Linear(base.d_model, config.projection_dim),
                nn.ReLU(),
                nn.Linear(config.projection_dim, width),
            )

    def forward(self) -> StackPrompt:
        """Return one prompt a layer, keys and values `[1, H, L, K]`, None for layers without."""
        values = self.embedding(torch.arange(self.length, device=self.embedding.weight.device))
        if self.trans is not None:
            values = self.trans(values)
        if self.scale_W is not None:
            values = values * self.scale_W
        values = F.dropout(values, self.dropout, self.training)
        slots = values.view(self.length, 2 * len(self.layers), self.heads, self.head_dim)
        slots = slots.permute(1, 2, 0, 3)[:, None]
        prompts: list[LayerPrompt | None] = [None] * self.depth
        for slot, layer in enumerate(self.layers):
            prompts[layer] = LayerPrompt(slots[2 * slot], slots[2 * slot + 1])
        return tuple(prompts)

    @torch.no_grad()
    def load_plain(self, rows: list[Tensor]) -> None:
        """Take plain keys and values, `[H, L, K]` each, in the order of the slots."""
        flat = torch.stack(rows).permute(2, 0, 1, 3).reshape(self.length, -1)
        if self.scale_W is not None:
            flat = flat / self.scale_W.to(flat.device)
        self.embedding.weight.copy_(flat)


def _layer_scales(layers: int, decay: float, columns: int) -> Tensor | None:
    """Return `[layers * columns]`: 1 for the highest layer, times `decay` for each below it."""
    if decay == 1.0:
        return None
    powers = torch.arange(layers - 1, -1, -1, dtype=torch.float32)
    return (decay**powers).repeat_interleave(columns)


class PrefixTuning(TuningMethod):
    """The prompts of both stacks, or of the chosen one, before a frozen base."""

    def __init__(self, base: OFAConfig, config: TuningConfig) -> None:
        super().__init__(base, config)
        prefix = config.prefix
        self.encoder: StackPrefix | None = None
        self.decoder: StackPrefix | None = None
        if prefix.stacks in ("both", "encoder"):
            self.encoder = StackPrefix(base, base.encoder_layers, prefix)
        if prefix.stacks in ("both", "decoder"):
            self.decoder = StackPrefix(base, base.decoder_layers, prefix)

    def prompts(self) -> Prompts:
        """Return the prompts, shared by a batch."""
        return Prompts(
            encoder=None if self.encoder is None else self.encoder(),
            decoder=None if self.decoder is None else self.decoder(),
        )

    @torch.no_grad()
    def export_state(self, base: OFA) -> dict[str, Tensor]:
        """Return plain `[H, L, K]` tensors by `<stack>.<layer>.<key|value>`; an MLP is folded."""
        was_training = self.training
        self.eval()
        tensors: dict[str, Tensor] = {}
        for name, stack in self._stacks():
            for layer, prompt in enumerate(stack()):
                if prompt is not None:
                    tensors[f"{name}.{layer}.key"] = prompt.key[0].clone().contiguous().cpu()
                    tensors[f"{name}.{layer}.value"] = prompt.value[0].clone().contiguous().cpu()
        self.train(was_training)
        return tensors

    def load_exported(self, base: OFA, tensors: dict[str, Tensor]) -> None:
        """Take plain keys and values as exported.

        Raises:
            CheckpointError: a tensor is missing, unexpected or of another shape, or this prompt is
                behind an MLP and can't hold plain values.
        """
        if any(stack.trans is not None for _, stack in self._stacks()):
            raise CheckpointError("a reparameterised prompt can't be loaded from plain values")
        plain = self.export_state(base)
        fill(plain, tensors)
        for name, stack in self._stacks():
            parts = [(layer, part) for layer in stack.layers for part in ("key", "value")]
            stack.load_plain([plain[f"{name}.{layer}.{part}"] for layer, part in parts])

    def _stacks(self) -> list[tuple[str, StackPrefix]]:
        both = (("encoder", self.encoder), ("decoder", self.decoder))
        return [(name, stack) for name, stack in both if stack is not None]
