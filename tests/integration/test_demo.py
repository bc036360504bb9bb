"""The whole way in one command: killed in the middle, continued, repeated, and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pandas as pd
import psutil
import pytest
from PIL import Image

from jobs.cli import main
from model.checkpoint import fingerprint, load_base

pytestmark = [pytest.mark.integration, pytest.mark.distributed, pytest.mark.slow]

SMALL = ["--scenes.train=24", "--scenes.val=4", "--scenes.test=4", "--training_steps=120"]


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "demo", f"--output={folder}", *SMALL],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_in_training(process: subprocess.Popen[str], folder: Path) -> None:
    """Kills the demo with everything that it started, once a training has saved something."""
    latest = folder / "runs" / "demo_grounding" / "checkpoints" / "latest"
    until = time.monotonic() + 240
    while not latest.is_file():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "no training began"
        time.sleep(0.1)
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        os.kill(each.pid, signal.SIGKILL)
    process.communicate()


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["train/loss"] for record in records if "train/loss" in record]


@pytest.mark.timeout(900)
def test_the_demo_survives_a_kill_and_ends_in_a_prediction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "demo"
    first = start(folder)
    kill_in_training(first, folder)
    assert not (folder / "demo-report.json").exists()

    second = start(folder)
    said, _ = second.communicate(timeout=600)
    assert second.returncode == 0, said
    assert "[1/8] " in said
    assert said.count("done already") == 3, "synthesize, prepare and zero-shot were finished"

    report = json.loads((folder / "demo-report.json").read_text())
    assert set(report["tasks"]) == {"grounding", "vqa"}
    for task, row in report["tasks"].items():
        assert row["metric"].startswith(f"{task}/")
        assert 0 <= row["zero_shot"] <= 1
        assert 0 <= row["tuned"] <= 1
        first_loss, *_, last_loss = losses(folder / "runs" / f"demo_{task}")
        assert last_loss < 0.8 * first_loss, "the prompt learnt nothing"
    base = fingerprint(load_base("ofa-micro"))
    assert report["base_fingerprint"] == {"before": base, "after": base}
    assert 0 < report["trainable_share"] < 0.1
    assert next(iter(report["seconds"])) == "synthesize"
    with Image.open(folder / "prediction.png") as picture:
        assert picture.width > 500

    # What the last lines promise: the store opens, and the champion predicts for an image file.
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    prompt = mlflow.pyfunc.load_model("models:/demo_grounding@champion")
    image = next((folder / "data" / "raw" / "downstream" / "images" / "test").glob("*.jpg"))
    answer = prompt.predict(pd.DataFrame({"image": [str(image)], "text": ["the star"]}))
    assert len(answer["box"][0]) == 4

    third = start(folder)
    said, _ = third.communicate(timeout=120)
    assert third.returncode == 0, said
    assert said.count("done already") == 8

    capsys.readouterr()
    assert main(["demo", f"--output={folder}"]) == 2
    assert "holds a demo with" in capsys.readouterr().err


def test_a_folder_with_something_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["demo", f"--output={tmp_path}"]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_dry_run_prints_the_commands_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", f"--output={tmp_path / 'demo'}", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "prefixworks registry register runs/demo_vqa --alias champion" in said
    assert not (tmp_path / "demo").exists()
