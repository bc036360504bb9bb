"""Bounds of settings."""

from __future__ import annotations


def at_least(config: object, lowest: int, *names: str) -> None:
    """Checks that none of some settings is below a bound.

    Raises:
        ValueError: one is; the message names it and its value.
    """
    for name in names:
        value = getattr(config, name)
        if value < lowest:
            raise ValueError(f"{name} must be at least {lowest}, not {value}")
