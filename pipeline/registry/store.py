"""Registered prompts: each version of an MLflow registered model holds one prompt artifact.

Versions are found as MLflow's users find them: by name and number, by alias (`name@champion`), in
the UI by tags and description, and with `mlflow.pyfunc.load_model("models:/name@champion")`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow
import mlflow.artifacts
import mlflow.pyfunc
from mlflow.entities import LoggedModel, LoggedModelOutput, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.tracking import MlflowClient

from pipeline.errors import RegistryError
from pipeline.registry import interface
from pipeline.registry.artifact import read_prompt
from pipeline.registry.card import describe
from pipeline.registry.record import PROMPT_FORMAT, PromptRecord
from pipeline.tracking.config import StoreLocation, sqlite_file
from pipeline.tracking.delivery import find_experiment, open_client

CHAMPION = "champion"
"""Alias of the version that is in use."""
CHALLENGER = "challenger"
"""Alias of the version that is tried against it."""
ARTIFACT_NAME = "prompt"
"""Name of the artifact folder inside the MLflow model."""
_CODE_FILE = Path(__file__).with_name("pyfunc.py")


@dataclass(frozen=True, kw_only=True)
class RegisteredPrompt:
    """One version of a registered prompt."""

    name: str
    version: int
    aliases: tuple[str, ...]
    tags: dict[str, str]
    description: str
    run_id: str | None
    created_ms: int

    @property
    def uri(self) -> str:
        """The version's MLflow URI."""
        return f"models:/{self.name}/{self.version}"


