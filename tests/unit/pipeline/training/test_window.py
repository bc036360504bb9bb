"""Reports between steps: means over tokens, speed of training alone, shares of waiting."""

from __future__ import annotations

import time

import pytest
import torch

from pipeline.training.spans import DATA_WAIT, FORWARD, SAVING, Spans
from pipeline.training.window import Window
from pipeline.training.world import World

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def _step(window: Window, loss: float) -> None:
    window.sums.loss += loss
    window.sums.nll += loss / 2
    window.sums.counted += 10
    window.sums.tokens += 10
    window.sums.source_tokens += 30
    window.sums.samples += 4
    window.sums.steps += 1


def test_a_report_is_about_its_own_steps() -> None:
    window = Window(ALONE, Spans())
    _step(window, 40.0)
    _step(window, 20.0)
    first = window.close().metrics
    assert first["train/loss"] == 3.0
    assert first["train/nll"] == 1.5
    assert first["train/tokens_per_s"] == pytest.approx(4 * first["train/target_tokens_per_s"])
    _step(window, 10.0)
    assert window.close().metrics["train/loss"] == 1.0


def test_paused_time_is_not_of_training() -> None:
    window = Window(ALONE, Spans())
    window.open()
    with window.paused():
        time.sleep(0.2)
    _step(window, 1.0)
    assert window.close().metrics["train/samples_per_s"] > 4 / 0.1


def test_waiting_counts_since_the_last_report() -> None:
    spans = Spans()
    window = Window(ALONE, spans)
    window.open()
    with spans(DATA_WAIT):
        time.sleep(0.02)
    time.sleep(0.05)
    _step(window, 1.0)
    report = window.close()
    assert 0 < report.metrics["train/data_wait_share"] < 0.5
    assert report.data_wait_shares == [report.metrics["train/data_wait_share"]]
    time.sleep(0.02)
    _step(window, 1.0)
    assert window.close().metrics["train/data_wait_share"] == 0.0


def test_parts_of_a_step_are_means_over_the_steps_and_others_over_their_own_number() -> None:
    spans = Spans()
    window = Window(ALONE, spans)
    window.open()
    for _ in range(2):
        with spans(FORWARD):
            time.sleep(0.02)
        _step(window, 1.0)
    with window.paused(), spans(SAVING):
        time.sleep(0.1)
    forward, saving = spans.seconds[FORWARD], spans.seconds[SAVING]
    metrics = window.close().metrics
    assert metrics["time/forward_s"] == pytest.approx(forward / 2)
    assert metrics["time/saving_s"] == pytest.approx(saving)
    assert metrics["time/forward_s"] <= metrics["time/step_s"]
    assert "time/validation_s" not in metrics
    assert "time/saving_s" not in window.close().metrics


def test_utilisation_is_the_share_of_what_a_rank_could_do() -> None:
    window = Window(ALONE, Spans(), peak_flops=1e12)
    _step(window, 1.0)
    window.sums.flops = 5e9
    metrics = window.close().metrics
    assert metrics["train/flop_utilisation"] == pytest.approx(metrics["train/tflops_per_s"])
    assert metrics["train/tflops_per_s"] == pytest.approx(5e-3 / metrics["time/step_s"])
    _step(window, 1.0)
    assert "train/flop_utilisation" not in window.close().metrics


def test_memory_is_at_least_what_is_held_now() -> None:
    held = torch.ones(2**24)
    memory = Window(ALONE, Spans()).close().metrics["memory/peak_gib"]
    assert held.nbytes / 2**30 < memory < 1000
