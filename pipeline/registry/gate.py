"""Whether a new version may take the place of the one in use: it must be measurably better.

Two scores are only compared where they were measured on the same data: the same data sets by
digest, and as many of their samples.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import RegistryError
from pipeline.registry.record import DataUse, PromptRecord

SMALLER_IS_BETTER = ("loss", "nll", "perplexity")
"""Last parts of metric names of which smaller values are better."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One score and what it was measured on."""

    metric: str
    value: float
    data: tuple[DataUse, ...]

    @property
    def data_names(self) -> str:
        """Names and short digests of the data sets."""
        return ", ".join(f"{use.name} {use.digest[:19]} x{use.samples}" for use in self.data)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The gate's answer."""

    passed: bool
    reason: str


def measured(record: PromptRecord, metric: str | None, dataset: str | None) -> Measured | None:
    """The score of a prompt by which it is compared.

    Args:
        record: The prompt's record.
        metric: Name of the metric; the headline metric by default.
        dataset: Name or digest of the data set that it must have been measured on; any by default.

    Returns:
        The score, or None where there is none on such data.
    """
    if metric is None:
        if record.headline is None:
            return None
        metric = record.headline[0]
    if metric not in record.meta.metrics:
        return None
    data = record.measured_on
    if dataset is not None and not any(dataset in (use.name, use.digest) for use in data):
        return None
    return Measured(metric=metric, value=record.meta.metrics[metric], data=data)


def judge(
    new: PromptRecord, present: PromptRecord, metric: str | None = None, dataset: str | None = None
) -> Verdict:
    """Compares a new prompt with the present one.

    Args:
        new: Record of the version to promote.
        present: Record of the version in use.
        metric: Metric to compare by; the present version's headline metric by default.
        dataset: Name or digest of the data set that both must have been measured on.

    Returns:
        Whether the new one is better, and the comparison in words.
    """
    before = measured(present, metric, dataset)
    if before is None:
        known = ", ".join(sorted(present.meta.metrics)) or "none"
        return _refused(f"the present version has no such score (it has: {known})")
    after = measured(new, before.metric, dataset)
    if after is None:
        known = ", ".join(sorted(new.meta.metrics)) or "none"
        return _refused(f"the new version has no score {before.metric} there (it has: {known})")
    if not before.data or _identity(before) != _identity(after):
        return _refused(
            f"{before.metric} was measured on different data ({after.data_names or 'unknown'};"
            f" the present version: {before.data_names or 'unknown'}): evaluate both on one"
        )
    better = after.value > before.value
    if before.metric.rpartition("/")[2] in SMALLER_IS_BETTER:
        better = after.value < before.value
    reason = (
        f"{before.metric} {before.value:.6g} -> {after.value:.6g} on"
        f" {', '.join(use.name for use in before.data)}"
    )
    return Verdict(passed=better, reason=reason) if better else _refused(f"{reason} is not better")


def _refused(reason: str) -> Verdict:
    return Verdict(passed=False, reason=reason)


def _identity(score: Measured) -> list[tuple[str, int]]:
    return sorted((use.digest, use.samples) for use in score.data)


def demand(verdict: Verdict, title: str) -> None:
    """Refuses a version that did not pass.

    Raises:
        RegistryError: the verdict says no; the message says why and how to override it.
    """
    if not verdict.passed:
        raise RegistryError(f"{title} was not promoted: {verdict.reason}; --force promotes it")
