"""The order of the data: a pure function of seed and position.

Samples are dealt to a fixed number of canonical streams; the n-th sample of a run is the next one
of stream n modulo streams. A rank reads whole streams, so any number of ranks that divides the
number of streams sees the same global batches, and a run continues anywhere without reading what
came before.

Shuffling: shards are put in random order, samples are shuffled within their shard, and the row of
all of them is cut into streams. A batch of as many samples as there are streams therefore comes
from that many evenly spaced places of a shuffled epoch, while a stream reads one shard after the
other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]

_PATTERN = 1000
"""Samples of a stream after which the mixture has exactly its weights."""
_EPOCHS_KEPT = 2
"""Streams of different length stand in at most two epochs at once."""
_EPOCH_KEY, _MIXTURE_KEY = 1, 2


class SampleRef(NamedTuple):
    """A sample of a run: its place in the run, its data set, and its row in that data set."""

    place: int
    dataset: int
    row: int


@dataclass(frozen=True)
class Component:
    """Samples that are mixed with others under one weight, such as those of one task."""

    blocks: tuple[tuple[int, Positions], ...]
    """Data set and rows of each shard."""
    weight: float = 1.0

    @property
    def samples(self) -> int:
        """Samples of all blocks."""
        return sum(len(rows) for _, rows in self.blocks)


class SampleOrder:
    """Which sample stands at which place of a run.

    At the end of an epoch the streams may differ by one sample: with "wrap" the short ones repeat
    their first sample, with "drop" the long ones leave out their last.
    """

    def __init__(
        self,
        components: Sequence[Component],
        *,
        seed: int,
        streams: int,
        uneven: Literal["wrap", "drop"] = "wrap",
    ) -> None:
        """Prepares the order.

        Raises:
            ValueError: a component has too few samples for the streams, or there is none.
        """
        self._components = [component for component in components if component.weight > 0]
        if not self._components:
            raise ValueError("no samples to order")
        self._streams = streams
        self._seed = seed
        self._lengths = [_stream_length(c.samples, streams, uneven) for c in self._components]
        self._counts = _apportion([component.weight for component in self._components])
        self._epochs: OrderedDict[tuple[int, int], tuple[Positions, Positions]] = OrderedDict()
        self._patterns: OrderedDict[tuple[int, int], tuple[Positions, Positions]] = OrderedDict()

    @property
    def epoch_length(self) -> int:
        """Samples of an epoch: each sample once, up to the ends of the streams."""
        return sum(self._lengths) * self._streams

    def at(self, place: int) -> SampleRef:
        """The sample at a place of the run, counted from 0 over all epochs."""
        stream, turn = place % self._streams, place // self._streams
        component, turn = self._mixed(stream, turn)
        length = self._lengths[component]
        datasets, rows = self._epoch(component, turn // length)
        start, end = _bounds(len(rows), self._streams, stream)
        at = start + turn % length % (end - start)
        return SampleRef(place, int(datasets[at]), int(rows[at]))

    def share(self, start: int, stop: int, rank: int, ranks: int) -> list[SampleRef]:
        """The samples of places start to stop that lie in the streams of a rank.

        Raises:
            ValueError: the ranks do not divide the streams.
        """
        if self._streams % ranks:
            raise ValueError(f"{ranks} ranks do not divide {self._streams} streams")
        first = start + (rank - start) % ranks
        return [self.at(place) for place in range(first, stop, ranks)]

    def _mixed(self, stream: int, turn: int) -> tuple[int, int]:
        """The component of a stream's turn, and the stream's turn within that component."""
        if len(self._components) == 1:
            return 0, turn
        period, at = divmod(turn, _PATTERN)
        components, earlier = self._pattern(stream, period)
        component = int(components[at])
        return component, period * int(self._counts[component]) + int(earlier[at])

    def _pattern(self, stream: int, period: int) -> tuple[Positions, Positions]:
        key = (stream, period)
        if key not in self._patterns:
            components = np.repeat(np.arange(len(self._counts)), self._counts)
            np.random.default_rng((self._seed, _MIXTURE_KEY, stream, period)).shuffle(components)
            earlier = np.zeros(_PATTERN, dtype=np.int64)
            for component, count in enumerate(self._counts):
                earlier[components == component] = np.arange(count)
            self._patterns[key] = components, earlier
            if len(self._patterns) > 2 * self._streams:
                self._patterns.popitem(last=False)
        return self._patterns[key]

    def _epoch(self, component: int, epoch: int) -> tuple[Positions, Positions]:
        """Data sets and rows of an epoch, streams one after the other."""
        key = (component, epoch)
        if key not in self._epochs:
            rng = np.random.default_rng((self._seed, _EPOCH_KEY, component, epoch))
            blocks = self._components[component].blocks
            order = [blocks[at] for at in rng.permutation(len(blocks))]
            datasets = np.repeat(
                [dataset for dataset, _ in order], [len(rows) for _, rows in order]
            )
            self._epochs[key] = datasets, np.concatenate([rng.permutation(r) for _, r in order])
            if len(self._epochs) > _EPOCHS_KEPT * len(self._components):
                self._epochs.popitem(last=False)
        return self._epochs[key]


def _stream_length(samples: int, streams: int, uneven: str) -> int:
    length = samples // streams if uneven == "drop" else -(-samples // streams)
    if length == 0:
        raise ValueError(f"{samples} samples are too few for {streams} streams")
    return length


def _bounds(samples: int, streams: int, stream: int) -> tuple[int, int]:
    """Where a stream lies in the row of samples; with fewer samples than streams, some share."""
    start, end = samples * stream // streams, samples * (stream + 1) // streams
    return start, max(end, start + 1)


def _apportion(weights: Sequence[float]) -> Positions:
    """Counts that add up to the pattern, by largest remainder, at least one each."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * _PATTERN
    counts = np.maximum(np.floor(exact), 1).astype(np.int64)
    while counts.sum() > _PATTERN:
        counts[np.argmax(counts - exact)] -= 1
    while counts.sum() < _PATTERN:
        counts[np.argmax(exact - counts)] += 1
    return counts
