"""`prefixworks features` end to end: killed, run again, and trained with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.features.record import MANIFEST_FILE
from tests.support.small_features import write_features
from tests.support.small_world import prepared_world
from tests.support.training_run import ROOT, assert_same, run, small_base, write_recipe

pytestmark = pytest.mark.integration


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "features", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_all(process: subprocess.Popen[str]) -> None:
    """As a power cut would: the command, its cluster and its workers."""
    for child in psutil.Process(process.pid).children(recursive=True):
        child.send_signal(signal.SIGKILL)
    process.kill()
    process.communicate()


def test_features_survive_a_kill_and_train_to_the_same_bits(tmp_path: Path) -> None:
    data = prepared_world(tmp_path, scenes=24, shard_size=20)
    base = small_base(tmp_path / "base", data)
    folder = tmp_path / "prepared" / "world_features_48_fp32"
    words = (f"--dataset={data}", f"--base={base}", "--precision=fp32", "--batch_size=2")
    process = start(*words, "--workers=1")
    until = time.monotonic() + 200
    while not list(folder.glob("features-*.json")) and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    kill_all(process)
    assert not (folder / MANIFEST_FILE).exists(), "the kill came too late to tell anything"
    said, _ = (again := start(*words, "--workers=1")).communicate(timeout=200)
    assert again.returncode == 0, said
    assert "0 of them kept" not in said
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    assert f"features of {manifest['images']} images in {len(manifest['files'])} shards" in said
    write_features(tmp_path / "here", data, base)
    names = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert names == sorted(path.name for path in folder.iterdir() if path.name != ".lock")
    assert all((folder / n).read_bytes() == (tmp_path / "here" / n).read_bytes() for n in names)
    engine = {"processes": 1}
    plain = write_recipe(tmp_path / "plain.yaml", base, data, engine=engine)
    stored = write_recipe(
        tmp_path / "stored.yaml", base, data, engine=engine, data={"features": [str(folder)]}
    )
    for recipe in (plain, stored):
        status, said = run(recipe)
        assert status == 0, said
    assert_same(stored, plain)
