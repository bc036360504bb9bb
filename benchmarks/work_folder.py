"""Where a benchmark keeps its data while it runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def work_folder(parent: Path | None, name: str) -> Iterator[Path]:
    """A folder that is removed at the end.

    Args:
        parent: Where it is made, and made itself if missing; None takes the system's place for
            temporary files.
        name: What its name begins with.
    """
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=parent) as folder:
        yield Path(folder)
