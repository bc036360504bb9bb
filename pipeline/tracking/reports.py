"""The journal entry of metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from pipeline.tracking.entries import Entry


def metrics_entry(step: int, metrics: Mapping[str, float]) -> Entry:
    """The journal entry of metrics that were measured now; JSON has no word for infinities."""
    values = {
        name: value if math.isfinite(value) else str(value) for name, value in metrics.items()
    }
    return {"kind": "metrics", "step": step, "time_ms": now_ms(), "values": values}


def now_ms() -> int:
    """The present time as MLflow writes it."""
    return int(time.time() * 1000)
