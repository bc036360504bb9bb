"""A base with a tuning method: the module that training optimises and evaluation runs.

Dimensions: B batch, S source tokens, T target tokens, V vocabulary, C, H, W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

from torch import Tensor, nn

from model.ofa import OFA, Prompts
from model.tuning.adapter import AdapterTuning
from model.tuning.adapter_prefix import AdapterPrefixTuning
from model.tuning.bitfit import BitFit
from model.tuning.config import TuningConfig
from model.tuning.finetune import FineTuning
from model.tuning.method import TuningMethod, copied, fill
from model.tuning.prefix import PrefixTuning
from model.tuning.prefix_bank import PrefixBank

_METHODS: dict[str, type[TuningMethod]] = {
    "prefix": PrefixTuning,
    "adapter": AdapterTuning,
    "adapter_prefix": AdapterPrefixTuning,
    "bitfit": BitFit,
    "finetune": FineTuning,
}


class ParameterCounts(NamedTuple):
    """How many numbers training changes, and how many the base has; buffers are not counted."""

    trainable: int
    base: int


class TunedModel(nn.Module):
    """A base and what is tuned; which method it is, only the method itself knows."""

    def __init__(self, base: OFA, config: TuningConfig, method: TuningMethod) -> None:
        """Joins them.

        Args:
            base: The base, which the method has prepared.
            config: What the method was made from.
            method: What is tuned.
        """
        super().__init__()
        self.base = base
        self.config = config
        self.method = method

    @property
    def prompt_names(self) -> tuple[str, ...]:
        """The prompts that rows of a batch choose from; empty where all rows get the same."""
        return self.method.names if isinstance(self.method, PrefixBank) else ()

    def alone(self, name: str) -> TunedModel:
        """Return the same base with one of several prompts, the live one, for all rows."""
        assert isinstance(self.method, PrefixBank), "only several prompts have one to choose"
        return TunedModel(self.base, self.config.alone(name), self.method.prompt(name))

    @property
    def freezes_base(self) -> bool:
        """Whether training must leave the base as it was, byte for byte."""
        return self.method.freezes_base

    @property
    def makes_base(self) -> bool:
        """Whether what comes out is a base of its own, and no artifact for this one."""
        return self.method.makes_base

    def trained_in_base(self) -> frozenset[str]:
        """Return the names of the base's parameters and buffers that training may change."""
        return frozenset() if self.freezes_base else frozenset(self.method.trained(self.base))

    def parameter_counts(self) -> ParameterCounts:
        """Count the trained parameters and those of the base."""
        trained = self.method.trained(self.base).values()
        # By identity, because a tied parameter has two names.
        distinct = {id(tensor): tensor for tensor in trained if isinstance(tensor, nn.Parameter)}
        return ParameterCounts(
            trainable=sum(parameter.numel() for parameter in distinct.values()),
            base=sum(parameter.numel() for parameter in self.base.parameters()),
        )

    def prompts(self) -> Prompts | None:
        """Return what is handed to the base in a pass or generation; None where nothing is.

        Of several prompts, a row each: `select` deals them to the rows of a batch.
        """
        return self.method.prompts()

    def forward(
        self,
        source_ids_BS: Tensor,
        images_BCHW: Tensor | None,
        image_present_B: Tensor | None,
        decoder_ids_BT: Tensor,
        prompt_index_B: Tensor | None = None,
    ) -> Tensor:
        """Return logits `[B, T, V]`; the index (int64) is into `prompt_names`, where there are."""
        prompts = self.method.prompts_of_rows(prompt_index_B)
        logits_BTV: Tensor = self.base(
            source_ids_BS, images_BCHW, image_present_B, decoder_ids_BT, prompts
        )
        return logits_BTV

    def train(self, mode: bool = True) -> Self:
        """Switch training mode; the base keeps BatchNorm in eval unless it is pretrained."""
        super().train(mode)
        self.base.train(mode)
        return self

    def trainable_state(self) -> dict[str, Tensor]:
        """Return CPU copies of what training changes."""
        return copied(self.method.trained(self.base))

    def load_trainable_state(self, tensors: dict[str, Tensor]) -> None:
        """Load what `trainable_state` returned.

        Raises:
            CheckpointError: names or shapes differ.
        """
        fill(self.method.trained(self.base), tensors)

    def export_state(self) -> dict[str, Tensor]:
        """Return the tensors of a prompt artifact.

        Raises:
            CheckpointError: the method has no artifact of its own; save its base instead.
        """
        return self.method.export_state(self.base)

    def load_exported(self, tensors: dict[str, Tensor]) -> None:
        """Load the tensors of a prompt artifact.

        Raises:
            CheckpointError: the method has no artifact, or the tensors don't fit.
        """
        self.method.load_exported(self.base, tensors)


def build_tuned_model(
    base: OFA, config: TuningConfig, prompt_names: Sequence[str] = ()
) -> TunedModel:
    """Put the configured method onto a base and freeze in it what the method doesn't train.

    Args:
        base: The base.
        config: The method and its settings.
        prompt_names: The prompts of `tuning.prefix.per_task`; empty without.

    Raises:
        ValueError: the method doesn't fit the base, such as a layer that it doesn't have, or the
            names are missing.
    """
    method: TuningMethod
    if config.prefix.per_task:
        method = PrefixBank(base.config, config, prompt_names)
    else:
        method = _METHODS[config.method](base.config, config)
    method.prepare(base)
    return TunedModel(base, config, method)


def leaves_base_alone(config: TuningConfig) -> bool:
    """Whether a method writes nothing into its base, so that several can share one in memory."""
    return _METHODS[config.method].freezes_base
