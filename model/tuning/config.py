"""Settings of the tuning methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PrefixConfig:
    """Key/value prompts in front of self-attention (arXiv 2208.02532, P-Tuning v2)."""

    length: int = 64
    """Prompt entries a layer."""
    stacks: Literal["both", "encoder", "decoder"] = "both"
    """Which stacks carry prompts."""
    layers: list[int] | None = None
    """Indices of the layers with prompts, counted from 0 in each stack; None for all."""
    projection_dim: int | None = None
    """Inner width of an MLP that produces the prompts while training; None trains them directly."""
    dropout: float = 0.0
    """Share of prompt values dropped in training; the published code uses 0.2."""
    init_std: float = 0.02
    """Standard deviation of the first prompts."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"tuning.prefix.length: {self.length} is not at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"tuning.prefix.dropout: {self.dropout} is not in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """What is trained on top of, or in, the base."""

    method: Literal["prefix", "finetune"] = "prefix"
    """`prefix` freezes the base and trains prompts; `finetune` trains the whole base."""
    prefix: PrefixConfig = field(default_factory=PrefixConfig)
    """Settings of `prefix`."""
    train_batch_norm: bool = False
    """With `finetune`: let BatchNorm follow the batches, as pretraining from nothing needs."""

    def __post_init__(self) -> None:
        if self.train_batch_norm and self.method != "finetune":
            raise ValueError("tuning.train_batch_norm: true needs tuning.method=finetune")
