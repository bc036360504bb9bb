"""`python -m jobs.launch`: the same as `prefixworks launch`."""

from __future__ import annotations

import sys

from jobs.cli import run_stage
from jobs.launch.command import main

if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
