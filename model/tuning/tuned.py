"""A base with a tuning method: the module that training optimises and evaluation runs.

Dimensions: B batch, S source tokens, T target tokens, V vocabulary, C, H, W image.
"""

from __future__ import annotations

from typing import NamedTuple, Self

from torch import Tensor, nn

from model.errors import CheckpointError
from model.ofa import OFA, Prompts
from model.tuning.config import TuningConfig
from model.tuning.prefix import PrefixTuning


class ParameterCounts(NamedTuple):
    """How many numbers training changes, and how many the base has; buffers are not counted."""

    trainable: int
    base: int


class TunedModel(nn.Module):
    """A base and what is tuned. With `prefix` the base is frozen, buffers included."""

    def __init__(self, base: OFA, config: TuningConfig) -> None:
        super().__init__()
        self.base = base
        self.config = config
        self.method: PrefixTuning | None = None
        if config.method == "prefix":
            base.freeze()
            self.method = PrefixTuning(base.config, config.prefix)
        else:
            base.batch_norm_trains = config.train_batch_norm
            base.requires_grad_(True)

    @property
    def freezes_base(self) -> bool:
        """Whether training must leave the base as it was."""
        return self.config.method != "finetune"

    def parameter_counts(self) -> ParameterCounts:
        """Count the trained parameters and those of the base."""
        base = sum(parameter.numel() for parameter in self.base.parameters())
        if self.method is None:
            return ParameterCounts(trainable=base, base=base)
        tuned = sum(parameter.numel() for parameter in self.method.parameters())
        return ParameterCounts(trainable=tuned, base=base)

    def prompts(self) -> Prompts | None:
        """Return the prompts of one pass or generation; None when the base itself is tuned."""
        if self.method is None:
            return None
        prompts: Prompts = self.method()
        return prompts

    def forward(
        self,
        source_ids_BS: Tensor,
        images_BCHW: Tensor | None,
        image_present_B: Tensor | None,
        decoder_ids_BT: Tensor,
    ) -> Tensor:
        """Return logits `[B, T, V]`."""
        logits_BTV: Tensor = self.base(
            source_ids_BS, images_BCHW, image_present_B, decoder_ids_BT, self.prompts()
        )
        return logits_BTV

    def train(self, mode: bool = True) -> Self:
        """Switch training mode; the base keeps BatchNorm in eval unless it is pretrained."""
        super().train(mode)
        self.base.train(mode)
        return self

    def trainable_state(self) -> dict[str, Tensor]:
        """Return CPU copies of what training changes: the prompts, or the base with its buffers."""
        module: nn.Module = self.base if self.method is None else self.method
        tensors = module.state_dict()
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def load_trainable_state(self, tensors: dict[str, Tensor]) -> None:
        """Load what `trainable_state` returned.

        Raises:
            CheckpointError: names or shapes differ.
        """
        module: nn.Module = self.base if self.method is None else self.method
        try:
            module.load_state_dict(tensors)
        except RuntimeError as error:
            line = " ".join(str(error).split())
            raise CheckpointError(
                f"the saved state doesn't fit this model: {line[:300]}"
            ) from error

    def export_state(self) -> dict[str, Tensor]:
        """Return the tensors of a prompt artifact.

        Raises:
            CheckpointError: the method has no artifact of its own; save its base instead.
        """
        if self.method is None:
            raise CheckpointError("a fine-tuned base is saved as a base, not as a prompt")
        return self.method.export_state()

    def load_exported(self, tensors: dict[str, Tensor]) -> None:
        """Load the tensors of a prompt artifact.

        Raises:
            CheckpointError: the method has no artifact, or the tensors don't fit.
        """
        if self.method is None:
            raise CheckpointError("a fine-tuned base is loaded as a base, not as a prompt")
        self.method.load_exported(tensors)


def build_tuned_model(base: OFA, config: TuningConfig) -> TunedModel:
    """Put the configured method onto a base; for `prefix` this freezes the base.

    Raises:
        ValueError: the method doesn't fit the base, such as a layer that it doesn't have.
    """
    return TunedModel(base, config)
