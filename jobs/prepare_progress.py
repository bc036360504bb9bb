"""What people see while data are prepared: bars on a terminal, now and then a line in a log."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

LINE_S = 30.0
"""Seconds between two lines where there is no terminal."""


class Steps:
    """The steps of one dataset, each with its own bar."""

    def __init__(self, console: Console, name: str) -> None:
        """Shows nothing yet.

        Args:
            console: Where it is shown.
            name: Name of the dataset.
        """
        self._console, self._name = console, name
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._line: TaskID | None = None
        self._what, self._total = "", 0
        self._started = self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def begin(self, what: str, total: int | None = None) -> None:
        """Begins the next step; total is unknown where it is None."""
        if self._line is not None:
            self._bars.remove_task(self._line)
        self._what, self._total = what, total or 0
        self._started = self._said = time.monotonic()
        self._line = self._bars.add_task(f"{self._name}: {what}", total=total, note="")

    def advance(self, done: int, unit: str, rejected: int | None = None) -> None:
        """Says how far the present step is.

        Args:
            done: Units since it began.
            unit: What is counted, such as 'samples'.
            rejected: Samples rejected so far, where that is known.
        """
        assert self._line is not None
        rate = done / max(time.monotonic() - self._started, 1e-3)
        note = f"{rate:.0f} {unit}/s"
        if rejected is not None:
            note += f", {rejected} rejected"
        self._bars.update(self._line, completed=done, note=note)
        if not self._console.is_terminal and time.monotonic() - self._said >= LINE_S:
            self._said = time.monotonic()
            of = f" of {self._total}" if self._total else ""
            left = ""
            if self._total and rate > 0:
                left = f", {_clock((self._total - done) / rate)} left"
            self._console.print(
                f"{self._name}: {self._what}: {done}{of} {unit}, {note}{left}",
                highlight=False,
                soft_wrap=True,
            )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
