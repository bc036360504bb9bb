"""Writing the best of a run: into its own folder, or into a folder for each of its prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from model.tuning import TunedModel
from pipeline.config import RunConfig, save
from pipeline.prompt_folders import prompt_folder
from pipeline.training.checkpoint import Best, write_best, writing
from pipeline.training.run_folder import CONFIG


def write_improved(
    run_dir: Path, model: TunedModel, improved: Mapping[str | None, Best], config: RunConfig
) -> None:
    """Writes what was found to be the best, each into its folder.

    Args:
        run_dir: Folder of the run.
        model: The model, with all its parameters in one place.
        improved: What was measured, by the name of the prompt; None for a run's only one.
        config: The run's.

    Raises:
        TrainingError: a file cannot be written.
        CheckpointError: what was written is not what was to be written.
    """
    for name, best in improved.items():
        if name is None:
            write_best(run_dir, model, best, config.base.path)
            continue
        folder = prompt_folder(run_dir, name)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            save(config.alone(name), folder / CONFIG)
        write_best(folder, model.alone(name), best, config.base.path)
