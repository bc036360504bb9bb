"""A prompt artifact becomes an MLflow model, and that a version of a registered model.

The MLflow model is code and plain files: this package's pyfunc file, the artifact, a signature, an
input example and pinned requirements. All goes through clients, since MLflow's fluent calls would
change the process's default store.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import mlflow.pyfunc
from mlflow.entities import LoggedModel, LoggedModelOutput, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.tracking import MlflowClient

from pipeline.registry import interface
from pipeline.registry.artifact import PICTURES_FOLDER
from pipeline.registry.card import describe
from pipeline.registry.lineage import log_scores, own_run
from pipeline.registry.record import PROMPT_FORMAT, PromptRecord
from pipeline.tracking.config import StoreLocation

ARTIFACT_NAME = "prompt"
"""Name of the artifact folder inside the MLflow model."""
ARTIFACT_FOLDER = f"artifacts/{ARTIFACT_NAME}"
"""Place of the artifact inside the MLflow model."""
_CODE_FILE = Path(__file__).with_name("pyfunc.py")


def publish(
    client: MlflowClient,
    location: StoreLocation,
    experiment: str,
    folder: Path,
    record: PromptRecord,
    name: str,
    run_id: str | None,
) -> str:
    """Makes a new version of a registered model.

    Args:
        client: Client of the store.
        location: The store.
        experiment: Experiment of the run that is made where there is none.
        folder: The artifact.
        record: Its record.
        name: Name of the registered model.
        run_id: MLflow run that made the prompt; None makes one that tells what the record knows.

    Returns:
        The version's number.

    Raises:
        MlflowException: the store refuses something; a version is only made as the last step.
    """
    pictures = sorted(folder.glob(f"{PICTURES_FOLDER}/*.png"))
    if run_id is None:
        run_id = own_run(client, location, experiment, record, pictures)
    run = client.get_run(run_id)
    logged = _log_model(client, folder, record, name, run)
    _ensure_model(client, name, record)
    shown = {picture.name: _picture_link(logged, picture.name) for picture in pictures}
    made = client.create_model_version(
        name,
        # Not models:/<id>, which MLflow looks up in the process's default store.
        logged.artifact_location,
        run_id=run.info.run_id,
        tags=interface.version_tags(record),
        description=describe(record, shown),
        model_id=logged.model_id,
    )
    return str(made.version)


def _ensure_model(client: MlflowClient, name: str, record: PromptRecord) -> None:
    tasks = ", ".join(task.name for task in record.meta.tasks)
    purpose = f"Prompts for {tasks} on the frozen base {record.meta.base.name}."
    try:
        client.create_registered_model(name, description=purpose)
    except MlflowException as error:
        # Registered before, perhaps a moment ago by another process.
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _log_model(
    client: MlflowClient, folder: Path, record: PromptRecord, name: str, run: Run
) -> LoggedModel:
    logged = client.create_logged_model(
        run.info.experiment_id,
        name=name.replace(".", "_"),
        source_run_id=run.info.run_id,
        tags=interface.version_tags(record),
        model_type=record.meta.method,
    )
    model_id = str(logged.model_id)
    try:
        with tempfile.TemporaryDirectory(prefix="prefixworks-model-") as scratch:
            model = _saved_model(Path(scratch), folder, record, run.info.run_id, model_id)
            client.log_model_artifacts(model_id, str(model))
    except BaseException:
        client.finalize_logged_model(model_id, "FAILED")
        raise
    client.log_outputs(run.info.run_id, models=[LoggedModelOutput(model_id, step=0)])
    log_scores(client, run.info.run_id, record, model_id)
    return client.finalize_logged_model(model_id, "READY")


def _saved_model(
    scratch: Path, folder: Path, record: PromptRecord, run_id: str, model_id: str
) -> Path:
    # MLflow keeps the folder's own name, so whatever it is called here, there it is `prompt`.
    named = scratch / ARTIFACT_NAME
    shutil.copytree(folder, named)
    model = scratch / "model"
    mlflow.pyfunc.save_model(
        model,
        mlflow_model=Model(run_id=run_id, model_id=model_id),
        python_model=str(_CODE_FILE),
        artifacts={ARTIFACT_NAME: str(named)},
        signature=interface.signature(),
        input_example=interface.input_example(record),
        pip_requirements=interface.requirements(),
        metadata={"prompt_format": PROMPT_FORMAT, "prompt_digest": record.digest},
    )
    return model


def _picture_link(logged: LoggedModel, name: str) -> str:
    # The address under which MLflow's own pages show a model's files; relative to the UI.
    path = f"{ARTIFACT_FOLDER}/{PICTURES_FOLDER}/{name}"
    return (
        f"ajax-api/2.0/mlflow/logged-models/{logged.model_id}/artifacts/files"
        f"?artifact_file_path={path}"
    )
