"""Registered prompts: each version of an MLflow registered model holds one prompt artifact.

Versions are found as MLflow's users find them: by name and number, by alias (`name@champion`), in
the UI by tags and description, and with `mlflow.pyfunc.load_model("models:/name@champion")`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow.artifacts
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.errors import RegistryError
from pipeline.registry.artifact import RECORD_FILE, read_prompt, read_record
from pipeline.registry.publishing import ARTIFACT_FOLDER, publish
from pipeline.registry.record import PromptRecord
from pipeline.registry.reference import RegisteredPrompt, check_name, parse_reference, prompt_of
from pipeline.tracking.config import StoreLocation, sqlite_file
from pipeline.tracking.delivery import open_client


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
        self.client: MlflowClient = open_client(location)

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
        title = check_name(name or record.meta.name)
        with refusals(f"{title} was not registered"):
            place = Path(folder).resolve()
            version = publish(
                self.client, self.location, self.experiment, place, record, title, run_id
            )
            for alias in aliases:
                self.client.set_registered_model_alias(title, alias, version)
        return self.get(f"{title}/{version}")

    def set_alias(self, reference: str, alias: str) -> RegisteredPrompt:
        """Moves an alias to a version, without any question.

        Args:
            reference: `name/version` or `name@alias`.
            alias: The alias, such as `challenger`.
        """
        prompt = self.get(reference)
        with refusals(f"alias {alias!r} was not set"):
            self.client.set_registered_model_alias(prompt.name, alias, str(prompt.version))
        return self.get(prompt.title)

    def names(self) -> list[str]:
        """Names of all registered prompts, sorted."""
        with refusals("the registry does not answer"):
            return sorted(model.name for model in self._models())

    def versions(self, name: str | None = None) -> list[RegisteredPrompt]:
        """Versions of one prompt or of all, by name and then number."""
        with refusals("the registry does not answer"):
            models = self._models()
            wanted = [each for each in models if name in (None, each.name)]
            found = [prompt for each in wanted for prompt in self._versions_of(each)]
        if name is not None and not wanted:
            raise RegistryError(
                f"no prompt {name!r} is registered{_hint([each.name for each in models])}"
            )
        return sorted(found, key=lambda prompt: (prompt.name, prompt.version))

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
                version = str(self.client.get_model_version_by_alias(name, alias).version)
            found = self.client.get_model_version(name, str(version))
            return prompt_of(found, tuple(found.aliases))
        except MlflowException as error:
            if not _is_absence(error):
                raise RegistryError(f"{reference} cannot be read: {first_line(error)}") from error
            names = self.names()
            raise RegistryError(
                f"{reference} is not registered{_hint(names) if name not in names else ''}"
            ) from error

    def holder(self, name: str, alias: str) -> RegisteredPrompt | None:
        """The version that an alias stands for, or None where it stands for none."""
        try:
            version = self.client.get_model_version_by_alias(name, alias).version
        except MlflowException as error:
            if _is_absence(error):
                return None
            raise RegistryError(f"{name}@{alias} cannot be read: {first_line(error)}") from error
        return self.get(f"{name}/{version}")

    def same(self, name: str, prompt_digest: str, record_digest: str) -> RegisteredPrompt | None:
        """The first version of a name that holds this very prompt with this very record, if any."""
        if name not in self.names():
            return None
        wanted = (prompt_digest, record_digest)
        for prompt in self.versions(name):
            if (prompt.tags.get("prompt_digest"), prompt.tags.get("record_digest")) == wanted:
                return prompt
        return None

    def download(self, reference: str, folder: str | Path) -> Path:
        """Fetches the artifact folder of a version.

        Args:
            reference: `name@alias` or `name/version`.
            folder: Folder to fetch it into.

        Returns:
            The artifact's folder, inside the given one.

        Raises:
            RegistryError: there is no such version, or its files cannot be fetched.
        """
        return self._fetch(reference, ARTIFACT_FOLDER, Path(folder))

    @contextmanager
    def fetched(self, reference: str) -> Iterator[Path]:
        """The artifact folder of a version, for as long as the block runs; as `download`."""
        with tempfile.TemporaryDirectory(prefix="prefixworks-prompt-") as scratch:
            yield self.download(reference, scratch)

    def record(self, reference: str) -> PromptRecord:
        """The record of a version; its tensors are not fetched."""
        with tempfile.TemporaryDirectory(prefix="prefixworks-record-") as scratch:
            found = self._fetch(reference, f"{ARTIFACT_FOLDER}/{RECORD_FILE}", Path(scratch))
            return read_record(found.parent)

    def _fetch(self, reference: str, path: str, folder: Path) -> Path:
        prompt = self.get(reference)
        try:
            place = self.client.get_model_version_download_uri(prompt.name, str(prompt.version))
            fetched = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{place.rstrip('/')}/{path}",
                dst_path=str(folder),
                tracking_uri=self.location.uri,
            )
        # Stores of every kind raise errors of their own clients here.
        except Exception as error:
            raise RegistryError(
                f"the files of {reference} cannot be fetched: {first_line(error)}"
            ) from error
        return Path(fetched)

    def _models(self) -> list[RegisteredModel]:
        return _all_pages(lambda token: self.client.search_registered_models(page_token=token))

    def _versions_of(self, model: RegisteredModel) -> list[RegisteredPrompt]:
        # MLflow quotes with either sign and escapes neither.
        quote = '"' if "'" in model.name else "'"
        found: list[ModelVersion] = _all_pages(
            lambda token: self.client.search_model_versions(
                f"name={quote}{model.name}{quote}", page_token=token
            )
        )
        aliases = self.client.get_registered_model(model.name).aliases
        return [
            prompt_of(each, tuple(a for a, v in aliases.items() if str(v) == str(each.version)))
            for each in found
        ]


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turns errors of MLflow and of the network into one line that says what did not happen."""
    try:
        yield
    except (MlflowException, OSError) as error:
        raise RegistryError(f"{what}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type's name."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _all_pages(page: Callable[[str | None], Any]) -> list[Any]:
    found: list[Any] = []
    token: str | None = None
    while True:
        answer = page(token)
        found.extend(answer)
        token = answer.token
        if not token:
            return found


def _is_absence(error: MlflowException) -> bool:
    # An unknown alias is an INVALID_PARAMETER_VALUE in some stores.
    return error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}


def _hint(names: Sequence[str]) -> str:
    return f" (registered are: {', '.join(names)})" if names else " (the registry is empty)"
