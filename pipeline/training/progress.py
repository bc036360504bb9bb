"""The progress bar of a run: step, loss, speed, wait for data, time left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProgressBar:
    """Drawn on stderr where that is a terminal; elsewhere each report becomes a line."""

    def __init__(self, name: str, total_steps: int, done_steps: int, *, shown: bool) -> None:
        self._total = total_steps
        self._shown = shown
        self._console = Console(stderr=True, soft_wrap=True)
        self._bar = Progress(
            TextColumn(name, markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
            refresh_per_second=2,
        )
        self._line = self._bar.add_task(
            "steps", total=total_steps, completed=done_steps, numbers=""
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """One step more."""
        self._bar.advance(self._line)

    def report(self, step: int, metrics: Mapping[str, float], seconds_left: float | None) -> None:
        """Shows training metrics."""
        numbers = (
            f"loss {metrics['train/loss']:.3f}, {metrics['train/samples_per_s']:.0f} samples/s,"
            f" data wait {metrics['train/data_wait_share']:.0%}"
        )
        if "train/flop_utilisation" in metrics:
            numbers += f", {metrics['train/flop_utilisation']:.0%} of peak"
        self._bar.update(self._line, numbers=numbers)
        if self._shown and not self._console.is_terminal:
            left = "" if seconds_left is None else f", {seconds_left / 60:.1f} min left"
            self.say(f"step {step}/{self._total}: {numbers}{left}")

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._shown:
            self._console.print(text, markup=False, highlight=False)
