"""A LoggedModel of MLflow for each checkpoint that a run keeps.

Its weights stay in the run folder, hence MLflow's word for it: an external model. It carries the
metrics of its step, tied to the data that they were measured on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.entities.run import Run
from mlflow.tracking import MlflowClient

from pipeline.tracking.entries import Entry
from pipeline.tracking.history import Told

KEY_TAG = "prefixworks.checkpoint"
_EXTERNAL_TAG = "mlflow.model.isExternal"
_CONTEXT_TAG = "mlflow.data.context"


def kept_checkpoints(run_dir: Path) -> dict[str, tuple[int, Path]]:
    """What a run folder keeps now: a key, the step, and the folder."""
    found = {
        place.name: (int(place.name[5:]), place)
        for place in sorted((run_dir / "checkpoints").glob("step-*"))
        if place.name[5:].isdigit() and (place / "state.json").is_file()
    }
    try:
        step = int(
            json.loads((run_dir / "best" / "state.json").read_text(encoding="utf-8"))["step"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return found  # there is none yet, or it is being written
    found[f"best-{step:06d}"] = (step, run_dir / "best")
    return found


def model_entry(
    key: str, step: int, place: Path, told: Mapping[str, Told], about: Mapping[str, Any]
) -> Entry:
    """The journal entry of a checkpoint.

    Args:
        key: Names it within the run.
        step: Its optimizer step.
        place: Its folder.
        told: Metrics that were told of that step.
        about: `name`, `method` and `params` of the run.
    """
    return {
        "kind": "model",
        "key": key,
        # These letters are not allowed in the name of a logged model.
        "name": re.sub(r"[/:.%\"']", "_", f"{about['name']}-{key}"),
        "method": about["method"],
        "step": step,
        "params": {**about["params"], "step": str(step), "folder": str(place)},
        "metrics": {name: [value, time_ms] for name, (value, time_ms) in told.items()},
    }


def send_model(client: MlflowClient, run_id: str, key: str, entry: Entry) -> None:
    """Makes the LoggedModel of a checkpoint, or completes it."""
    run = client.get_run(run_id)
    model = _find(client, run, key) or client.create_logged_model(
        run.info.experiment_id,
        name=entry["name"],
        source_run_id=run_id,
        tags={KEY_TAG: key, _EXTERNAL_TAG: "true"},
        params=entry["params"],
        model_type=entry["method"],
    )
    model_id, step = str(model.model_id), entry["step"]
    client.finalize_logged_model(model_id, "READY")
    outputs = run.outputs.model_outputs if run.outputs else []
    if all(output.model_id != model_id for output in outputs):
        client.log_outputs(run_id, models=[LoggedModelOutput(model_id, step=step)])
    metrics = []
    for name, (value, time_ms) in entry["metrics"].items():
        dataset, digest = _dataset(run, "train" if name.startswith("train/") else "validation")
        # The same time as in the run's own history, where the store takes it for the same point.
        metrics.append(
            Metric(
                name,
                float(value),
                time_ms,
                step,
                model_id=model_id,
                dataset_name=dataset,
                dataset_digest=digest,
                run_id=run_id,
            )
        )
    if metrics:
        client.log_batch(run_id, metrics=metrics)


def remove_model(client: MlflowClient, run_id: str, key: str) -> None:
    """Deletes the LoggedModel of a checkpoint that is no longer kept."""
    model = _find(client, client.get_run(run_id), key)
    if model is not None:
        client.delete_logged_model(str(model.model_id))


def _find(client: MlflowClient, run: Run, key: str) -> LoggedModel | None:
    found = client.search_logged_models(
        [run.info.experiment_id], filter_string=f"tags.`{KEY_TAG}` = '{key}'", max_results=1
    )
    return found[0] if found else None


def _dataset(run: Run, context: str) -> tuple[str | None, str | None]:
    """Name and digest of the one data set of a context; of several, none is the right one."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    fitting = [
        each.dataset
        for each in inputs
        if any(tag.key == _CONTEXT_TAG and tag.value == context for tag in each.tags)
    ]
    if len(fitting) != 1:
        return None, None
    return fitting[0].name, fitting[0].digest
