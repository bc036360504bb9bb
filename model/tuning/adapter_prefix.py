"""Adapters and prompts on one frozen base: both methods, trained together."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from model.ofa import OFA, OFAConfig, Prompts
from model.tuning.adapter import AdapterTuning
from model.tuning.config import TuningConfig
from model.tuning.method import TuningMethod, fill
from model.tuning.prefix import PrefixTuning


class AdapterPrefixTuning(TuningMethod):
    """The two side by side; an artifact holds the tensors of both, whose names differ."""

    def __init__(self, base: OFAConfig, config: TuningConfig) -> None:
        super().__init__(base, config)
        self.adapter = AdapterTuning(base, config)
        self.prefix = PrefixTuning(base, config)

    def prompts(self) -> Prompts:
        """Return the prompts with the adapters."""
        adapters = self.adapter.prompts()
        return dataclasses.replace(
            self.prefix.prompts(),
            encoder_adapters=adapters.encoder_adapters,
            decoder_adapters=adapters.decoder_adapters,
        )

    def export_state(self, base: OFA) -> dict[str, Tensor]:
        """Return the tensors of both."""
        return self.adapter.export_state(base) | self.prefix.export_state(base)

    def load_exported(self, base: OFA, tensors: dict[str, Tensor]) -> None:
        """Take the tensors of both.

        Raises:
            CheckpointError: a tensor is missing, unexpected or of another shape.
        """
        adapters, prompts = self.adapter.export_state(base), self.prefix.export_state(base)
        # All of them are judged before any is taken.
        fill(adapters | prompts, tensors)
        self.adapter.load_exported(base, {name: tensors[name] for name in adapters})
        self.prefix.load_exported(base, {name: tensors[name] for name in prompts})
