"""First values belong to the start of a run: one that goes on does not begin again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.training_run import (
    assert_same,
    best_of,
    finish,
    run,
    run_dir_of,
    start,
    wait_for_step,
    write_recipe,
)

pytestmark = pytest.mark.distributed


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, data: Path, base: Path
) -> None:
    sections = {
        "initial": {"values": "activations", "samples": 4},
        "tuning": {"prefix": {"length": 4, "layer_lr_decay": 0.5}},
        "engine": {"processes": 1, "threads_per_process": 1},
    }
    undisturbed, killed = (
        write_recipe(tmp_path / f"{name}.yaml", base, data, **sections)
        for name in ("undisturbed", "killed")
    )
    assert run(undisturbed)[0] == 0
    process = start(killed)
    wait_for_step(run_dir_of(killed), 3, process)
    process.kill()
    finish(process)
    status, said = run(killed, "--resume")
    assert status == 0, said
    assert_same(killed, undisturbed)
    # Random values with a standard deviation of 0.02 do not get so far in six steps of 0.01.
    highest = best_of(killed)["encoder.embedding.weight"].chunk(2, dim=1)[1]
    assert highest.abs().max() > 0.2
