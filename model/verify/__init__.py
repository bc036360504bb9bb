"""Recomputing of recorded cases: whether a machine computes what the reference computed.

A fixture folder holds the inputs and outputs of a reference implementation. This package alone
reads it, and alone decides what of it is compared and where, for the command and for the tests.
"""

from model.verify.checks import Check, all_checks
from model.verify.finding import DTYPES, TOLERANCES, Finding, Kind
from model.verify.fixtures import Fixtures, read_fixtures
from model.verify.report import Comparison, Report, Skipped, verify
from model.verify.subjects import Subjects

__all__ = [
    "DTYPES",
    "TOLERANCES",
    "Check",
    "Comparison",
    "Finding",
    "Fixtures",
    "Kind",
    "Report",
    "Skipped",
    "Subjects",
    "all_checks",
    "read_fixtures",
    "verify",
]
