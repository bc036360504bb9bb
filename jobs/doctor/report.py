"""What was found on one node, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.doctor.check import Check

_COLORS = {"ok": "green", "warning": "yellow", "failed": "red"}


@dataclass(frozen=True)
class Report:
    """The checks of one node, or those between the ranks."""

    node: str
    checks: Sequence[Check]

    @property
    def failed(self) -> bool:
        """Whether any check failed."""
        return any(check.failed for check in self.checks)


def print_tables(reports: Sequence[Report]) -> None:
    """Prints a table for each node."""
    for report in reports:
        table = Table(title=escape(f"prefixworks doctor: {report.node}"))
        for column in ("check", "status", "found", "what to do"):
            table.add_column(column, overflow="fold")
        for check in report.checks:
            color = _COLORS[check.status]
            status = f"[{color}]{check.status}[/]"
            table.add_row(check.name, status, escape(check.found), escape(check.advice))
        Console().print(table)


def print_json(reports: Sequence[Report]) -> None:
    """Prints one list with every check and its node."""
    rows = [{"node": each.node, **asdict(check)} for each in reports for check in each.checks]
    print(json.dumps(rows, indent=2))
