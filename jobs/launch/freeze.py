"""Freezing: what a job runs is written down whole before it is submitted.

The folder of a job holds the resolved settings of its stage, its own description, a copy of the
code and the versions of all packages, and is named by a digest of these. So a job that is started
again after a week, by Slurm or by hand, runs what was submitted, whatever became of the checkout.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from jobs.launch.config import LaunchConfig
from jobs.launch.job import JobConfig
from jobs.launch.packages import installed
from pipeline.config_reader import load, to_yaml
from pipeline.errors import ConfigError, DataError
from pipeline.tracking.secrets import redact

if TYPE_CHECKING:
    from jobs.sweep.config import SweepConfig

CONFIG = "config.yaml"
JOB = "job.yaml"
CODE = "code.json"
CODE_FOLDER = "code"
PACKAGES = "packages.json"
LOGS = "logs"

_ROOT = Path(__file__).resolve().parents[2]
_ROOMS = ("model", "data_prep", "pipeline", "jobs")
_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class FrozenJob:
    """A job as it will run; nothing is written yet."""

    launch: LaunchConfig
    """The description, with the number of ranks settled."""
    folder: Path
    """Absolute folder of the job."""
    working_dir: Path
    """Absolute folder that relative paths of the settings are meant from."""
    files: Mapping[str, str]
    """Texts of the job's folder by name."""

    def command(self, python: str) -> list[str]:
        """What each process of the job runs.

        Args:
            python: The interpreter.
        """
        resume = ["--resume"] if self.launch.saves else []
        config = f"--config={self.folder / CONFIG}"
        return [python, "-m", f"jobs.{self.launch.stage}", config, *resume]

    def last_file(self) -> Path:
        """The file that a training run writes last; for other stages, one that is never there."""
        if self.launch.stage != "train":
            return self.folder / "none"
        from pipeline.training.summary import SUMMARY_FILE

        run: dict[str, str] = yaml.safe_load(self.files[CONFIG])
        return self.working_dir / run["output_dir"] / run["name"] / SUMMARY_FILE

    def write(self, more: Mapping[str, str]) -> None:
        """Writes the folder, whole or not at all; an equal job's folder is left as it is.

        Args:
            more: Further files, as rendered by the backend.

        Raises:
            DataError: the folder cannot be written.
        """
        if self.folder.is_dir():
            return
        scratch: Path | None = None
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=".freezing-", dir=self.folder.parent))
            for name, text in {**self.files, **more}.items():
                (scratch / name).write_text(text, encoding="utf-8")
            (scratch / LOGS).mkdir()
            if self.launch.image is None:
                for name, path in sources().items():
                    target = scratch / CODE_FOLDER / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)
            scratch.chmod(0o755)
            scratch.rename(self.folder)
        except OSError as error:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)
            raise DataError(f"{self.folder} cannot be written: {error.strerror}") from error


def freeze(launch: LaunchConfig) -> FrozenJob:
    """Resolves a job's settings and names all that it depends on.

    Raises:
        ConfigError: the recipe or an override cannot be used, or holds a password.
    """
    launch, config = _resolve(launch)
    files = {
        CONFIG: to_yaml(config),
        JOB: to_yaml(launch),
        CODE: _json(_code(launch)),
        PACKAGES: _json({} if launch.image is not None else installed()),
    }
    if redact(files[CONFIG]) != files[CONFIG]:
        raise ConfigError(
            f"recipe = {launch.recipe!r}: its settings hold a password, which would be written"
            " down; name the address in the environment, such as MLFLOW_TRACKING_URI, by secrets"
        )
    working_dir = Path.cwd()
    content = json.dumps([files, str(working_dir)], sort_keys=True)
    digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
    folder = working_dir / launch.output_root / f"{launch.name}-{digest}"
    if launch.image is None and ":" in str(folder):
        raise ConfigError(
            f"output_root = {launch.output_root!r}: {folder} must not hold ':', which ends a folder"
            " in PYTHONPATH"
        )
    return FrozenJob(launch=launch, folder=folder, working_dir=working_dir, files=files)


def _resolve(launch: LaunchConfig) -> tuple[LaunchConfig, Any]:
    """The job with its number of ranks settled, and its stage's settings to match."""
    overrides = [
        (path, text) for path, _, text in (each.partition("=") for each in launch.overrides)
    ]
    config: Any = load(_config_class(launch), [launch.recipe], overrides)
    if launch.stage == "sweep":
        return launch, _sweep(config, launch.cpus_per_process)
    if launch.stage != "train":
        return launch, config
    if launch.processes_per_node is None and not launch.accelerators_per_node:
        # Nothing said: the recipe knows how many ranks it is made for.
        processes, over = divmod(config.engine.processes, launch.nodes)
        if processes and over:
            raise ConfigError(
                f"processes_per_node = null: the recipe's engine.processes ="
                f" {config.engine.processes} cannot be dealt evenly to {launch.nodes} nodes; give"
                " processes_per_node"
            )
        launch = dataclasses.replace(launch, processes_per_node=max(1, processes))
    overrides.append(("engine.processes", str(launch.ranks)))
    if config.engine.threads_per_process is None:
        overrides.append(("engine.threads_per_process", str(launch.cpus_per_process)))
    return launch, load(_config_class(launch), [launch.recipe], overrides)


def _sweep(config: SweepConfig, threads: int) -> SweepConfig:
    """A sweep whose trials can all be trained, with its training recipe inside."""
    from jobs.sweep.trials import plan, resolved

    whole, base = resolved(config)
    if base.engine.threads_per_process is None:
        whole.settings["engine"]["threads_per_process"] = threads
    return plan(whole).config


def _config_class(job: JobConfig) -> type:
    # Here, because some bring torch with them, which takes seconds to import.
    if job.stage == "prepare":
        from data_prep.config import PrepareConfig

        return PrepareConfig
    if job.stage == "sweep":
        from jobs.sweep.config import SweepConfig

        return SweepConfig
    if job.stage == "evaluate":
        from jobs.evaluate import EvaluateConfig

        return EvaluateConfig
    if job.stage == "features":
        from pipeline.features.config import FeaturesConfig

        return FeaturesConfig
    from pipeline.config import RunConfig

    return RunConfig


def _code(launch: LaunchConfig) -> dict[str, str]:
    if launch.image is not None:
        return {"image": launch.image, "launched_with": version("prefixworks")}
    from pipeline.tracking.provenance import git_state

    whole = hashlib.sha256()
    for name, path in sources().items():
        whole.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return {
        "version": version("prefixworks"),
        "files_sha256": whole.hexdigest(),
        **git_state(_ROOT),
    }


def sources() -> dict[str, Path]:
    """Files of our packages, by their path below the checkout."""
    return {
        str(path.relative_to(_ROOT)): path
        for room in _ROOMS
        for path in sorted((_ROOT / room).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def _json(values: Mapping[str, str]) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
