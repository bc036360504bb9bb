"""`python -m jobs.sweep`: what `prefixworks sweep` runs, for jobs."""

import sys

from jobs.cli import run_stage
from jobs.sweep import main

if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
