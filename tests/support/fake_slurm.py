"""Slurm's commands as small programs on PATH: they write down how they were called, and answer."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

# Words and variables end with a NUL, so that any other character can be in them.
_SRUN = """#!/bin/bash
printf '%s\\0' "$@" >"$FAKE/srun.words"
env -0 >"$FAKE/srun.environment"
pwd -P >"$FAKE/srun.folder"
if [ -e "$FAKE/srun.body" ]; then . "$FAKE/srun.body"; fi
exit "${FAKE_STATUS:-0}"
"""
_SCONTROL = """#!/bin/bash
case $1 in
  show) printf 'node-a\\nnode-b\\n' ;;
  requeue) echo "$2" >>"$FAKE/requeued" ;;
esac
"""
_SBATCH = """#!/bin/bash
printf '%s\\0' "$@" >"$FAKE/sbatch.words"
echo "4711;cluster"
"""
_SQUEUE = """#!/bin/bash
if [ -e "$FAKE/queue" ]; then cat "$FAKE/queue"; fi
"""
# DeepSpeed looks for it, to know that there is Slurm.
_SINFO = "#!/bin/bash\n"
_SCANCEL = """#!/bin/bash
echo "$@" >>"$FAKE/scancelled"
"""
_PROGRAMS = {
    "srun": _SRUN,
    "scontrol": _SCONTROL,
    "sbatch": _SBATCH,
    "squeue": _SQUEUE,
    "scancel": _SCANCEL,
    "sinfo": _SINFO,
}


class FakeSlurm:
    """A folder of programs and of what they wrote down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "bin"
        self.programs.mkdir(parents=True)
        for name, text in _PROGRAMS.items():
            write_program(self.programs / name, text)

    def environment(self, **more: str) -> dict[str, str]:
        """Variables with which a batch script finds the programs, as in job 4711 on two nodes."""
        return {
            **os.environ,
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "FAKE": str(self.folder),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "node-[a-b]",
            **more,
        }

    def run(self, script: Path, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs a batch script to its end."""
        return subprocess.run(
            ["bash", str(script)],
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def words(self, program: str) -> list[str]:
        """The arguments that a program got at its last call."""
        return _parts(self.folder / f"{program}.words")

    def srun_environment(self) -> dict[str, str]:
        """The variables that srun got."""
        pairs = (part.partition("=") for part in _parts(self.folder / "srun.environment"))
        return {name: value for name, _, value in pairs}

    def requeued(self) -> list[str]:
        """Jobs that were put back, in order."""
        path = self.folder / "requeued"
        return path.read_text().split() if path.exists() else []


def write_program(path: Path, text: str) -> Path:
    """Writes a script that can be run."""
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def _parts(path: Path) -> list[str]:
    return os.fsdecode(path.read_bytes()).split("\0")[:-1]
