"""The points of a sweep's space: the same on every machine, since trials go by their number."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

from jobs.sweep.config import RangeConfig, SweepConfig
from pipeline.errors import ConfigError

Point = dict[str, Any]
"""Values by dotted setting."""

_TRIES_A_POINT = 100
_DIGITS = 6
"""Significant digits of a drawn number: enough to tell two apart, few enough to read."""


def points(config: SweepConfig) -> list[Point]:
    """What each trial is set to, in the order of the trials.

    The last setting of a grid changes fastest.

    Raises:
        ConfigError: the space has fewer points than are asked for.
    """
    if config.search == "grid":
        combinations = itertools.product(*config.space.values())
        return [dict(zip(config.space, values, strict=True)) for values in combinations]
    assert config.samples is not None, "checked by the configuration"
    rng, ranges = random.Random(config.seed), config.ranges()
    found: dict[str, Point] = {}
    for _ in range(_TRIES_A_POINT * config.samples):
        point = {
            path: _drawn(rng, ranges[path]) if path in ranges else values[_place(rng, len(values))]
            for path, values in config.space.items()
        }
        found.setdefault(repr(point), point)
        if len(found) == config.samples:
            return list(found.values())
    raise ConfigError(
        f"samples = {config.samples}: the space seems to have no more than {len(found)} points"
    )


def _drawn(rng: random.Random, span: RangeConfig) -> float | int:
    share = rng.random()
    if span.int and not span.log:
        return int(span.low) + int(share * (span.high - span.low + 1))
    if span.log:
        low, high = math.log(span.low), math.log(span.high)
        value = math.exp(low + share * (high - low))
    else:
        value = span.low + share * (span.high - span.low)
    if span.int:
        return min(max(round(value), int(span.low)), int(span.high))
    return min(max(float(f"{value:.{_DIGITS}g}"), span.low), span.high)


def _place(rng: random.Random, count: int) -> int:
    # Only random() gives the same numbers in every version of Python.
    return int(rng.random() * count)
