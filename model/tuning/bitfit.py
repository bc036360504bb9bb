"""BitFit: only biases of the base are trained.

Source: Ben Zaken et al., arXiv 2106.10199. The prompt tuning paper's baseline (arXiv 2208.02532)
trains a part of them only, those of the layers' LayerNorms and feed-forward blocks.
"""

from __future__ import annotations

from torch import Tensor

from model.ofa import OFA, OFAConfig
from model.tuning.config import TuningConfig
from model.tuning.method import TuningMethod

_PUBLISHED = ("layer_norm", "fc")
"""Parts of the names of the biases that the published code trains. The LayerNorms behind attention
and inside the feed-forward blocks, those of embeddings and positions are named otherwise."""


class BitFit(TuningMethod):
    """Trains biases in the base; all else in it stays, buffers included.

    What is kept are the biases alone. They belong to the base as it was before: its fingerprint is
    taken first, and they are put onto a base of that fingerprint.
    """

    freezes_base = False

    def __init__(self, base: OFAConfig, config: TuningConfig) -> None:
        super().__init__(base, config)
        self._which = config.bitfit.biases

    def prepare(self, base: OFA) -> None:
        """Let the chosen biases learn, and nothing else."""
        base.requires_grad_(False)
        base.frozen = False
        for bias in self.trained(base).values():
            bias.requires_grad_(True)

    def trained(self, base: OFA) -> dict[str, Tensor]:
        """Return the chosen biases by their names in the base."""
        return {
            name: parameter
            for name, parameter in base.named_parameters()
            if name.endswith(".bias")
            and (self._which == "all" or any(part in name for part in _PUBLISHED))
        }
