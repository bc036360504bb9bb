"""`prefixworks demo`: the whole way on the embedded world, from drawn pictures to a prediction.

prefixworks demo --output=prefixworks-demo

Every stage but the last is a `prefixworks` command in a process of its own, printed as it could be
typed in the demo's folder; a finished one is skipped when the demo is run again.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jobs.synthesize import SceneCounts
from pipeline.config_reader import parse
from pipeline.errors import EXIT_INTERRUPTED, ConfigError, TrainingError
from pipeline.tracking.config import URI_VARIABLE

TASKS = ("grounding", "vqa")
STATE_FILE = "stages.json"
_RECIPES = Path(__file__).parent / "recipes"
_RAW = "data/raw/downstream"
_TEST = "data/prepared/downstream_test"


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Where the demo works and how large it is."""

    output: str = "prefixworks-demo"
    """Folder for everything that the demo writes."""
    base: str = "ofa-micro"
    """Name or folder of the frozen base."""
    scenes: SceneCounts = field(default_factory=SceneCounts)
    """Scenes drawn for each split."""
    training_steps: int | None = None
    """Steps of each training; None leaves them to the recipes."""

    def __post_init__(self) -> None:
        if self.training_steps is not None and self.training_steps < 1:
            raise ValueError(f"training_steps must be at least 1, not {self.training_steps}")
        if min(self.scenes.train, self.scenes.val, self.scenes.test) < 1:
            raise ValueError("scenes: the demo needs at least one of each split")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the demo."""

    name: str
    summary: str
    commands: tuple[tuple[str, ...], ...] = ()
    """`prefixworks` command lines; a stage without any runs in the demo's own process."""


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    config, dry_run = parse(
        DemoConfig,
        argv,
        prog="prefixworks demo",
        description="Tune prompts for grounding and VQA on the embedded world, end to end.",
    )
    stages = stages_of(config)
    if dry_run:
        for stage in stages:
            print(f"{stage.name}: {stage.summary}")
            for command in stage.commands:
                print(f"  prefixworks {shlex.join(command)}")
        return 0
    folder = Path(config.output)
    progress = Progress(folder, config)
    for number, stage in enumerate(stages, start=1):
        title = f"[{number}/{len(stages)}] {stage.summary}"
        if stage.name in progress.seconds:
            print(f"{title}: done already, {progress.seconds[stage.name]:.0f} s", flush=True)
            continue
        print(title, flush=True)
        with progress.timed(stage.name):
            _run(stage, folder, config)
    # Here, because torch and MLflow take seconds to import and only the end needs them.
    from jobs.demo_report import show, write_report

    show(write_report(folder, TASKS, progress.seconds), folder)
    return 0


def stages_of(config: DemoConfig) -> list[Stage]:
    """The demo's stages in order; paths in the commands are those inside the demo's folder."""
    scenes = [f"--scenes.{split}={count}" for split, count in asdict(config.scenes).items()]
    base = _absolute(config.base)
    steps = config.training_steps
    length = () if steps is None else (f"--training.max_steps={steps}",)
    return [
        Stage(
            name="synthesize",
            summary="draw scenes, annotated in the formats of COCO, VQAv2, REFER and SNLI-VE",
            commands=(("synthesize", f"--output={_RAW}", "--domain=downstream", *scenes),),
        ),
        Stage(
            name="prepare",
            summary="turn them into WebDataset shards with Ray",
            commands=(("prepare", _recipe("prepare_downstream")),),
        ),
        Stage(
            name="zero-shot",
            summary="score the frozen base as it is",
            commands=(
                (
                    *("evaluate", _recipe("evaluate_downstream"), f"--base={base}"),
                    "--output=runs/zero_shot",
                ),
            ),
        ),
        *(
            Stage(
                name=f"train-{task}",
                summary=f"tune a prompt for {task} with DeepSpeed, two ranks, the base frozen",
                commands=(
                    (
                        *("train", _recipe(f"train_demo_{task}"), f"--base.path={base}"),
                        *length,
                        "--resume",
                    ),
                ),
            )
            for task in TASKS
        ),
        Stage(
            name="evaluate",
            summary="score the base with its prompts",
            commands=tuple(
                (
                    "evaluate",
                    f"--prompt=runs/demo_{task}",
                    f"--dataset={_TEST}",
                    f"--tasks=[{task}]",
                )
                for task in TASKS
            ),
        ),
        Stage(
            name="register",
            summary="register the prompts in MLflow as champions",
            commands=tuple(
                ("registry", "register", f"runs/demo_{task}", "--alias", "champion")
                for task in TASKS
            ),
        ),
        Stage(
            name="predict", summary="load the champions through MLflow and predict for new images"
        ),
    ]


class Progress:
    """Which stages are finished and how long each took, in the demo's folder."""

    def __init__(self, folder: Path, config: DemoConfig) -> None:
        """Opens the folder or begins it.

        Raises:
            ConfigError: the folder holds something else, or a demo with other settings.
        """
        self._path = folder / STATE_FILE
        self._settings = {**asdict(config), "base": _absolute(config.base)}
        del self._settings["output"]
        self.seconds: dict[str, float] = {}
        if self._path.is_file():
            self.seconds = self._read()
        elif folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"output: {folder} holds something else; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        self._write()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Times a stage, and notes that it is finished when it ends well."""
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
        self._write()

    def _read(self) -> dict[str, float]:
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
            settings, seconds = record["settings"], dict(record["seconds"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self._path} is damaged; remove the folder to begin again"
            ) from error
        if settings != self._settings:
            changed = next(
                name for name in self._settings if settings.get(name) != self._settings[name]
            )
            raise ConfigError(
                f"{changed} = {self._settings[changed]}: {self._path.parent} holds a demo with"
                f" {settings.get(changed)}; choose another output or remove it"
            )
        return seconds

    def _write(self) -> None:
        record = {"settings": self._settings, "seconds": self.seconds}
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        partial.replace(self._path)


def _run(stage: Stage, folder: Path, config: DemoConfig) -> None:
    # Here, because these bring torch with them.
    from pipeline.registry.bases import BASE_VARIABLE

    base = {BASE_VARIABLE: _absolute(config.base)}
    if not stage.commands:
        from jobs.demo_report import predict

        os.environ.update(base)
        predict(folder, TASKS)
        return
    for command in stage.commands:
        print(f"$ prefixworks {shlex.join(command)}", flush=True)
        _command(command, folder, base)


def _command(command: Sequence[str], folder: Path, settings: Mapping[str, str]) -> None:
    from pipeline.training.signals import follow_parent

    environment = {**os.environ, **settings}
    # The demo keeps to its own store; a server that the user works with stays as it is.
    environment.pop(URI_VARIABLE, None)
    words = [sys.executable, "-m", "jobs.cli", *command]
    status = subprocess.run(
        words, cwd=folder, env=environment, preexec_fn=follow_parent, check=False
    ).returncode
    if status == EXIT_INTERRUPTED:
        raise TrainingError("the demo was stopped; the same command goes on", exit_code=status)
    if status:
        raise TrainingError(
            f"prefixworks {command[0]} ended with status {status}, see above; the demo's own"
            " command goes on from there"
        )


def _recipe(name: str) -> str:
    return f"--config={_RECIPES / name}.yaml"


def _absolute(base: str) -> str:
    """The base as every folder finds it: a path made absolute, a name left alone."""
    return str(Path(base).resolve()) if Path(base).is_dir() else base


if __name__ == "__main__":
    from jobs.cli import run_stage

    sys.exit(run_stage(main, sys.argv[1:]))
