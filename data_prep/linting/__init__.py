"""A look at sources before a long job: what of the recipe would fail, and what to do about it."""

from data_prep.linting.recipe import LintReport, lint
from data_prep.linting.source import SourceLint

__all__ = ["LintReport", "SourceLint", "lint"]
