"""Fine-tuning: the whole base is trained, and what comes out is another base."""

from __future__ import annotations

from torch import Tensor

from model.errors import CheckpointError
from model.ofa import OFA, OFAConfig
from model.tuning.config import TuningConfig
from model.tuning.method import TuningMethod


class FineTuning(TuningMethod):
    """Trains every parameter; BatchNorm follows the batches only where that is asked for."""

    freezes_base = False
    makes_base = True

    def __init__(self, base: OFAConfig, config: TuningConfig) -> None:
        super().__init__(base, config)
        self._train_batch_norm = config.train_batch_norm

    def prepare(self, base: OFA) -> None:
        """Let everything learn."""
        base.requires_grad_(True)
        base.frozen = False
        base.batch_norm_trains = self._train_batch_norm

    def trained(self, base: OFA) -> dict[str, Tensor]:
        """Return all of the base, buffers included."""
        return dict(base.state_dict(keep_vars=True))

    def export_state(self, base: OFA) -> dict[str, Tensor]:
        """Refuse: there is a base to save, and no artifact.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError("a fine-tuned base is saved as a base, not as a prompt")

    def load_exported(self, base: OFA, tensors: dict[str, Tensor]) -> None:
        """Refuse: there is a base to load, and no artifact.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError("a fine-tuned base is loaded as a base, not as a prompt")
