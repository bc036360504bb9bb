"""Small real training runs: a random base, data of the embedded world, and the command itself."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from pipeline.training.data import ShardReader
from tests.support.small_base import small_model, small_tokenizer, write_base

ROOT = Path(__file__).parents[2]


def small_base(folder: Path, data: Path) -> Path:
    """Writes a base of random weights whose tokenizer knows the data's words."""
    with ShardReader(data) as reader:
        samples = [reader.read(position)[0] for position in range(len(reader))]
    texts = [text for sample in samples for text in (sample.instruction, *sample.references)]
    tokenizer = small_tokenizer(texts, text_count=320, bin_count=24, code_count=4)
    write_base(small_model(tokenizer, seed=3, image_size=48), tokenizer, folder)
    return folder


def write_recipe(path: Path, base: Path, data: Path, /, **sections: Any) -> Path:
    """Writes a recipe of two ranks and a few steps; sections are merged over it."""
    recipe: dict[str, Any] = {
        "name": path.stem,
        "output_dir": str(path.parent / "runs"),
        "base": {"path": str(base)},
        "tuning": {"method": "prefix", "prefix": {"length": 4}},
        "data": {"train": [str(data)], "streams": 8},
        "optimizer": {"lr": 0.01},
        "training": {
            "max_steps": 6,
            "batch_size_per_rank": 2,
            "dropout": 0.1,
            "log_every_steps": 1,
            "save_every_steps": 2,
            "step_timeout_s": 60,
        },
        "engine": {"processes": 2, "threads_per_process": 1},
        "tracking": {"enabled": False},
    }
    for name, section in sections.items():
        recipe[name] = {**recipe.get(name, {}), **section}
    path.write_text(yaml.safe_dump(recipe))
    return path


def start(
    recipe: Path, *arguments: str, file_size_limit: int | None = None
) -> subprocess.Popen[str]:
    """Starts the command; with a limit in bytes, writing beyond it fails as on a full disk."""

    def limit() -> None:
        if file_size_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))

    return subprocess.Popen(
        [sys.executable, "-m", "jobs.train", f"--config={recipe}", *arguments],
        cwd=ROOT,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=limit,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 120) -> tuple[int, str]:
    """Waits for a command; its status and what it said."""
    try:
        said, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        said, _ = process.communicate()
        raise AssertionError(f"did not end in {timeout_s} s and said: {said}") from None
    return process.returncode, said


def run(recipe: Path, *arguments: str) -> tuple[int, str]:
    """Runs the command to its end."""
    return finish(start(recipe, *arguments))


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The ranks that a command has started, in no order."""
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "jobs.train" in child.cmdline() and "deepspeed.launcher.launch" not in child.cmdline()
    ]


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Waits until a run has reported a step."""
    until = time.monotonic() + 180
    metrics = run_dir / "metrics.jsonl"
    while time.monotonic() < until and process.poll() is None:
        if metrics.is_file() and any(
            json.loads(line)["step"] >= step
            for line in metrics.read_text().splitlines()
            if line.endswith("}")
        ):
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached: {finish(process)[1]}")


def run_dir_of(recipe: Path) -> Path:
    return recipe.parent / "runs" / recipe.stem


def best_of(recipe: Path) -> dict[str, Tensor]:
    """What a run has trained."""
    return load_file(run_dir_of(recipe) / "best" / "trainable.safetensors")


def losses_of(recipe: Path) -> dict[int, float]:
    """The training loss of each reported step."""
    return {
        record["step"]: record["train/loss"]
        for record in records_of(recipe)
        if "train/loss" in record
    }


def records_of(recipe: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics, in order."""
    lines = (run_dir_of(recipe) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same(recipe: Path, undisturbed: Path) -> None:
    """Checks that two runs have trained the same bits and reported the same losses."""
    ours, theirs = best_of(recipe), best_of(undisturbed)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert losses_of(recipe) == losses_of(undisturbed)
