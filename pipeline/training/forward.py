"""The module that an engine runs: the tuned model under the precision of the run."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.tuning import TunedModel
from pipeline.errors import ConfigError


class Forward(nn.Module):
    """The tuned model under the precision of the run."""

    def __init__(self, model: TunedModel, precision: str, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self._autocast = functools.partial(
            torch.autocast, device.type, dtype=torch.bfloat16, enabled=precision == "bf16"
        )

    def forward(
        self, *inputs: Tensor, measure: Callable[[TunedModel], None] | None = None
    ) -> Tensor | None:
        """Return logits `[B, T, V]`.

        Args:
            *inputs: Source, images, which of them are present, and decoder ids of a batch.
            measure: Given the model instead of inputs, inside this module's pass: there the
                parameters of a sharded model come to whoever asks for them.
        """
        if measure is not None:
            measure(self.model)
            return None
        with self._autocast():
            logits: Tensor = self.model(*inputs)
        return logits


def compile_layers(model: TunedModel, device: torch.device) -> None:
    """Compiles the layers of both stacks: all layers of a stack share what is compiled.

    Raises:
        ConfigError: there is no compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ConfigError(f"engine.compile: no C++ compiler {compiler!r}; set CXX, or leave it out")
    for layer in [*model.base.encoder.layers, *model.base.decoder.layers]:
        layer.compile()
