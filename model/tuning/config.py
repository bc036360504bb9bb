"""Settings of the tuning methods."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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
    per_task: bool = False
    """Train one prompt for each task of the run, all at once on the same base. Each learns from its
    own rows as if it were trained alone, and has a best checkpoint and an artifact of its own."""
    task_lengths: dict[str, int] | None = None
    """With per_task: prompt entries a layer of some tasks; the others have `length`."""
    layer_lr_decay: float = 1.0
    """Factor on the learning rate from each layer to the one below it, in each stack; the highest
    prompts learn at the full rate. Above 1 the lowest layers learn fastest."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"tuning.prefix.length: {self.length} is not at least 1")
        if self.task_lengths is not None and not self.per_task:
            raise ValueError("tuning.prefix.task_lengths: needs tuning.prefix.per_task=true")
        for task, length in (self.task_lengths or {}).items():
            if length < 1:
                raise ValueError(f"tuning.prefix.task_lengths.{task}: {length} is not at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"tuning.prefix.dropout: {self.dropout} is not in [0, 1)")
        if self.projection_dim is not None and self.projection_dim < 1:
            raise ValueError(f"tuning.prefix.projection_dim: {self.projection_dim} is below 1")
        if self.init_std < 0:
            raise ValueError(f"tuning.prefix.init_std: {self.init_std} is below 0")
        if self.layer_lr_decay <= 0:
            raise ValueError(f"tuning.prefix.layer_lr_decay: {self.layer_lr_decay} is not above 0")
        if self.layer_lr_decay != 1.0 and self.projection_dim is not None:
            raise ValueError(
                f"tuning.prefix.layer_lr_decay: {self.layer_lr_decay} needs projection_dim null,"
                " since one MLP makes the prompts of all layers"
            )

    def alone(self, task: str) -> PrefixConfig:
        """Return the settings of one task's prompt, as a run of that task alone has them."""
        length = (self.task_lengths or {}).get(task, self.length)
        return replace(self, length=length, per_task=False, task_lengths=None)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Bottlenecks behind the feed-forward block of every layer (arXiv 1902.00751)."""

    dim: int = 100
    """Inner width of an adapter; the published baseline on OFA-large has 100."""
    init_std: float = 0.02
    """Standard deviation of the first weights; biases begin at zero."""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"tuning.adapter.dim: {self.dim} is not at least 1")
        if self.init_std < 0:
            raise ValueError(f"tuning.adapter.init_std: {self.init_std} is below 0")


@dataclass(frozen=True, kw_only=True)
class BitfitConfig:
    """Biases of the base (arXiv 2106.10199); BatchNorm's statistics stay frozen either way."""

    biases: Literal["published", "all"] = "published"
    """`published`: of the LayerNorms before each block and of the feed-forward blocks, as the
    paper's baseline (arXiv 2208.02532); `all`: every bias of the base, the image trunk's too."""


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """What is trained on top of, or in, the base."""

    method: Literal["prefix", "adapter", "adapter_prefix", "bitfit", "finetune"] = "prefix"
    """`prefix` trains prompts, `adapter` bottlenecks in the layers and `adapter_prefix` both, on a
    frozen base; `bitfit` trains biases of the base, `finetune` all of it."""
    prefix: PrefixConfig = field(default_factory=PrefixConfig)
    """Settings of `prefix` and `adapter_prefix`."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """Settings of `adapter` and `adapter_prefix`."""
    bitfit: BitfitConfig = field(default_factory=BitfitConfig)
    """Settings of `bitfit`."""
    train_batch_norm: bool = False
    """With `finetune`: let BatchNorm follow the batches, as pretraining from nothing needs."""

    def __post_init__(self) -> None:
        if self.train_batch_norm and self.method != "finetune":
            raise ValueError("tuning.train_batch_norm: true needs tuning.method=finetune")
        if self.prefix.per_task and self.method != "prefix":
            raise ValueError(
                f"tuning.prefix.per_task: true needs tuning.method=prefix, not {self.method}"
            )

    def alone(self, task: str) -> TuningConfig:
        """Return the settings of one task's prompt, as a run of that task alone has them."""
        return replace(self, prefix=self.prefix.alone(task))
