"""Commands of schedulers, such as sbatch and kubectl: what they print, and errors of one line."""

from __future__ import annotations

import subprocess

from pipeline.errors import DataError


def run(command: list[str], *, missing: str, longest_s: float) -> str:
    """Runs a command without a shell; what it printed.

    Args:
        command: Its words.
        missing: What to do where the program is not on PATH.
        longest_s: Seconds that it may take.

    Raises:
        DataError: it is missing, fails or does not answer.
    """
    program = command[0]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=longest_s
        )
    except FileNotFoundError as error:
        raise DataError(f"{program} is not on PATH; {missing}") from error
    except OSError as error:
        raise DataError(f"{program} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{program} gave no answer within {longest_s:.0f} s") from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"exit status {error.returncode}"
        raise DataError(f"{program} failed: {said}") from error
    return done.stdout
