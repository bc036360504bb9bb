"""Delivery of a run's journal to MLflow, in the background or at a later time.

Every call is safe to repeat: the MLflow run is found again by a key that is written down before it
is created, and a metric carries the time at which it was measured, which the store uses to tell a
repetition from a new point. So a delivery that dies half-way is simply done again.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.errors import RegistryError
from pipeline.tracking.config import StoreLocation, sqlite_file
from pipeline.tracking.entries import Entry
from pipeline.tracking.identity import RunIdentity, read_identity
from pipeline.tracking.journal import Journal, Place
from pipeline.tracking.secrets import redact, require_whole
from pipeline.tracking.sending import Target, Unsendable, send
from pipeline.tracking.sweeps import find_parent

log = logging.getLogger(__name__)

RUN_KEY_TAG = "prefixworks.run_key"
METRICS_A_CALL = 500
"""Metrics in one call; MLflow allows 1,000."""
_NEVER_TAKEN = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}


def open_client(location: StoreLocation, request_timeout_s: int = 10) -> MlflowClient:
    """A client for a store, with patience bounded for stores that are reached over HTTP.

    MLflow's defaults wait for minutes on a dead server; a limit that the user set stays. Users and
    passwords are those of MLflow's own variables, such as MLFLOW_TRACKING_USERNAME.

    Raises:
        RegistryError: the location's password was hidden and is not known here.
    """
    require_whole(location.uri)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(request_timeout_s))
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # What a command prints is its own, and may be JSON.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # The first use of a sqlite store migrates it, one INFO line a table change.
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.pyfunc"):
        logging.getLogger(name).setLevel(logging.WARNING)
    database = sqlite_file(location.uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=location.uri, registry_uri=location.uri)


def find_experiment(client: MlflowClient, name: str, location: StoreLocation) -> str:
    """The id of an experiment, created when missing."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    place = None
    if location.artifact_root is not None:
        # A place of its own for each experiment, whatever its name holds.
        place = f"{location.artifact_root}/{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}"
    try:
        return str(client.create_experiment(name, artifact_location=place))
    except MlflowException as error:
        # Another run that starts at the same time may have created it first.
        found = client.get_experiment_by_name(name)
        if found is None:
            raise error
        return str(found.experiment_id)


class Delivery:
    """Sends the pending entries of one journal to the MLflow run that belongs to it."""

    def __init__(
        self,
        journal: Journal,
        identity: RunIdentity,
        request_timeout_s: int = 10,
        *,
        creates: bool = True,
    ) -> None:
        """Prepares to deliver.

        Args:
            journal: What to deliver.
            identity: The run that it belongs to.
            request_timeout_s: Longest wait for one answer.
            creates: Make the MLflow run where it is missing. Only one journal of a run may do so.
        """
        self.journal = journal
        self.identity = identity
        self._request_timeout_s = request_timeout_s
        self._creates = creates
        self._target: Target | None = None

    def deliver(self) -> int:
        """Sends everything that is pending.

        Returns:
            The number of entries that were sent or finally refused.

        Raises:
            RegistryError: another process is delivering this journal.
            Exception: whatever MLflow raised; the entries not yet sent stay pending.
        """
        with self.journal.delivering() as alone:
            if not alone:
                raise RegistryError(f"{self.journal.folder} is being delivered by another process")
            sent = 0
            for group, place in self._groups():
                sent += self._send_group(group)
                self.journal.mark_delivered(place)
        if sent:
            self.journal.forget_files()
        return sent

    def _groups(self) -> Iterator[tuple[list[Entry], Place]]:
        """Pending entries as they are sent, with the place behind them."""
        group, before = list[Entry](), self.journal.delivered
        for entry, place in self.journal.pending():
            # Metrics come in long runs; one call for many keeps up with any training speed.
            if group and (entry["kind"] != "metrics" or _width(group) >= METRICS_A_CALL):
                yield group, before
                group = []
            group.append(entry)
            before = place
            if entry["kind"] != "metrics":
                yield group, place
                group = []
        if group:
            yield group, before

    def _send_group(self, group: list[Entry]) -> int:
        target = self._open()
        try:
            send(target, group)
        except (Unsendable, MlflowException) as error:
            if isinstance(error, MlflowException) and error.error_code not in _NEVER_TAKEN:
                raise
            _check_active(target)
            parts = _parts(group)
            if len(parts) > 1:
                # One bad value must not take its neighbours along.
                for part in parts:
                    self._send_group([part])
            else:
                self._refuse(group[0], str(error))
        return len(group)

    def _refuse(self, entry: Entry, reason: str) -> None:
        self.journal.refuse(entry, reason)
        first = redact(reason).splitlines()[0] if reason else "no reason given"
        log.warning(
            "MLflow refused part of the run's record, kept in %s: %s",
            self.journal.folder / "refused.jsonl",
            first,
        )

    def _open(self) -> Target:
        if self._target is None:
            client = open_client(self.identity.location, self._request_timeout_s)
            if self.identity.run_id is None:
                self._introduce(client)
            assert self.identity.run_id is not None
            self._target = Target(
                client=client,
                run_id=self.identity.run_id,
                run_key=self.identity.key,
                run_dir=self.journal.run_dir,
            )
        return self._target

    def _introduce(self, client: MlflowClient) -> None:
        if self._creates:
            self.identity.remember(self.journal.folder, self._find_or_create(client))
            return
        known = read_identity(self.journal.run_dir)
        if known is None or known.run_id is None:
            raise RegistryError("MLflow does not know the run yet")
        self.identity.run_id = known.run_id

    def _find_or_create(self, client: MlflowClient) -> str:
        identity = self.identity
        experiment = find_experiment(client, identity.experiment, identity.location)
        if identity.sweep is not None:
            # Its children look for it by name, too, and one of them may have been first.
            return find_parent(client, experiment, identity.sweep)
        known = client.search_runs(
            [experiment], f"tags.`{RUN_KEY_TAG}` = '{identity.key}'", max_results=1
        )
        if known:
            return str(known[0].info.run_id)
        tags = {RUN_KEY_TAG: identity.key}
        if identity.parent is not None:
            tags["mlflow.parentRunId"] = find_parent(client, experiment, identity.parent)
        run = client.create_run(experiment, run_name=identity.run_name, tags=tags)
        if not run.info.run_id:
            # MLflow's client takes any JSON, or nothing at all, for an answer.
            raise RegistryError(
                f"{redact(identity.location.uri)} answers, but not as an MLflow server does"
            )
        return str(run.info.run_id)


def _check_active(target: Target) -> None:
    """Tells a deleted run, which takes nothing, from an entry that is never taken."""
    if target.client.get_run(target.run_id).info.lifecycle_stage == LifecycleStage.DELETED:
        raise RegistryError(
            f"the MLflow run {target.run_id} was deleted; `mlflow runs restore --run-id"
            f" {target.run_id}` brings it back"
        )


def _parts(group: list[Entry]) -> list[Entry]:
    """The entries of a group, or the single values of an entry that has several."""
    if len(group) > 1:
        return group
    values: Any = group[0].get("values")
    if not isinstance(values, dict) or len(values) < 2:
        return group
    return [{**group[0], "values": {name: value}} for name, value in values.items()]


def _width(group: list[Entry]) -> int:
    return sum(len(entry.get("values", ())) for entry in group)
