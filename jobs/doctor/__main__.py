"""`python -m jobs.doctor`, for launchers that start modules; errors as the command has them."""

import sys

from jobs.cli import run_stage
from jobs.doctor.command import main

if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
