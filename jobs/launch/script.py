"""The shell of a job's script, as far as all schedulers share it.

Values reach the shell through `quoted` alone, so that whatever they hold arrives as it is.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.launch.freeze import CODE_FOLDER, PACKAGES, FrozenJob
from jobs.launch.job_folder import EXIT_STATUS
from pipeline.errors import EXIT_INTERRUPTED

SCRIPT = "job.sh"

# A line of a secrets file is split, never run; its name is checked because bash evaluates what
# stands between brackets in a name.
_READ_SECRETS = """\
read_secrets() {
  local line name
  if [ ! -r "$1" ]; then
    printf 'error: the secrets file %s cannot be read\\n' "$1" >&2
    finish 1
  fi
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in '' | '#'*) continue ;; esac
    name=${line%%=*}
    if [ "$name" = "$line" ] || ! [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]]; then
      printf 'error: the secrets file %s has a line that is not KEY=VALUE\\n' "$1" >&2
      finish 1
    fi
    export "$name=${line#*=}"
  done <"$1"
}"""

# A trap ends `wait` early, with the signal's number; only a wait that nothing disturbed has the
# status of the work.
_WAITING = """\
wait_for_step() {
  if [ "$asked" -eq 1 ]; then forward; fi
  while :; do
    disturbed=0
    wait "$step"
    status=$?
    if [ "$disturbed" -eq 0 ]; then break; fi
  done
  # A process that was asked to stop before it could listen had nothing to save, and one that has
  # finished its run, but not ended yet, has nothing left to do.
  if [ "$asked" -eq 1 ]; then
    case $status in
      138 | 143) if [ -e "$finished" ]; then status=0; else status=%d; fi ;;
    esac
  fi
}"""


def quoted(words: Sequence[str]) -> str:
    """Words for the shell, each arriving as it is."""
    return shlex.join(words)


def interpreter(frozen: FrozenJob) -> str:
    """The Python of the job's processes."""
    default = sys.executable if frozen.launch.image is None else "python"
    return frozen.launch.python or default


def opening(frozen: FrozenJob, forward: str, own: Sequence[str] = ()) -> list[str]:
    """From the first line to where the work begins.

    Args:
        frozen: The job.
        forward: Commands, with their separators, that ask the running work to stop, whose process
            is `$step`.
        own: Commands that set `$ends`, the folder of the exit status, and `$finished` otherwise.
    """
    launch = frozen.launch
    lines = [
        "#!/bin/bash",
        f"# Written by `prefixworks launch` for the job {launch.name}; described in job.yaml.",
        "set -u",
        f"job={shlex.quote(str(frozen.folder))}",
        f"finished={shlex.quote(str(frozen.last_file()))}",
        'ends="$job"',
        *own,
        f'rm -f -- "$ends"/{EXIT_STATUS}',
        "asked=0 disturbed=0 step='' status=1",
        f'forward() {{ if [ -n "$step" ]; then {forward} fi; }}',
        "trap 'asked=1 disturbed=1; forward' TERM USR1",
        "finish() {",
        f'  printf \'%s\\n\' "$1" >"$ends"/.{EXIT_STATUS} &&'
        f' mv -- "$ends"/.{EXIT_STATUS} "$ends"/{EXIT_STATUS}',
        '  exit "$1"',
        "}",
        *(_READ_SECRETS.splitlines() if launch.secrets else []),
        *(_WAITING % EXIT_INTERRUPTED).splitlines(),
        f"cd -- {shlex.quote(str(frozen.working_dir))} || finish 1",
        *(f"export {name}={shlex.quote(value)}" for name, value in launch.environment.items()),
        *(f"read_secrets {shlex.quote(str(Path(path).absolute()))}" for path in launch.secrets),
    ]
    if launch.image is None:
        lines += [
            "# The frozen code, and never what lies in the folder that the job starts in.",
            f'export PYTHONSAFEPATH=1 PYTHONPATH="$job/{CODE_FOLDER}${{PYTHONPATH:+:$PYTHONPATH}}"',
        ]
    return lines


def packages_checked(frozen: FrozenJob) -> list[str]:
    """Ends the job where the installed packages are not those that it was submitted with."""
    if frozen.launch.image is not None:
        return []  # the image is the lock
    check = quoted([interpreter(frozen), "-m", "jobs.launch.packages"])
    return [f'{check} "$job"/{PACKAGES} || finish 1']
