"""Running all checks of a folder and judging what they found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from model.errors import CheckpointError
from model.verify.checks import all_checks
from model.verify.finding import TOLERANCES, Finding
from model.verify.fixtures import Fixtures
from model.verify.subjects import Subjects


@dataclass(frozen=True)
class Comparison:
    """A finding with its verdict."""

    case: str
    what: str
    measure: str
    """How the error is measured; see `Kind`."""
    error: float
    """Largest error where it counts; inf for another shape, nan where a number isn't one."""
    tolerance: float
    ok: bool


@dataclass(frozen=True)
class Skipped:
    """A case, or one side of it, that was not computed."""

    case: str
    reason: str


@dataclass(frozen=True)
class Report:
    """Everything that was compared, in the order of the checks."""

    comparisons: tuple[Comparison, ...]
    skipped: tuple[Skipped, ...]

    @property
    def missed(self) -> tuple[Comparison, ...]:
        """The comparisons that failed."""
        return tuple(row for row in self.comparisons if not row.ok)

    def skipped_by_reason(self) -> dict[str, int]:
        """Number of skipped cases for each reason."""
        return dict(Counter(row.reason for row in self.skipped))


def verify(fixtures: Fixtures, *, device: str = "cpu", dtype: str = "fp32") -> Report:
    """Recompute every case of a folder.

    Args:
        fixtures: The folder.
        device: As torch names it.
        dtype: fp32, bf16 or fp16. Below fp32 the model runs under autocast, as in training, and
            float32 means IEEE float32: TF32 is switched off meanwhile.

    Raises:
        CheckpointError: the folder lacks an input of a case, its weights don't fit, or nothing in
            it can be computed.
    """
    comparisons: list[Comparison] = []
    skipped: dict[str, Skipped] = {}
    with _without_tf32():
        subjects = Subjects(fixtures, device, dtype)
        for check in all_checks(fixtures):
            without = check.skipped(subjects)
            if without is not None:
                skipped[without[0]] = Skipped(*without)
                continue
            comparisons += [_judged(finding, dtype) for finding in check.findings(subjects)]
    if not comparisons:
        raise CheckpointError(f"{fixtures.folder} holds nothing that can be computed here")
    return Report(tuple(comparisons), tuple(skipped.values()))


def _judged(finding: Finding, dtype: str) -> Comparison:
    error, tolerance = finding.error, TOLERANCES[dtype][finding.kind]
    # An error that is no number compares as false, hence as missed.
    verdict = error <= tolerance
    return Comparison(finding.case, finding.what, finding.kind.value, error, tolerance, verdict)


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Keep float32 convolutions and products exact: torch shortens convolutions by default."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32
    cudnn.allow_tf32 = products.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, products.allow_tf32 = before
