"""`prefixworks train`: tune a prompt on a frozen base, or pretrain a base, with DeepSpeed.

prefixworks train --config=train.yaml --optimizer.lr=3e-3

The command is a parent: it starts DeepSpeed's launcher, which starts the ranks, each of them this
command again. Started by a launcher itself (RANK is set), it is a rank.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Self

import psutil

from pipeline.errors import EXIT_INTERRUPTED, ConfigError, TrainingError

if TYPE_CHECKING:
    from data_prep.manifest import Manifest
    from pipeline.config import RunConfig
    from pipeline.training.hooks import Hook
    from pipeline.training.resume import Resume

_RESUME = "--resume"
_FORCE = "--force"
_EPILOG = """examples:
  prefixworks train --config=train.yaml --optimizer.lr=3e-3
  prefixworks train --config=train.yaml --resume
  prefixworks train --config=train.yaml --resume=step-000100

--resume continues the run of that name from its newest checkpoint, if it has one, or from the one
that is named. It refuses settings, data or a base that would make another run of it; --force goes
on in spite of that, with a warning for each. A run that gets SIGTERM or SIGUSR1 saves its state and
exits with status 75.
"""
_FORWARDED = (signal.SIGTERM, signal.SIGUSR1)
_LOOK_EVERY_S = 0.1


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    # Here, because torch takes seconds to import and `--help` of other stages must not wait.
    from pipeline.config import RunConfig, parse
    from pipeline.training.run_folder import check_folder

    words, resume = _split_resume(argv)
    config, dry_run = parse(
        RunConfig,
        words,
        prog="prefixworks train",
        description="Train with DeepSpeed: a prompt on a frozen base, or a whole base.",
        epilog=_EPILOG,
    )
    if dry_run:
        print(_plan(config))
        return 0
    if "RANK" in os.environ or "SLURM_PROCID" in os.environ:
        return _rank(config, resume)
    check_folder(config, config.engine.processes, resume)
    check_inputs(config)
    if config.engine.processes == 1:
        return _rank(config, resume)
    return launch(config, argv)


def launch(config: RunConfig, argv: Sequence[str]) -> int:
    """Starts the ranks of this machine through DeepSpeed's launcher and waits for them.

    Args:
        config: The run.
        argv: Arguments for each rank.

    Returns:
        0 when all ranks ended well; else the status of the first that did not, which has said why.

    Raises:
        TrainingError: a rank was killed.
    """
    from pipeline.training.run_folder import INTERRUPTED, run_folder
    from pipeline.training.signals import follow_parent
    from pipeline.training.world import meeting_place

    processes = config.engine.processes
    threads = config.engine.threads_per_process or max(1, len(os.sched_getaffinity(0)) // processes)
    # What the launcher reads instead of a host file: the devices of each host.
    hosts = base64.urlsafe_b64encode(json.dumps({"localhost": devices(processes)}).encode())
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        # One machine: its ranks need not be reached from outside.
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        "TOKENIZERS_PARALLELISM": "false",
        # Ranks import this checkout, as the parent did.
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *_python_path()]),
    }
    if not _has_cuda():
        environment["DS_ACCELERATOR"] = "cpu"
    with meeting_place() as place:
        command = [
            *(sys.executable, "-m", "deepspeed.launcher.launch"),
            f"--world_info={hosts.decode()}",
            # The launcher sets these two itself.
            f"--master_addr={place['MASTER_ADDR']}",
            f"--master_port={place['MASTER_PORT']}",
            *("--log_level=critical", "--no_local_rank", "--module"),
            *("jobs.train", *argv),
        ]
        with Forwarding() as forwarding:
            launcher = subprocess.Popen(command, env=environment | place, preexec_fn=follow_parent)
            status = forwarding.wait(launcher)
    if (run_folder(config) / INTERRUPTED).is_file():
        return EXIT_INTERRUPTED
    if status < 0 or status > 128:
        number = -status if status < 0 else 256 - status
        if forwarding.asked == number:
            # A rank that could not take the signal yet, because it was only about to start.
            raise TrainingError(
                "asked to stop before the first step; nothing is lost", exit_code=EXIT_INTERRUPTED
            )
        raise TrainingError(
            f"a rank was killed by {_signal_name(number)}; --resume continues from the newest"
            " checkpoint"
        )
    return status


def devices(processes: int) -> list[str]:
    """The devices of the ranks here: of the GPUs that this process may see, the first ones.

    The launcher sets CUDA_VISIBLE_DEVICES anew, from this list.
    """
    seen = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    return seen[:processes] if len(seen) >= processes else list(map(str, range(processes)))


@contextmanager
def recorded(config: RunConfig) -> Iterator[Sequence[Hook]]:
    """Who is told about a run; the first rank of every machine tells of that machine too."""
    from pipeline.training.world import environment_rank

    here = environment_rank()
    if not config.tracking.enabled or (here is not None and here[2] != 0):
        yield []
        return
    # Here, because MLflow takes seconds to import and the other ranks need not wait.
    from pipeline.tracking.recording import recording

    with recording(config) as hooks:
        yield hooks


def _split_resume(argv: Sequence[str]) -> tuple[list[str], Resume | None]:
    """The arguments that are settings, and what the others say about continuing.

    Raises:
        ConfigError: they contradict each other.
    """
    from pipeline.training.resume import Resume

    asked = [word for word in argv if word == _RESUME or word.startswith(f"{_RESUME}=")]
    words = [word for word in argv if word not in asked and word != _FORCE]
    force = _FORCE in argv
    if not asked:
        if force:
            raise ConfigError("--force: belongs to --resume, which is not given")
        return words, None
    if len(set(asked)) > 1:
        raise ConfigError(f"{' '.join(asked)}: --resume is given twice")
    _, named, name = asked[0].partition("=")
    if named and not name:
        raise ConfigError("--resume=: names no checkpoint; leave out '=' to take the newest")
    return words, Resume(checkpoint=name or None, force=force)


def _rank(config: RunConfig, resume: Resume | None) -> int:
    from pipeline.training.signals import StopRequest, follow_parent, ignore_stop_signals

    with StopRequest() as stop:
        if "RANK" in os.environ:
            follow_parent()
        from pipeline.training.trainer import train

        with recorded(config) as hooks:
            result = train(config, hooks, resume=resume, stop=stop)
            # The run is finished, whatever still comes.
            ignore_stop_signals()
    if os.environ.get("RANK", "0") == "0":
        metrics = "".join(f", {name} {value:.4f}" for name, value in result.best_metrics.items())
        took = f"{result.final_step} steps in {result.seconds:.1f} s"
        print(f"{result.output_dir}: {took}{metrics}")
    return 0


class Forwarding:
    """Hands a request to stop to the ranks: the launcher itself would end them without a word."""

    def __init__(self) -> None:
        self.asked: int | None = None
        """The signal that asked to stop."""
        self._told: set[psutil.Process] = set()

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in _FORWARDED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self, launcher: subprocess.Popen[bytes]) -> int:
        """Waits for the launcher's end; its status."""
        while True:
            with suppress(subprocess.TimeoutExpired):
                return launcher.wait(_LOOK_EVERY_S)
            if self.asked is not None:
                self._tell(launcher, self.asked)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = self.asked or number

    def _tell(self, launcher: subprocess.Popen[bytes], number: int) -> None:
        """Tells the ranks that were not told; some may have started only now."""
        with suppress(psutil.NoSuchProcess):
            for rank in psutil.Process(launcher.pid).children():
                if rank not in self._told:
                    self._told.add(rank)
                    rank.send_signal(number)


