"""Sweeps over a small run: their configuration, and the command itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from jobs.sweep.config import SweepConfig
from pipeline.config_reader import load
from tests.support.prepared import manifest_folder

ROOT = Path(__file__).parents[2]


def sweep_config(folder: Path, **settings: Any) -> SweepConfig:
    """A sweep over a run that is never trained: its data are a manifest and nothing else."""
    data = folder / "data"
    if not data.exists():
        manifest_folder(data, "data")
    tree: dict[str, Any] = {
        "name": "lr",
        "space": {"optimizer.lr": [0.1, 0.01, 0.001]},
        **settings,
        "settings": {
            "output_dir": str(folder / "runs"),
            "data": {"train": [str(data)], "validation": [str(data)]},
            **settings.get("settings", {}),
        },
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(tree))
    return load(SweepConfig, [path])


def start_sweep(config: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts the command."""
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.sweep", f"--config={config}", *arguments],
        cwd=ROOT,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def states_of(folder: Path) -> dict[str, str]:
    """How each trial stands, as `sweep.json` has it."""
    record = json.loads((folder / "sweep.json").read_text())
    return {row["trial"]: row["state"] for row in record["trials"]}
