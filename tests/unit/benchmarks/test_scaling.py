"""The model of scale against what can be computed by hand."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import scale
from benchmarks.scaling import costs
from benchmarks.scaling.assumptions import Assumptions
from benchmarks.scaling.costs import Cluster, step_costs
from benchmarks.scaling.simulation import (
    COMPUTE,
    DATA,
    FAILURES,
    KINDS,
    SAVING,
    STRAGGLERS,
    VALIDATION,
    simulate,
)
from benchmarks.scaling.sizes import ModelSize, model_size

SIZE = ModelSize(trained=5_000_000, base=500_000_000, flops=900_000_000_000, modules=700)
QUIET = Assumptions(
    steps=200,
    jitter=0.0,
    mtbf_gpu_hours=0.0,
    store_gb_per_s=0.0,
    samples_per_s_per_worker=1e7,
)
"""Nothing but steps, and what happens between them."""


def expected_s(assumed: Assumptions, gpus: int) -> float:
    """Start, steps, reports, validations, checkpoints and end, one after another."""
    cluster = Cluster(assumed, gpus)
    step = step_costs(cluster, SIZE)
    steps, per_node = assumed.steps, min(gpus, assumed.gpus_per_node)
    workers = assumed.workers_per_gpu * per_node * assumed.samples_per_s_per_worker
    first_batch = step.samples / cluster.nodes / workers
    return (
        costs.start_s(cluster, SIZE)
        + first_batch
        + steps * step.total_s
        + steps // assumed.log_every_steps * costs.report_s(cluster)
        + math.ceil(steps / assumed.validate_every_steps) * costs.validation_s(cluster)
        + math.ceil(steps / assumed.save_every_steps) * costs.copying_s(cluster, SIZE)
        + costs.writing_s(cluster, SIZE)  # of the last one, which the end waits for
        + costs.end_s(cluster, SIZE)
    )


@pytest.mark.parametrize("gpus", [1, 2, 8, 64])
@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_without_chance_a_run_takes_the_sum_of_its_parts(gpus: int, stage: str) -> None:
    assumed = QUIET.changed([f"zero_stage={stage}"])
    found = simulate(assumed, gpus, SIZE)
    assert found.wall_s == pytest.approx(expected_s(assumed, gpus), rel=1e-9)
    assert found.samples_per_s == pytest.approx(200 * 1024 / found.wall_s)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.shares[COMPUTE] == pytest.approx(found.efficiency)
    assert found.failures == found.shares[STRAGGLERS] == 0


def test_one_slow_node_makes_every_step_as_long_as_its_own() -> None:
    slow = dataclasses.replace(QUIET, slow_nodes=0.01, slow_factor=1.5)
    compute = step_costs(Cluster(QUIET, 64), SIZE).compute_s
    found = simulate(slow, 64, SIZE)
    longer = found.wall_s - simulate(QUIET, 64, SIZE).wall_s
    assert longer == pytest.approx(200 * 0.5 * compute, rel=1e-9)
    # The other seven nodes wait for it.
    assert found.shares[STRAGGLERS] * found.wall_s == pytest.approx(200 * compute * 7 / 8 * 0.5)


def test_jitter_of_one_rank_evens_out_and_of_many_does_not() -> None:
    jittery = dataclasses.replace(QUIET, jitter=0.05)
    alone, many = simulate(jittery, 1, SIZE), simulate(jittery, 64, SIZE)
    assert alone.wall_s == pytest.approx(expected_s(QUIET, 1), rel=0.01)
    assert alone.shares[STRAGGLERS] == 0
    # The largest of 64 normal draws lies 2.39 standard deviations above their mean.
    waiting = many.shares[STRAGGLERS] * many.wall_s / 200
    compute = step_costs(Cluster(QUIET, 64), SIZE).compute_s
    assert waiting / compute == pytest.approx(math.exp(2.39 * 0.05) - 1, rel=0.05)


def test_a_store_that_is_too_slow_sets_the_pace() -> None:
    slow = dataclasses.replace(
        QUIET,
        steps=1000,
        store_gb_per_s=0.32,
        store_stream_gb_per_s=0.08,
        fetches_per_node=2,
        shard_samples=100,
        cached=False,
    )
    found = simulate(slow, 64, SIZE)
    seconds = 1000 * 1024 * slow.sample_bytes / 0.32e9
    training = found.wall_s - costs.start_s(Cluster(slow, 64), SIZE)
    assert training == pytest.approx(seconds, rel=0.05)
    assert found.shares[DATA] > 0.3


def test_workers_that_are_too_few_set_the_pace() -> None:
    few = dataclasses.replace(QUIET, workers_per_gpu=1, samples_per_s_per_worker=20)
    found = simulate(few, 8, SIZE)
    training = found.wall_s - costs.start_s(Cluster(few, 8), SIZE)
    assert training == pytest.approx(200 * 1024 / (8 * 20), rel=0.02)


def test_a_cache_helps_one_node_from_the_second_epoch_on() -> None:
    slow = dataclasses.replace(
        QUIET,
        steps=400,
        store_gb_per_s=0.08,
        store_stream_gb_per_s=0.08,
        fetches_per_node=2,
        dataset_samples=102_400,
    )
    kept = simulate(slow, 8, SIZE)
    fetched = simulate(dataclasses.replace(slow, cached=False), 8, SIZE)
    saved = 3 * 102_400 * slow.sample_bytes / 0.08e9
    free = simulate(QUIET.changed(["steps=400"]), 8, SIZE)
    paced = 300 * (free.wall_s - simulate(QUIET, 8, SIZE).wall_s) / 200
    # Three of four epochs run at the pace of the GPUs instead of the store's.
    assert fetched.wall_s - kept.wall_s == pytest.approx(saved - paced, rel=0.05)


def test_failures_cost_what_the_formula_of_exponential_failures_says() -> None:
    assumed = dataclasses.replace(
        QUIET,
        steps=4000,
        save_every_steps=100,
        validate_every_steps=4000,
        validation_samples=0,
        disk_gb_per_s=1e6,
        mtbf_gpu_hours=0.5,
    )
    cluster = Cluster(assumed, 8)
    quiet_s = expected_s(dataclasses.replace(assumed, mtbf_gpu_hours=0), 8)
    outside = costs.start_s(cluster, SIZE) + costs.end_s(cluster, SIZE)
    segment = (quiet_s - outside) / 40
    mean = 0.5 * 3600 / 8
    again = assumed.detect_s + costs.start_s(cluster, SIZE)
    # J. T. Daly, 2006: a segment is tried until it goes through without a failure.
    expected = outside + 40 * (mean + again) * (math.exp(segment / mean) - 1)
    runs = [simulate(dataclasses.replace(assumed, seed=seed), 8, SIZE) for seed in range(20)]
    assert statistics.mean(run.wall_s for run in runs) == pytest.approx(expected, rel=0.05)
    lost = statistics.mean(run.shares[FAILURES] * run.wall_s for run in runs)
    assert lost == pytest.approx(expected - quiet_s, rel=0.1)


def test_a_checkpoint_that_is_written_while_training_goes_on_costs_its_copy() -> None:
    slow_disk = dataclasses.replace(QUIET, save_every_steps=10, disk_gb_per_s=0.1)
    step = step_costs(Cluster(QUIET, 8), SIZE).total_s
    writing = costs.writing_s(Cluster(slow_disk, 8), SIZE)
    assert writing < 10 * step
    behind = simulate(slow_disk, 8, SIZE)
    waiting = simulate(dataclasses.replace(slow_disk, async_checkpoints=False), 8, SIZE)
    assert waiting.wall_s - behind.wall_s == pytest.approx(19 * writing, rel=1e-6)
    # And one that takes longer than the way to the next holds the loop up.
    full_disk = dataclasses.replace(slow_disk, disk_gb_per_s=0.002)
    full, writing = simulate(full_disk, 8, SIZE), costs.writing_s(Cluster(full_disk, 8), SIZE)
    held_up = 19 * (writing - 10 * step) + writing
    assert full.shares[SAVING] * full.wall_s == pytest.approx(held_up, rel=0.01)


def test_all_reduce_follows_latency_for_little_and_bandwidth_for_much() -> None:
    bare = dataclasses.replace(QUIET, collective_launch_s=0.0)
    assert Cluster(bare, 1).all_reduce_s(1e9) == 0
    two = Cluster(bare, 2)
    assert two.all_reduce_s(0) == pytest.approx(2 * bare.node_link_latency_s)
    assert two.all_reduce_s(1e12) == pytest.approx(1e12 / (bare.node_link_gb_per_s * 1e9), 1e-3)
    small = [Cluster(bare, gpus).all_reduce_s(16) for gpus in (8, 16, 64, 512)]
    assert small == sorted(small)
    # A tree: twice nine levels, three of them within a node.
    hops = 3 * bare.node_link_latency_s + 6 * bare.network_latency_s
    assert small[-1] == pytest.approx(2 * hops, rel=1e-3)


def test_steps_of_the_same_batch_take_less_on_more_gpus() -> None:
    times = [step_costs(Cluster(QUIET, gpus), SIZE).compute_s for gpus in (1, 8, 64, 512)]
    assert times[0] / times[2] == pytest.approx(64)
    # With two samples each, what a micro-batch costs beside its arithmetic is most of the step.
    assert 8 > times[2] / times[3] > 1
    assert step_costs(Cluster(QUIET.changed(["global_batch=0"]), 64), SIZE).samples == 64 * 16


def test_sizes_are_those_of_the_models() -> None:
    large = model_size(Assumptions())
    assert large.trained == 100 * 2 * 1024 * 24
    finetuned = model_size(Assumptions(arch="base", method="finetune", image_size=384))
    assert finetuned.trained == finetuned.base
    # What a step of four samples was counted to compute: benchmarks/results.
    assert 4 * finetuned.flops / 1e9 == pytest.approx(1335.3, abs=0.1)
    prompted = model_size(Assumptions(arch="base", prompt_length=64, image_size=384))
    assert 4 * prompted.flops / 1e9 == pytest.approx(760.4, rel=0.03)


def test_validation_ends_with_the_rank_that_has_most() -> None:
    assert costs.validation_s(Cluster(QUIET, 1)) == 64 * QUIET.search_s
    assert costs.validation_s(Cluster(QUIET, 64)) == QUIET.search_s
    found = simulate(QUIET, 1, SIZE)
    assert found.shares[VALIDATION] * found.wall_s == pytest.approx(64 * QUIET.search_s)


def test_a_seed_decides_all_that_is_chance(tmp_path: Path) -> None:
    def run(seed: int) -> str:
        file = tmp_path / f"{seed}.json"
        changes = ["arch=micro", "image_size=96", "steps=50", "mtbf_gpu_hours=1", f"seed={seed}"]
        flags = ["--arms", "prefix", "--gpus", "8", "--json", str(file)]
        scale.main([*flags, "--set", *changes])
        return file.read_text()

    assert run(1) == run(1) != run(2)
    (row,) = json.loads(run(1))["prefix"]["rows"]
    assert row["gpus"] == 8
    assert set(row["shares"]) == set(KINDS)


def test_every_arm_prints_its_rows_and_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--gpus", "1", "16", "--pictures", str(tmp_path / "pictures")]
    scale.main([*flags, "--set", "arch=micro", "image_size=96", "steps=20"])
    printed = capsys.readouterr().out
    for arm in scale.ARMS:
        assert printed.count(arm) >= 2
    for name in ("scale-time.png", "scale-speed.png"):
        with Image.open(tmp_path / "pictures" / name) as picture:
            assert picture.width > 400


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("colour=3", "no assumption 'colour'; there are: arch, method,"),
        ("steps=many", "steps: 'many' is not a whole number"),
        ("jitter=much", "jitter: 'much' is not a number"),
        ("method=lora", "method: 'lora' is none of prefix, adapter, bitfit, finetune"),
        ("cached=perhaps", "cached: 'perhaps' is none of true, false"),
        ("utilisation=0", "utilisation: 0.0 is not above 0"),
        ("jitter=-1", "jitter: -1.0 is below 0"),
        ("peak_tflops=nan", "peak_tflops: nan is not a finite number"),
    ],
)
def test_what_cannot_be_assumed_is_refused_in_one_line(change: str, said: str) -> None:
    with pytest.raises(SystemExit) as refused:
        scale.main(["--set", change])
    assert str(refused.value).startswith(f"error: {said}")


def test_gpus_that_do_not_fill_their_nodes_are_refused() -> None:
    with pytest.raises(SystemExit, match="12 GPUs do not fill nodes of 8"):
        scale.main(["--gpus", "12", "--set", "arch=micro", "image_size=96"])
