"""Says which rank waits for its data, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.training.data_config import DataConfig

WORTH_SAYING = 0.1
"""Share of the time that may be spent waiting for data."""


class DataWaitAdvice:
    """Speaks once when a rank begins to wait much, and again only after none did."""

    def __init__(self, data: DataConfig) -> None:
        self._data = data
        self._reports = 0
        self._said = False

    def about(self, shares: Sequence[float]) -> str | None:
        """What to say about the waiting of each rank since the last report; mostly nothing.

        The first report is left out: starting the workers is waiting too.
        """
        self._reports += 1
        worst = max(range(len(shares)), key=lambda rank: shares[rank])
        if shares[worst] <= WORTH_SAYING:
            self._said = False
            return None
        if self._said or self._reports == 1:
            return None
        self._said = True
        others = "" if len(shares) == 1 else f" (all ranks: {sum(shares) / len(shares):.0%})"
        return f"rank {worst} waits for data {shares[worst]:.0%} of the time{others}: {self._try()}"

    def _try(self) -> str:
        data = self._data
        if data.loader_workers == 0:
            return "data.loader_workers = 1 reads while a step computes"
        more = f"more data.loader_workers (now {data.loader_workers})"
        if data.loader == "threads":
            return f"try {more}, or data.loader = processes where cores are free"
        return f"try {more} where cores are free, else the storage is too slow"
