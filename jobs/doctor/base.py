"""The base that is to be tuned."""

from __future__ import annotations

import time

from jobs.doctor.check import Check
from model.checkpoint import fingerprint, load_base
from model.errors import CheckpointError


def check_base(base: str) -> Check:
    """Whether the base loads, and which one it is."""
    start = time.monotonic()
    try:
        model = load_base(base)
    except CheckpointError as error:
        advice = "give --base a packaged name or a folder as `docs/reference/base-folder.md` says"
        return Check("base", "failed", str(error), advice)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return Check(
        "base",
        "ok",
        f"{model.config.name}: {millions:.1f} M parameters, {fingerprint(model)[:19]}…,"
        f" loaded in {time.monotonic() - start:.1f} s",
    )
