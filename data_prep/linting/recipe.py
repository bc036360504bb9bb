"""A whole recipe: its sources one by one, and what concerns all of them."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.config import PrepareConfig
from data_prep.linting.advice import advise
from data_prep.linting.source import SourceLint, lint_source


@dataclass
class LintReport:
    """What a recipe's sources showed, and what would fail the job besides."""

    sources: list[SourceLint] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether preparation would fail."""
        return bool(self.errors or any(source.errors for source in self.sources))


def lint(
    config: PrepareConfig, most: int, on_source: Callable[[str], None] = lambda name: None
) -> LintReport:
    """Looks at every source of a recipe; writes nothing.

    Args:
        config: The recipe.
        most: Annotations of a source to look at.
        on_source: Told the name of a source before it is read.
    """
    report = LintReport()
    report.errors.extend(_output_problems(config))
    for name, dataset in config.datasets.items():
        for source in dataset.sources:
            on_source(f"{name}: {source.source_name}/{source.split}")
            found = lint_source(name, source, config.image, most)
            advise(source, found, config)
            report.sources.append(found)
    report.errors.extend(_share_problems(config, report))
    return report


def _share_problems(config: PrepareConfig, report: LintReport) -> list[str]:
    seen, rejected = Counter[str](), Counter[str]()
    for source in report.sources:
        seen[source.dataset] += source.seen
        rejected[source.dataset] += source.rejected.total()
    return [
        f"dataset {name}: {rejected[name]} of {seen[name]} annotations looked at would be "
        f"rejected, above max_reject_rate {config.max_reject_rate:g}"
        for name in config.datasets
        if rejected[name] > config.max_reject_rate * seen[name]
    ]


def _output_problems(config: PrepareConfig) -> list[str]:
    folder = Path(config.output_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        return [f"output_dir: {folder} is a file"]
    if not os.access(folder, os.W_OK | os.X_OK):
        return [f"output_dir: {folder} cannot be written"]
    return []
