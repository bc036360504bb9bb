"""A real run of two ranks in a real MLflow store, killed in the middle and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from pipeline.tracking.nodes import node_name
from pipeline.tracking.sync import look_at
from tests.support.mlflow_store import make_store
from tests.support.tracked_run import client_and_run, steps_of
from tests.support.training_run import (
    finish,
    ranks_of,
    run_dir_of,
    start,
    wait_for_step,
    write_recipe,
)

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, data: Path, base: Path) -> Path:
    """The run folder of a run that was killed at its fourth step or later, and resumed."""
    folder = tmp_path_factory.mktemp("tracked")
    make_store(folder / "runs")
    recipe = write_recipe(
        folder / "shapes.yaml",
        base,
        data,
        data={"validation": [str(data)]},
        training={"max_steps": 8, "validate_every_steps": 4, "validation_samples": 4},
        tracking={"enabled": True, "pictures": 3, "system_metrics_s": 0.2, "delivery_s": 0.1},
    )
    process = start(recipe)
    run_dir = run_dir_of(recipe)
    wait_for_step(run_dir, 5, process)
    for rank in ranks_of(process):
        rank.kill()
    finish(process)
    status, said = finish(start(recipe, "--resume"), timeout_s=300)
    assert status == 0, said
    assert "not reached" not in said
    # The lines of a run are its steps; MLflow and its libraries say nothing between them.
    assert "View run" not in said
    return run_dir


def test_a_killed_and_resumed_run_is_one_run_without_doubles(tracked: Path) -> None:
    client, run_id = client_and_run(tracked)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert steps_of(client, run_id) == list(range(1, 9))
    assert steps_of(client, run_id, "validation/loss") == [4, 8]
    history = {m.step: m.value for m in client.get_metric_history(run_id, "train/loss")}
    lines = [json.loads(line) for line in (tracked / "metrics.jsonl").open()]
    assert history == {r["step"]: r["train/loss"] for r in lines if "train/loss" in r}
    assert look_at(tracked).waiting == 0


def test_it_has_its_checkpoints_as_models(tracked: Path) -> None:
    client, run_id = client_and_run(tracked)
    experiment = client.get_run(run_id).info.experiment_id
    models = {m.name: m for m in client.search_logged_models([experiment])}
    best = json.loads((tracked / "best" / "state.json").read_text())["step"]
    kept = {f"shapes-{path.name}" for path in (tracked / "checkpoints").glob("step-*")}
    assert set(models) == {f"shapes-best-{best:06d}", *kept}
    metrics = {m.key: m.dataset_name for m in models["shapes-step-000008"].metrics}
    assert metrics.keys() >= {"train/loss", "validation/loss"}


def test_it_shows_the_same_samples_at_each_validation(tracked: Path) -> None:
    client, run_id = client_and_run(tracked)
    pictures = [f.path for f in client.list_artifacts(run_id, "pictures/predictions")]
    assert pictures == [f"pictures/predictions/step-00000{n}.png" for n in (4, 8)]
    sheets = [Image.open(tracked / picture).size for picture in pictures]
    # Three cells beside each other.
    assert sheets == [(3 * 274 + 14, sheets[0][1])] * 2
    assert "pictures/curves.png" in [f.path for f in client.list_artifacts(run_id, "pictures")]


def test_its_machine_tells_how_busy_it_is(tracked: Path) -> None:
    client, run_id = client_and_run(tracked)
    looks = steps_of(client, run_id, f"system/{node_name()}/system_memory_usage_megabytes")
    assert len(looks) > 3
    assert looks == list(range(len(looks)))