class PromptRegistry:
    """The prompts that are registered in one MLflow store.

    Args:
        location: The store.
        experiment: Experiment of the runs that registering makes where a prompt has none.
        create: Whether a local store that does not exist yet is made.

    Raises:
        RegistryError: the local store does not exist and is not to be made.
    """

    def __init__(
        self, location: StoreLocation, experiment: str = "prefixworks", *, create: bool = False
    ) -> None:
        database = sqlite_file(location.uri)
        if database is not None and not create and not database.is_file():
            raise RegistryError(f"there is no MLflow store at {location.uri}")
        self.location = location
        self.experiment = experiment
        self._client: MlflowClient = open_client(location)

    def register(
        self,
        folder: str | Path,
        name: str | None = None,
        *,
        run_id: str | None = None,
        aliases: Sequence[str] = (),
    ) -> RegisteredPrompt:
        """Registers a prompt artifact as a new version.

        Args:
            folder: The artifact; it is read and checked first.
            name: Name of the registered model; the prompt's own name by default.
            run_id: MLflow run that made the prompt; a run of its own is made when None.
            aliases: Aliases that move to the new version.

        Raises:
            RegistryError: the artifact is damaged or the store refuses it.
        """
        record = read_prompt(folder).record
        title = name or record.meta.name
        try:
            version = self._add_version(Path(folder).resolve(), record, title, run_id)
            for alias in aliases:
                self._client.set_registered_model_alias(title, alias, version)
            return self.get(f"{title}/{version}")
        except MlflowException as error:
            raise RegistryError(f"{title} was not registered: {_line(error)}") from error

    def _add_version(
        self, folder: Path, record: PromptRecord, name: str, run_id: str | None
    ) -> str:
        # All through clients: MLflow's fluent calls would change this process's default store.
        run = self._client.get_run(run_id or self._own_run(record))
        logged = self._log_model(folder, record, name, run)
        try:
            self._client.create_registered_model(name, description=_purpose(record))
        except MlflowException as error:
            # Registered before, perhaps a moment ago by another process.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = self._client.create_model_version(
            name,
            # Not models:/<id>, which MLflow looks up in the process's default store.
            logged.artifact_location,
            run_id=run.info.run_id,
            tags=interface.version_tags(record),
            description=describe(record),
            model_id=logged.model_id,
        )
        return str(made.version)

    def _log_model(self, folder: Path, record: PromptRecord, name: str, run: Run) -> LoggedModel:
        logged = self._client.create_logged_model(
            run.info.experiment_id,
            name=name.replace(".", "_"),
            source_run_id=run.info.run_id,
            tags=interface.version_tags(record),
            model_type=record.meta.method,
        )
        model_id = str(logged.model_id)
        try:
            with tempfile.TemporaryDirectory() as scratch:
                model = Path(scratch) / "model"
                mlflow.pyfunc.save_model(
                    model,
                    mlflow_model=Model(run_id=run.info.run_id, model_id=model_id),
                    python_model=str(_CODE_FILE),
                    artifacts={ARTIFACT_NAME: str(folder)},
                    signature=interface.signature(),
                    input_example=interface.input_example(record),
                    pip_requirements=interface.requirements(),
                    metadata={"prompt_format": PROMPT_FORMAT, "prompt_digest": record.digest},
                )
                self._client.log_model_artifacts(model_id, str(model))
        except BaseException:
            self._client.finalize_logged_model(model_id, "FAILED")
            raise
        self._client.log_outputs(run.info.run_id, models=[LoggedModelOutput(model_id, step=0)])
        return self._client.finalize_logged_model(model_id, "READY")

    def _own_run(self, record: PromptRecord) -> str:
        experiment = find_experiment(self._client, self.experiment, self.location)
        run = self._client.create_run(experiment, run_name=f"register {record.meta.name}")
        self._client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    def set_alias(self, reference: str, alias: str) -> RegisteredPrompt:
        """Moves an alias to a version.

        Args:
            reference: `name/version` or `name@alias`.
            alias: The alias, such as `champion`.
        """
        prompt = self.get(reference)
        try:
            self._client.set_registered_model_alias(prompt.name, alias, str(prompt.version))
        except MlflowException as error:
            raise RegistryError(f"alias {alias!r} was not set: {_line(error)}") from error
        return self.get(f"{prompt.name}/{prompt.version}")

    def names(self) -> list[str]:
        """Names of all registered prompts, sorted."""
        return sorted(model.name for model in self._client.search_registered_models())

    def versions(self, name: str | None = None) -> list[RegisteredPrompt]:
        """Versions of one prompt or of all, by name and then number."""
        names = [name] if name is not None else self.names()
        found = [self.get(f"{each}/{v}") for each in names for v in self._numbers(each)]
        if name is not None and not found:
            raise RegistryError(f"no prompt {name!r} is registered{_hint(self.names())}")
        return found

    def _numbers(self, name: str) -> list[int]:
        text = name.replace("'", "")
        return sorted(int(v.version) for v in self._client.search_model_versions(f"name='{text}'"))

    def get(self, reference: str) -> RegisteredPrompt:
        """One version.

        Args:
            reference: `name/version`, `name@alias`, or either behind `models:/`.

        Raises:
            RegistryError: there is no such version.
        """
        name, version, alias = parse_reference(reference)
        try:
            if alias is not None:
                version = str(self._client.get_model_version_by_alias(name, alias).version)
            return _prompt(self._client.get_model_version(name, str(version)))
        except MlflowException as error:
            known = _hint(self.names()) if name not in self.names() else ""
            raise RegistryError(f"{reference} is not registered{known}") from error

    def download(self, reference: str) -> Path:
        """The artifact folder of a version, on this machine.

        Raises:
            RegistryError: there is no such version, or its files cannot be fetched.
        """
        prompt = self.get(reference)
        try:
            place = self._client.get_model_version_download_uri(prompt.name, str(prompt.version))
            model = Path(
                mlflow.artifacts.download_artifacts(
                    artifact_uri=place, tracking_uri=self.location.uri
                )
            )
        except (MlflowException, OSError) as error:
            raise RegistryError(
                f"the files of {reference} cannot be fetched: {_line(error)}"
            ) from error
        found = sorted(model.glob("artifacts/*/prompt.json"))
        if not found:
            raise RegistryError(f"{reference} holds no prompt artifact")
        return found[0].parent


def parse_reference(reference: str) -> tuple[str, str | None, str | None]:
    """Splits a reference into name and version, or name and alias.

    Raises:
        RegistryError: it is neither `name/version` nor `name@alias`.
    """
    text = reference.removeprefix("models:/")
    name, at, alias = text.rpartition("@")
    if at and name and alias:
        return name, None, alias
    name, slash, version = text.rpartition("/")
    if slash and name and version.isdigit():
        return name, version, None
    raise RegistryError(f"{reference!r} is neither name@alias nor name/version")


def _prompt(version: ModelVersion) -> RegisteredPrompt:
    return RegisteredPrompt(
        name=version.name,
        version=int(version.version),
        aliases=tuple(sorted(version.aliases)),
        tags=dict(sorted(version.tags.items())),
        description=version.description or "",
        run_id=version.run_id or None,
        created_ms=int(version.creation_timestamp),
    )


def _purpose(record: PromptRecord) -> str:
    tasks = ", ".join(task.name for task in record.meta.tasks)
    return f"Prompts for {tasks} on the frozen base {record.meta.base.name}."


def _hint(names: Sequence[str]) -> str:
    return f" (registered are: {', '.join(names)})" if names else " (the registry is empty)"


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
