"""Counting texts that are longer than the limits, so that nobody trains on cut ones unknowingly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.training.data import Batch
from pipeline.training.data_config import DataConfig
from pipeline.training.world import World


@dataclass
class CutTexts:
    """Samples of a rank so far, and those whose texts were cut."""

    samples: int = 0
    sources: int = 0
    targets: int = 0

    def add(self, batch: Batch) -> None:
        """Counts a batch that is learnt from."""
        self.samples += len(batch.uids)
        self.sources += batch.cut_sources
        self.targets += batch.cut_targets


class CutReport:
    """Says when cut texts are first seen, and how many there were in the end."""

    def __init__(self, counts: CutTexts, config: DataConfig, world: World) -> None:
        """Takes the counts of this rank, which go on growing, and the limits."""
        self._counts, self._config, self._world = counts, config, world
        self._told = False

    def report(self, say: Callable[[str], None], *, last: bool) -> dict[str, float]:
        """Counts over all ranks, which all call it; says a line at first sight and at the end.

        Returns:
            Metrics; none where nothing was cut.

        Raises:
            TrainingError: another rank is gone.
        """
        counts = self._counts
        samples, sources, targets = (
            int(each)
            for each in self._world.total([counts.samples, counts.sources, counts.targets])
        )
        if not sources + targets:
            return {}
        if last or not self._told:
            self._told = True
            say(self._line(samples, sources, targets))
        return {"data/cut_instructions": float(sources), "data/cut_targets": float(targets)}

    def _line(self, samples: int, sources: int, targets: int) -> str:
        cuts = [
            f"{count} {what} to data.{limit} = {getattr(self._config, limit)} tokens"
            for count, what, limit in (
                (sources, "instructions", "max_source_length"),
                (targets, "targets", "max_target_length"),
            )
            if count
        ]
        return f"of {samples} samples so far were cut: {', '.join(cuts)}"
