"""A job's description to a folder of manifests: `python -m jobs.launch.kubernetes`.

python -m jobs.launch.kubernetes --config=job.yaml --output=manifests
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.cli import run_stage
from jobs.launch.kubernetes.commands import (
    cancel_command,
    logs_command,
    status_command,
    submit_command,
)
from jobs.launch.kubernetes.config import ManifestConfig
from jobs.launch.kubernetes.manifests import render
from pipeline.config_reader import parse
from pipeline.errors import ConfigError

_EPILOG = """examples:
  python -m jobs.launch.kubernetes --config=job.yaml --output=manifests
  python -m jobs.launch.kubernetes --config=job.yaml --kubernetes.kind=jobset --dry-run

--dry-run prints the manifests and writes nothing. Nothing is sent: the command prints how.
"""


def main(argv: Sequence[str]) -> int:
    """Writes the manifests and returns the exit status.

    Raises:
        ConfigError: the job cannot be rendered, or the folder holds something.
    """
    config, dry_run = parse(
        ManifestConfig,
        argv,
        prog="python -m jobs.launch.kubernetes",
        description="Write a job's manifests for Kubernetes.",
        epilog=_EPILOG,
    )
    where = config.kubernetes
    files = render(config, where.kind, ray_workers=where.ray_workers)
    if dry_run:
        for name, text in files.items():
            print(f"---\n# {name}\n{text}", end="")
        return 0
    _write(Path(config.output), files)
    print(f"{len(files)} manifests in {config.output}; then:")
    for command in (
        submit_command(config.output, where.namespace),
        status_command(config, where.kind, where.namespace),
        logs_command(config, where.namespace),
        cancel_command(config.output, where.namespace),
    ):
        print(f"  {shlex.join(command)}")
    return 0


def _write(folder: Path, files: dict[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"output = {str(folder)!r}: holds files; name another folder")
        for name, text in files.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise ConfigError(f"output = {str(folder)!r}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
