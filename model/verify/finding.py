"""What was computed beside what was recorded, and how far apart they may be."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Kind(enum.Enum):
    """How a difference is measured."""

    EXACT = "exact"
    """Ids, masks and counts: how many elements differ."""
    ACTIVATION = "activation"
    """Hidden states after or between layers: largest absolute difference."""
    LOGITS = "logits"
    """Logits: largest absolute difference."""
    SCORE = "score"
    """Log-probabilities of tokens and their sums: largest absolute difference."""
    LOSS = "loss"
    """Losses of the model: largest relative difference."""
    FUNCTION_LOSS = "function loss"
    """Losses of recorded log-probabilities, float32 whatever the model computes in: relative."""
    GRADIENT = "gradient"
    """A parameter's gradient: norm of the difference by norm of what was recorded."""


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtypes by the names that commands use."""

TOLERANCES: dict[str, dict[Kind, float]] = {
    # The reference's own float32 differs from float64 by up to 7e-6 on logits, and another order
    # of summation adds as much: a CPU shows 8e-6 on activations, 1e-6 on gradients, 2e-7 on losses.
    # Scores are sums of up to 25 log-probabilities, of 50 together: 1e-5.
    "fp32": {
        Kind.EXACT: 0.0,
        Kind.ACTIVATION: 2e-5,
        Kind.LOGITS: 2e-5,
        Kind.SCORE: 1e-4,
        Kind.LOSS: 1e-5,
        Kind.FUNCTION_LOSS: 1e-5,
        Kind.GRADIENT: 1e-5,
    },
    # Measured under autocast on a CPU: 0.17 on activations (up to 25 in size), 0.11 on logits
    # (standard deviation 2.9), 0.09 on scores, 3.5e-3 on losses, 0.037 on gradients. Another device
    # rounds at other places, hence about three times as much. A mask, bias or prompt that is not
    # applied moves logits by more than 1.
    "bf16": {
        Kind.EXACT: 0.0,
        Kind.ACTIVATION: 0.5,
        Kind.LOGITS: 0.3,
        Kind.SCORE: 0.3,
        Kind.LOSS: 1e-2,
        Kind.FUNCTION_LOSS: 1e-5,
        Kind.GRADIENT: 0.1,
    },
    # Three bits more than bf16: an eighth of its errors, and nearly of its tolerances.
    "fp16": {
        Kind.EXACT: 0.0,
        Kind.ACTIVATION: 0.06,
        Kind.LOGITS: 0.04,
        Kind.SCORE: 0.04,
        Kind.LOSS: 1.2e-3,
        Kind.FUNCTION_LOSS: 1e-5,
        Kind.GRADIENT: 0.012,
    },
}
"""Largest error that is still right, by dtype and kind."""


@dataclass(frozen=True, eq=False)
class Finding:
    """One computed tensor beside the recorded one, both on the CPU."""

    case: str
    what: str
    kind: Kind
    recorded: str
    """Where in the folder the expected value stands."""
    found: Tensor
    expected: Tensor
    counts: Tensor | None = None
    """True at positions that count, over the leading dimensions; None where all do."""

    @property
    def error(self) -> float:
        """The largest error where it counts: inf for other shapes, nan where a number isn't one.

        Nothing to compare is nan too, so that it never passes.
        """
        found, expected = self.found, self.expected
        if found.shape != expected.shape:
            return math.inf
        if self.counts is not None:
            if self.counts.shape != found.shape[: self.counts.dim()]:
                return math.inf
            found, expected = found[self.counts], expected[self.counts]
        if not expected.numel():
            return math.nan
        if self.kind is Kind.EXACT:
            return float((found != expected).sum())
        difference = (found.double() - expected.double()).abs()
        if self.kind is Kind.GRADIENT:
            return float(difference.norm() / expected.double().norm())
        if self.kind in (Kind.LOSS, Kind.FUNCTION_LOSS):
            difference = difference / expected.double().abs()
        return float(difference.max())


def finding(
    case: str,
    what: str,
    kind: Kind,
    recorded: str,
    found: Tensor,
    expected: Tensor,
    counts: Tensor | None = None,
) -> Finding:
    """Bring both sides to the CPU and to one type; masks and ids become int64."""
    dtype = torch.int64 if kind is Kind.EXACT else torch.float32
    return Finding(
        case,
        what,
        kind,
        recorded,
        found.detach().to("cpu", dtype),
        expected.detach().to("cpu", dtype),
        None if counts is None else counts.cpu(),
    )


def padded(rows: Sequence[Sequence[float]], fill: float) -> Tensor:
    """Return a table `[rows, longest]` of float64 with `fill` behind shorter rows."""
    table = torch.full((len(rows), max(map(len, rows), default=0)), fill, dtype=torch.float64)
    for index, row in enumerate(rows):
        table[index, : len(row)] = torch.tensor(row, dtype=torch.float64)
    return table
