"""`prefixworks launch`: run a stage as a job, here or on a cluster.

prefixworks launch train --on=slurm --name=refcoco --recipe=train.yaml --nodes=2 --dry-run
prefixworks launch train --on=slurm --name=refcoco --recipe=train.yaml --nodes=2 --submit
prefixworks launch status refcoco-0123456789ab
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import get_args

from jobs.launch.backend import backend
from jobs.launch.config import LaunchConfig
from jobs.launch.freeze import freeze
from jobs.launch.job import Stage
from jobs.launch.submitted import cancel, follow, logs, resume, show, submit
from pipeline.config_reader import parse
from pipeline.errors import ConfigError

_ON, _BACKEND = "--on", "--backend"
_SUBMIT, _WAIT, _DRY_RUN = "--submit", "--wait", "--dry-run"
_STAGES = get_args(Stage)
_ACTIONS = {
    "status": "how a job stands",
    "logs": "the last lines of a job's logs",
    "cancel": "end a job for good; what it saved stays",
    "resume": "submit a job again that saved, failed or was cancelled, as it was frozen",
}
_EPILOG = """examples:
  prefixworks launch train --on=slurm --name=refcoco --recipe=train.yaml --nodes=2 --dry-run
  prefixworks launch train --on=slurm --name=refcoco --recipe=train.yaml --nodes=2 --submit
  prefixworks launch train --config=job.yaml --submit --wait
  prefixworks launch status refcoco-0123456789ab
  prefixworks launch logs refcoco-0123456789ab --lines=50
  prefixworks launch cancel refcoco-0123456789ab
  prefixworks launch resume refcoco-0123456789ab

--config names a file of the settings below, --recipe the stage's own. --submit sends the job;
without it, or with --dry-run, the script and the command that would send it are printed, and
nothing is written. --wait stays until the job has ended and takes its exit status; breaking it off
leaves the job alone.
"""


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    word = argv[0] if argv else ""
    if word in _STAGES:
        return _launch(word, argv[1:])
    if word in _ACTIONS:
        return _act(word, argv[1:])
    parser = argparse.ArgumentParser(
        prog="prefixworks launch",
        usage="prefixworks launch STAGE|COMMAND ...",
        description="Run a stage as a job on this machine or a cluster, and look after it.",
        epilog=f"stages: {', '.join(_STAGES)}\n\ncommands:\n"
        + "".join(f"  {name:<7} {summary}\n" for name, summary in _ACTIONS.items())
        + f"\n{_EPILOG}\n`prefixworks launch STAGE --help` lists the settings of a job.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("word", choices=[*_STAGES, *_ACTIONS], metavar="STAGE|COMMAND")
    parser.parse_args(argv[:1])
    return 0


def _launch(stage: str, argv: Sequence[str]) -> int:
    sends, waits = _SUBMIT in argv, _WAIT in argv
    words = [_spelled(word) for word in argv if word not in (_SUBMIT, _WAIT)]
    if sends and _DRY_RUN in words:
        raise ConfigError(f"{_SUBMIT}: sends the job, which {_DRY_RUN} must not")
    if waits and not sends:
        raise ConfigError(f"{_WAIT}: waits for a job that {_SUBMIT} sends")
    if not sends and _DRY_RUN not in words:
        words.append(_DRY_RUN)
    config, dry_run = parse(
        LaunchConfig,
        [*words, f"--stage={stage}"],
        prog=f"prefixworks launch {stage}",
        description="Run a stage as a job on this machine or a cluster.",
        epilog=_EPILOG,
    )
    where = backend(config.backend)
    frozen = freeze(config)
    rendered = where.render(frozen)
    if dry_run:
        for name, text in rendered.files.items():
            print(f"\n# {frozen.folder / name}\n{text}", end="")
        print(f"\n# nothing was sent; {_SUBMIT} writes this folder and runs")
        print(shlex.join(rendered.command))
        return 0
    frozen.write(rendered.files)
    submit(frozen.folder, config.backend, rendered.command)
    print(f"{frozen.folder.name}: submitted; prefixworks launch status {frozen.folder.name}")
    return follow(frozen.folder) if waits else 0


def _spelled(word: str) -> str:
    """A word of the command line with `--on` as the setting that it stands for."""
    name, equals, value = word.partition("=")
    return f"{_BACKEND}{equals}{value}" if name == _ON else word


def _act(action: str, argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=f"prefixworks launch {action}", description=f"Say or do: {_ACTIONS[action]}."
    )
    parser.add_argument("job", metavar="JOB", help="name of the job's folder, or its path")
    parser.add_argument(
        "--output-root",
        default="launched",
        help="folder that holds the jobs (default %(default)s)",
    )
    if action == "logs":
        parser.add_argument(
            "--lines", type=int, default=20, help="lines of each log (default %(default)s)"
        )
    given = parser.parse_args(argv)
    if action == "logs":
        if given.lines < 1:
            raise ConfigError(f"--lines = {given.lines}: must be 1 or more")
        return logs(given.job, given.output_root, given.lines)
    return {"status": show, "cancel": cancel, "resume": resume}[action](
        given.job, given.output_root
    )
