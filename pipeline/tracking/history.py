"""What a run has told of its latest steps, also before it was resumed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from pipeline.tracking.entries import Entry

Told = tuple[float, int]
"""Value and time in ms of one metric at one step."""

_STEPS = 2_000
"""Steps that are remembered: more reports than lie between two checkpoints."""
_EXACT = ("train/loss", "validation/loss", "run/steps")
"""Metrics that do not depend on the clock, one in each kind of report."""


def kinds_of(values: Iterable[str]) -> list[str]:
    """What kinds of report the names of metrics belong to."""
    return [name for name in _EXACT if name in values]


class History:
    """Metrics of the latest steps, by step and name."""

    def __init__(self) -> None:
        self._steps: OrderedDict[int, dict[str, Told]] = OrderedDict()

    def add(self, entry: Entry) -> None:
        """Remembers an entry of metrics."""
        step = self._steps.setdefault(entry["step"], {})
        self._steps.move_to_end(entry["step"])
        for name, value in entry["values"].items():
            step[name] = (value, entry["time_ms"])
        while len(self._steps) > _STEPS:
            self._steps.popitem(last=False)

    def at(self, step: int) -> Mapping[str, Told]:
        """Metrics that were told of a step."""
        return self._steps.get(step, {})

    def repeats(self, step: int, values: Mapping[str, object]) -> bool:
        """Whether a report was told before: steps after a checkpoint are trained again on resume.

        Such a step gives the same loss, and its speed was told when it was first done. Where the
        loss differs (settings were changed by force), both are worth telling.
        """
        known = self.at(step)
        shared = [name for name in kinds_of(values) if name in known]
        return bool(shared) and all(known[name][0] == values[name] for name in shared)
