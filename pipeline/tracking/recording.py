"""A run's record from beginning to end, whatever the end is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tracking.mlflow import MlflowHook
from pipeline.tracking.nodes import node_metrics

if TYPE_CHECKING:
    from pipeline.config import RunConfig


@contextmanager
def recording(config: RunConfig) -> Iterator[list[MlflowHook]]:
    """Records a run; the first process of every machine enters it.

    Yields:
        The hooks of the run. Only those of the leading process are called by the trainer; the
        others tell how busy their machine is.
    """
    hook = MlflowHook()
    run_dir = Path(config.output_dir) / config.name
    with node_metrics(run_dir, config.tracking):
        try:
            yield [hook]
        except BaseException as error:
            hook.abandon(error)
            raise
