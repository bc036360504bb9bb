"""Where a run comes from: code and library versions, hardware, data sets, flattened settings."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from data_prep.manifest import read_manifest
from pipeline.tracking.entries import Entry

LIBRARIES = ("deepspeed", "mlflow", "numpy", "pillow", "safetensors", "tokenizers", "torch")
"""Libraries whose version can change a result."""


def git_state(folder: Path | None = None, timeout_s: float = 10.0) -> dict[str, str]:
    """Tags that name the commit of the code at hand.

    Args:
        folder: A folder of the checkout; None for the one this package lies in.
        timeout_s: Longest wait for git.

    Returns:
        MLflow's own commit tag and `git.dirty`; empty outside a checkout or without git.
    """
    place = folder or Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(place), *words],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        # An installed package may lie in someone else's checkout, whose commit says nothing of it.
        if not git("ls-files"):
            return {}
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, "git.dirty": str(dirty).lower()}


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result depends on, where installed."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> dict[str, str]:
    """What this machine is, as short texts: processor, cores, memory, accelerators."""
    found = {
        "host": platform.node(),
        "platform": platform.platform(),
        "cpu": _processor(),
        "cpu_cores": str(len(os.sched_getaffinity(0))),
        "memory_gb": f"{psutil.virtual_memory().total / 1e9:.1f}",
        "gpus": str(torch.cuda.device_count()),
    }
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        found["gpu"] = f"{device.name}, {device.total_memory / 1e9:.0f} GB"
        found["cuda"] = str(torch.version.cuda)
    return found


def environment() -> dict[str, Any]:
    """Everything that is installed and the hardware, for a file beside the run."""
    packages = {
        each.metadata["Name"]: each.version
        for each in importlib.metadata.distributions()
        if each.metadata["Name"]
    }
    return {
        "python": platform.python_version(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
        "hardware": hardware(),
        "ranks": os.environ.get("WORLD_SIZE", "1"),
        "code": git_state(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: Python's own name of it has to do
    return platform.processor() or platform.machine()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted names and texts of a nested configuration; lists become JSON."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, str):
            flat[f"{prefix}{name}"] = value
        else:
            flat[f"{prefix}{name}"] = json.dumps(value)
    return flat


def dataset_entry(folder: str, context: str) -> Entry:
    """A journal entry that ties a prepared dataset to a run.

    Args:
        folder: Dataset folder with a manifest.
        context: What the run does with it: `train`, `validation` or `evaluation`.

    Raises:
        DataError: the manifest is missing or cannot be read.
    """
    manifest = read_manifest(folder)
    profile = {
        "num_rows": manifest.samples,
        "shards": len(manifest.shards),
        "tasks": manifest.tasks,
        "counts": manifest.counts,
        "digest": manifest.digest,
    }
    return {
        "kind": "input",
        "context": context,
        "name": manifest.name,
        "digest": manifest.digest,
        "source": json.dumps({"uri": folder if "://" in folder else str(Path(folder).resolve())}),
        "profile": json.dumps(profile, sort_keys=True),
    }