def check_inputs(config: RunConfig) -> list[Manifest]:
    """Looks for base and data once, before every rank does.

    Returns:
        the manifests of the training data.

    Raises:
        ConfigError: no training data are named.
        DataError: a data set cannot be read.
        CheckpointError: there is no such base.
    """
    from data_prep.manifest import read_manifest
    from model.checkpoint import load_config
    from pipeline.tasks.answers import read_answers

    if not config.data.train:
        raise ConfigError("data.train names no data set to learn from")
    load_config(config.base.path)
    if config.data.vqa.file is not None:
        read_answers(config.data.vqa.file)
    for folder in config.data.validation:
        read_manifest(folder)
    return [read_manifest(folder) for folder in config.data.train]


def _plan(config: RunConfig) -> str:
    manifests = check_inputs(config)
    training, ranks = config.training, config.engine.processes
    batch = training.batch_size_per_rank * training.gradient_accumulation * ranks
    samples = sum(
        count
        for manifest in manifests
        for task, count in manifest.tasks.items()
        if config.data.tasks is None or task in config.data.tasks
    )
    steps = training.max_steps or max(1, round((training.epochs or 1.0) * samples / batch))
    names = config.prompt_names()
    each = f", a prompt each for {', '.join(names)}," if names else ""
    return (
        f"would train {config.tuning.method}{each} on {config.base.path}: about {steps} steps of"
        f" {batch} samples out of {samples}, {ranks} ranks, ZeRO stage {config.engine.zero_stage}"
    )


def _python_path() -> list[str]:
    return [path for path in [os.environ.get("PYTHONPATH")] if path]


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


if __name__ == "__main__":
    from jobs.cli import run_stage

    sys.exit(run_stage(main, sys.argv[1:]))
