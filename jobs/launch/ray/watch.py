"""Watching the ranks of one attempt until all have ended, and saying what their end means."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from jobs.launch.ray.ranks import LOOK_EVERY_S, Started, last_line
from pipeline.errors import EXIT_INTERRUPTED

_LAST_WORDS_S = 60.0
"""How long the others may go on after a rank was lost or failed: they find out by themselves, and
Ray takes its time to notice that a node is gone."""
_ANSWER_S = 10.0


@dataclass(kw_only=True)
class Ends:
    """How ranks ended, as far as they have."""

    statuses: dict[int, int] = field(default_factory=dict)
    """Exit status by rank, in the order of their ends; negative for a signal."""
    lost: dict[int, str] = field(default_factory=dict)
    """Why nothing is known of a rank."""

    @property
    def trouble(self) -> bool:
        """Whether a rank will be missed by the others."""
        return bool(self.lost) or any(self.statuses.values())

    def status(self, *, asked: bool) -> int:
        """The run's exit status, once all have ended.

        Args:
            asked: Whether they were asked to stop: one that was killed by the request could not
                take it yet, and had nothing to save.
        """
        told = -int(signal.SIGTERM)
        ended = [
            EXIT_INTERRUPTED if asked and status == told else status
            for status in self.statuses.values()
        ]
        bad = [status for status in ended if status]
        if not bad and not self.lost:
            return 0
        if EXIT_INTERRUPTED in bad:
            return EXIT_INTERRUPTED
        return next((status for status in bad if status > 0), 1)

    def worth_another_try(self) -> str | None:
        """Why the same ranks may well do better next time; None when they would not."""
        for rank, reason in self.lost.items():
            return f"rank {rank} was lost ({reason})"
        for rank, status in self.statuses.items():
            if status < 0:
                return f"rank {rank} was killed by {_signal_name(-status)}"
        if EXIT_INTERRUPTED in self.statuses.values():
            return "the ranks were asked to stop by their node, and saved"
        return None


def watch(started: Started, stopped: Callable[[], bool], save_s: float) -> Ends:
    """Waits until all ranks have ended, or those that are left have to.

    Args:
        started: The ranks.
        stopped: Whether they are to save and stop.
        save_s: Seconds that they have for it.
    """
    ends, asking = Ends(), _Asking(started)
    told, until = False, float("inf")
    while len(ends.statuses) + len(ends.lost) < len(started.hosts) and time.monotonic() < until:
        time.sleep(LOOK_EVERY_S)
        asking.look(ends)
        # One that was asked by its node is saving with all others; one of those that only starts
        # would wait for ranks that are gone.
        if not told and (stopped() or EXIT_INTERRUPTED in ends.statuses.values()):
            told, until = True, time.monotonic() + save_s
            told_all = [host.ask.remote() for host in started.hosts]
            ray.wait(told_all, num_returns=len(told_all), timeout=_ANSWER_S)
            print("the ranks were asked to save and stop", flush=True)
        if ends.trouble and until == float("inf"):
            until = time.monotonic() + _LAST_WORDS_S
    for rank in asking.unanswered():
        ends.lost.setdefault(rank, "its node gives no answer")
    return ends


class _Asking:
    """Asks the hosts for their ranks' statuses, each again once it has answered."""

    def __init__(self, started: Started) -> None:
        self._started = started
        self._waiting: dict[Any, int] = {}

    def look(self, ends: Ends) -> None:
        """Notes who has ended or was lost."""
        for rank, host in enumerate(self._started.hosts):
            known = (ends.statuses, ends.lost, self._waiting.values())
            if not any(rank in each for each in known):
                self._waiting[host.status.remote()] = rank
        ready, _ = ray.wait(
            list(self._waiting), num_returns=len(self._waiting), timeout=LOOK_EVERY_S
        )
        for reference in ready:
            rank = self._waiting.pop(reference)
            try:
                status = ray.get(reference)
            except RayError as error:
                ends.lost[rank] = last_line(error)
                continue
            if status is not None:
                ends.statuses[rank] = status

    def unanswered(self) -> list[int]:
        """Ranks whose hosts say nothing."""
        return list(self._waiting.values())


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
