"""What a step minimises: smoothed cross-entropy, and which tokens and passes it is over.

How many tokens a batch's loss is over follows from its labels alone. So the ranks can agree on the
tokens of the whole global batch before any of them computes a loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from model.losses import LossOutput, kept_tokens, label_smoothed_loss
from pipeline.training.config import TrainingConfig
from pipeline.training.data import Batch


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss of one step."""

    label_smoothing: float
    drop_worst_ratio: float = 0.0
    """Share of a batch's tokens, those with the largest loss, that are left out."""
    r_drop_alpha: float | None = None
    """Weight of the divergence between two passes; None for a single pass."""

    def prepared(self, batch: Batch) -> Batch:
        """The batch as the model is to see it."""
        return batch if self.r_drop_alpha is None else batch.twice()

    def tokens(self, batch: Batch) -> int:
        """Tokens that the loss of a batch is summed over; both passes count."""
        kept = kept_tokens(batch.tokens, self.drop_worst_ratio)
        return kept if self.r_drop_alpha is None else 2 * kept

    def loss(self, logits_BTV: Tensor, prepared: Batch) -> LossOutput:
        """The loss of a prepared batch's logits, summed over `tokens` of the batch."""
        allowed = prepared.allowed
        return label_smoothed_loss(
            logits_BTV,
            prepared.target_BT,
            epsilon=self.label_smoothing,
            confidence_B=prepared.confidence_B,
            allowed_range=allowed if isinstance(allowed, tuple) else None,
            allowed_P3=allowed if isinstance(allowed, Tensor) else None,
            drop_worst_ratio=self.drop_worst_ratio,
            rdrop_alpha=self.r_drop_alpha,
        )


def objective_of(config: TrainingConfig, step: int) -> Objective:
    """What a step minimises.

    Args:
        config: The run's.
        step: Optimizer steps done before it.
    """
    dropping = step > config.drop_worst_after_steps
    return Objective(
        label_smoothing=config.label_smoothing,
        drop_worst_ratio=config.drop_worst_ratio if dropping else 0.0,
        r_drop_alpha=config.r_drop_alpha,
    )
