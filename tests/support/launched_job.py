"""Jobs for tests of launching: a small recipe, and an interpreter that is no Python."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from jobs.launch.backend import Rendered, backend
from jobs.launch.config import LaunchConfig
from jobs.launch.freeze import FrozenJob, freeze
from pipeline.config_reader import load
from tests.support.fake_slurm import write_program

# pip puts it beside the interpreter, whose folder need not be on PATH.
SHELLCHECK = shutil.which("shellcheck") or shutil.which(
    "shellcheck", path=Path(sys.executable).parent
)


def recipe(folder: Path, **settings: Any) -> Path:
    """A recipe of a training run that is never trained."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "run", "data": {"train": ["data"]}, **settings}))
    return path


def launch_config(folder: Path, **settings: Any) -> LaunchConfig:
    """A job below a folder, whose interpreter does nothing.

    Args:
        folder: Where recipe, interpreter and jobs lie.
        settings: More settings, over these.
    """
    python = folder / "python"
    if not python.exists():
        write_program(python, "#!/bin/bash\nexit 0\n")
    tree = {
        "name": "job",
        "recipe": str(recipe(folder)),
        "output_root": str(folder / "launched"),
        "python": str(python),
        "backend": "slurm",
        **settings,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(tree))
    return load(LaunchConfig, [folder / "job.yaml"])


def rendered(launch: LaunchConfig) -> tuple[FrozenJob, Rendered]:
    """A job that is frozen and written, and what its backend made of it."""
    frozen = freeze(launch)
    made = backend(launch.backend).render(frozen)
    frozen.write(made.files)
    return frozen, made
