"""Reports between steps: means over tokens, speed of training alone, shares of waiting."""

from __future__ import annotations

import time

import pytest
import torch

from pipeline.training.window import Window
from pipeline.training.world import World

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def _step(window: Window, loss: float) -> None:
    window.sums.loss += loss
    window.sums.nll += loss / 2
    window.sums.counted += 10
    window.sums.tokens += 10
    window.sums.samples += 4


def test_a_report_is_about_its_own_steps() -> None:
    window = Window(ALONE)
    _step(window, 40.0)
    _step(window, 20.0)
    first = window.close(waited_s=0.0)
    assert first["train/loss"] == 3.0
    assert first["train/nll"] == 1.5
    _step(window, 10.0)
    assert window.close(waited_s=0.0)["train/loss"] == 1.0


def test_paused_time_is_not_of_training() -> None:
    window = Window(ALONE)
    window.open()
    with window.paused():
        time.sleep(0.2)
    _step(window, 1.0)
    assert window.close(waited_s=0.0)["train/samples_per_s"] > 4 / 0.1


def test_waiting_counts_since_the_last_report() -> None:
    window = Window(ALONE)
    time.sleep(0.05)
    _step(window, 1.0)
    assert 0 < window.close(waited_s=0.01)["train/data_wait_share"] < 0.25
    time.sleep(0.02)
    _step(window, 1.0)
    assert window.close(waited_s=0.01)["train/data_wait_share"] == pytest.approx(0.0)
