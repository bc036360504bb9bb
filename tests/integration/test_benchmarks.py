"""The benchmarks run, print a table and write rows; what they measure is not judged here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks.generate import known_arms as answering_arms
from benchmarks.train_step import known_arms as training_arms
from pipeline.training.flops import count_flops

ROOT = Path(__file__).parents[2]
KEYS = {
    "arm",
    "arch",
    "image_size",
    "batch",
    "prompt_length",
    "median_s",
    "cpu_s",
    "peak_mib",
    "peak_above_weights_mib",
    "flops",
    "ceiling_share",
}
SIZES = {"image-size": 32, "batch": 2, "prompt-length": 4, "src-len": 8, "tgt-len": 5}
FLAGS = {**SIZES, "arch": "micro", "padding": 2, "threads": 1, "repeats": 1, "device": "cpu"}

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("script", "arms"),
    [
        ("train_step.py", ["prefix", "finetune", "plain", "prefix without share_bias"]),
        ("generate.py", ["encoder pass", "greedy step", "beam-5 search"]),
        ("tracking.py", ["off", "hanging server"]),
    ],
)
def test_a_benchmark_prints_a_table_and_writes_rows(
    script: str, arms: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "rows.json"
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / script)),
            *(f"--{name}={value}" for name, value in FLAGS.items()),
            *("--dtype=float32", f"--json={file}", "--arms", *arms),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())
    assert [row["arm"] for row in rows] == arms
    for row in rows:
        assert set(row) == KEYS
        assert (row["arch"], row["image_size"], row["batch"]) == ("micro", 32, 2)
        assert row["arm"] in done.stdout
        assert row["median_s"] > 0
        assert row["flops"] > 0
        assert 0 < row["ceiling_share"] < 1.5
        assert row["peak_mib"] > row["peak_above_weights_mib"] >= 0
    assert re.search(r"times|of a step", done.stdout.splitlines()[-1])


def test_the_overhead_of_the_loop_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "overhead.py"), f"--json={file}"),
            *(f"--{name}={value}" for name, value in FLAGS.items()),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    bare, loop = json.loads(file.read_text())
    assert (bare["arm"], loop["arm"]) == ("bare", "loop")
    assert min(bare["median_s"], loop["median_s"]) > 0
    assert len(bare["samples_s"]) == len(loop["samples_s"]) > 0
    assert "of a bare one (median over the rounds)" in done.stdout.splitlines()[-1]


def test_an_unknown_arm_is_named() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "train_step.py"), "--arms", "lora"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "no arm 'lora'; there are: prefix," in done.stderr


def test_every_tuning_method_and_every_saving_has_an_arm() -> None:
    arms = training_arms()
    assert {"prefix", "finetune", "plain", "prefix without fold_batch_norm"} <= arms.keys()
    assert len(answering_arms()) == 3


def test_fused_attention_and_convolutions_are_counted() -> None:
    query = torch.randn(2, 3, 10, 8, requires_grad=True)
    key, value = (torch.randn(2, 3, 20, 8, requires_grad=True) for _ in range(2))
    mask = torch.zeros(1, 1, 10, 20)
    product = 2 * 2 * 3 * 10 * 20 * 8

    def forward() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    assert count_flops(forward) == 2 * product
    # The backward pass computes the scores again, and four more products.
    assert count_flops(lambda: forward().sum().backward()) == 7 * product
    image, weight = torch.randn(1, 3, 8, 8), torch.randn(5, 3, 3, 3)
    assert count_flops(lambda: F.conv2d(image, weight, padding=1)) == 2 * 64 * 5 * 27


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "train_step.py"), "--device=cuda"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("torch sees no CUDA device here: use --device cpu")
