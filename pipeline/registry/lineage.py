"""What MLflow is told of a prompt whose training it did not see: a run made from the record.

A prompt that is registered from a folder, or comes from another registry, has no run here. Its
record knows the configuration, the data, the base and the scores, so they become a run that looks
like the run of a training, and a version always leads to them.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from pipeline.registry.record import DataUse, PromptRecord
from pipeline.tracking.config import StoreLocation
from pipeline.tracking.delivery import find_experiment
from pipeline.tracking.provenance import flatten

_LONGEST_VALUE = 5_000
_ENTRIES_A_CALL = 100
_DIGEST_CHARACTERS = 36
"""MLflow's limit for the digest of a data set; the whole one is in its profile."""


def own_run(
    client: MlflowClient,
    location: StoreLocation,
    experiment: str,
    record: PromptRecord,
    pictures: Sequence[Path],
) -> str:
    """Makes a finished run that tells where a prompt comes from.

    Args:
        client: Client of the store.
        location: The store.
        experiment: Experiment of the run; made where it is missing.
        record: The prompt's record.
        pictures: PNG files to show with the run.

    Returns:
        The run's id.
    """
    place = find_experiment(client, experiment, location)
    run_id = str(client.create_run(place, run_name=f"register {record.meta.name}").info.run_id)
    settings = flatten(record.meta.config)
    params = [Param(name, value[:_LONGEST_VALUE]) for name, value in settings.items()]
    for start in range(0, len(params), _ENTRIES_A_CALL):
        client.log_batch(run_id, params=params[start : start + _ENTRIES_A_CALL])
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in _tags(record).items()])
    client.log_inputs(run_id, datasets=[_dataset(use) for use in _distinct(record.meta.data)])
    _log_config(client, run_id, record)
    for picture in pictures:
        client.log_artifact(run_id, str(picture), "pictures")
    client.set_terminated(run_id)
    return run_id


def log_scores(client: MlflowClient, run_id: str, record: PromptRecord, model_id: str) -> None:
    """Ties the record's scores to the logged model, with the data they were measured on.

    Args:
        client: Client of the store.
        run_id: The run that the model belongs to.
        record: The prompt's record.
        model_id: MLflow's id of the logged model.
    """
    measured = record.measured_on
    data = measured[0] if measured else None
    now = int(time.time() * 1000)
    metrics = [
        Metric(
            f"registered/{name}",
            value,
            now,
            0,
            model_id=model_id,
            dataset_name=data.name if data else None,
            dataset_digest=_short(data.digest) if data else None,
            run_id=run_id,
        )
        for name, value in sorted(record.meta.metrics.items())
    ]
    if metrics:
        client.log_batch(run_id, metrics=metrics)


def _tags(record: PromptRecord) -> dict[str, str]:
    meta = record.meta
    tags = {f"library.{name}": version for name, version in meta.libraries.items()}
    return tags | {
        "base.name": meta.base.name,
        "base.fingerprint": meta.base.fingerprint,
        "prompt.digest": record.digest,
        "mlflow.source.name": "prefixworks registry",
        "mlflow.note.content": f"Made from the record of the prompt {meta.name} when it was"
        " registered: its training is not recorded in this store.",
    }


def _log_config(client: MlflowClient, run_id: str, record: PromptRecord) -> None:
    with tempfile.TemporaryDirectory(prefix="prefixworks-config-") as scratch:
        path = Path(scratch) / "config.json"
        path.write_text(json.dumps(record.meta.config, indent=2, sort_keys=True) + "\n")
        client.log_artifact(run_id, str(path))


def _distinct(uses: Sequence[DataUse]) -> list[tuple[DataUse, str]]:
    # MLflow ties a data set to a run once, so one that has two roles shows both.
    roles: dict[tuple[str, str], list[DataUse]] = {}
    for use in uses:
        roles.setdefault((use.name, use.digest), []).append(use)
    return [(same[0], ", ".join(use.role for use in same)) for same in roles.values()]


def _dataset(distinct: tuple[DataUse, str]) -> DatasetInput:
    use, context = distinct
    dataset = Dataset(
        name=use.name,
        digest=_short(use.digest),
        source_type="prefixworks",
        source=json.dumps({"digest": use.digest}),
        profile=json.dumps({"num_rows": use.samples, "digest": use.digest}, sort_keys=True),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:_DIGEST_CHARACTERS]
