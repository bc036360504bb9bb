"""Where a run that trains several prompts keeps each of them.

    runs/many/config.yaml                the run that trained all prompts
    runs/many/prompts/vqa/config.yaml    one prompt, as a run of its task alone would have it
    runs/many/prompts/vqa/best/          what that run would have as its best

So whatever takes the folder of a run (evaluation, the registry) takes that of a prompt as well.
"""

from __future__ import annotations

from pathlib import Path

PROMPTS = "prompts"
_CONFIG = "config.yaml"


def prompt_folder(run_dir: Path, name: str) -> Path:
    """The folder of one of a run's prompts."""
    return run_dir / PROMPTS / name


def owning_run(folder: Path) -> Path:
    """The run that a folder belongs to: the one around a prompt's, or the folder itself."""
    around = folder.resolve().parent
    if around.name == PROMPTS and (around.parent / _CONFIG).is_file():
        return around.parent
    return folder
