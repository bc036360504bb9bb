"""Delivery of a run's journal to MLflow, in the background or at a later time.

Every call is safe to repeat: the MLflow run is found again by a key that is written down before it
is created, and a metric carries the time at which it was measured, which the store uses to tell a
repetition from a new point. So a delivery that dies half-way is simply done again.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.tracking.config import StoreLocation, TrackingConfig, sqlite_file
from pipeline.tracking.identity import RunIdentity
from pipeline.tracking.journal import Entry, Journal

log = logging.getLogger(__name__)

RUN_KEY_TAG = "prefixworks.run_key"
LONGEST_VALUE = 5_000
"""Characters of a tag or parameter that every MLflow store takes."""
METRICS_A_CALL = 500
"""Metrics in one call; MLflow allows 1,000."""
_NEVER_TAKEN = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}


def open_client(location: StoreLocation, request_timeout_s: int = 10) -> MlflowClient:
    """A client for a store, with patience bounded for stores that are reached over HTTP.

    MLflow's defaults wait for minutes on a dead server; a limit that the user set stays.
    """
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
    place = None if location.artifact_root is None else f"{location.artifact_root}/{name}"
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
        self, journal: Journal, identity: RunIdentity, request_timeout_s: int = 10
    ) -> None:
        self.journal = journal
        self.identity = identity
        self._request_timeout_s = request_timeout_s
        self._client: MlflowClient | None = None

    def deliver(self) -> int:
        """Sends everything that is pending.

        Returns:
            The number of entries that were sent or finally refused.

        Raises:
            Exception: whatever MLflow raised; the entries not yet sent stay pending.
        """
        sent = 0
        group: list[Entry] = []
        last = self.journal.delivered
        for entry, position in self.journal.pending():
            # Metrics come in long runs; one call for many keeps up with any training speed.
            if group and (entry["kind"] != "metrics" or _width(group) >= METRICS_A_CALL):
                sent += self._send_group(group, last)
                group = []
            group.append(entry)
            last = position
            if entry["kind"] != "metrics":
                sent += self._send_group(group, last)
                group = []
        if group:
            sent += self._send_group(group, last)
        return sent

    def _send_group(self, group: list[Entry], position: int) -> int:
        client, run_id = self._open()
        try:
            _send(client, run_id, group, self.journal.run_dir)
        except MlflowException as error:
            if error.error_code not in _NEVER_TAKEN:
                raise
            self._refuse(group, str(error))
        except FileNotFoundError as error:
            self._refuse(group, str(error))
        self.journal.mark_delivered(position)
        return len(group)

    def _refuse(self, group: list[Entry], reason: str) -> None:
        log.warning("MLflow refused part of the run's record: %s", reason.splitlines()[0])
        for entry in group:
            self.journal.refuse(entry, reason)

    def _open(self) -> tuple[MlflowClient, str]:
        if self._client is None:
            self._client = open_client(self.identity.location, self._request_timeout_s)
        if self.identity.run_id is None:
            self.identity.remember(self.journal.folder, self._find_or_create(self._client))
        assert self.identity.run_id is not None
        return self._client, self.identity.run_id

    def _find_or_create(self, client: MlflowClient) -> str:
        identity = self.identity
        experiment = find_experiment(client, identity.experiment, identity.location)
        known = client.search_runs(
            [experiment], f"tags.`{RUN_KEY_TAG}` = '{identity.key}'", max_results=1
        )
        if known:
            return str(known[0].info.run_id)
        tags = {RUN_KEY_TAG: identity.key}
        run = client.create_run(experiment, run_name=identity.run_name, tags=tags)
        return str(run.info.run_id)


def _width(group: list[Entry]) -> int:
    return sum(len(entry["values"]) for entry in group)


def _send(client: MlflowClient, run_id: str, group: list[Entry], run_dir: Path) -> None:
    entry = group[0]
    senders: dict[str, Callable[[], None]] = {
        "begin": lambda: client.update_run(run_id, status="RUNNING"),
        "metrics": lambda: _send_metrics(client, run_id, group),
        "params": lambda: _send_params(client, run_id, entry["values"]),
        "tags": lambda: _send_tags(client, run_id, entry["values"]),
        "input": lambda: _send_input(client, run_id, entry),
        "artifact": lambda: _send_artifact(client, run_id, entry, run_dir),
        "end": lambda: client.set_terminated(run_id, entry["status"], entry["time_ms"]),
    }
    senders[entry["kind"]]()


def _send_metrics(client: MlflowClient, run_id: str, group: list[Entry]) -> None:
    metrics = [
        Metric(name, float(value), entry["time_ms"], entry["step"])
        for entry in group
        for name, value in entry["values"].items()
    ]
    client.log_batch(run_id, metrics=metrics)


def _send_params(client: MlflowClient, run_id: str, values: dict[str, str]) -> None:
    # MLflow keeps the first value of a parameter; what a resumed run changed is told in a tag.
    known = client.get_run(run_id).data.params
    fresh = [Param(name, value) for name, value in values.items() if name not in known]
    for start in range(0, len(fresh), 100):
        client.log_batch(run_id, params=fresh[start : start + 100])
    changed = {n: v for n, v in values.items() if n in known and known[n] != v}
    if changed:
        _send_tags(client, run_id, {"config.changed_on_resume": str(changed)})


def _send_tags(client: MlflowClient, run_id: str, values: dict[str, str]) -> None:
    tags = [RunTag(name, value[:LONGEST_VALUE]) for name, value in values.items()]
    client.log_batch(run_id, tags=tags)


def _send_input(client: MlflowClient, run_id: str, entry: Entry) -> None:
    # MLflow keeps 36 characters of a digest; the whole one is in the profile.
    digest = entry["digest"].removeprefix("sha256:")[:36]
    name, context = entry["name"], entry["context"]
    # MLflow ties a data set to a run once, so its second role needs a name of its own.
    if _has_other_role(client, run_id, name, digest, context):
        name = f"{name} ({context})"
    dataset = Dataset(
        name=name,
        digest=digest,
        source_type="prefixworks",
        source=entry["source"],
        profile=entry["profile"],
    )
    tag = InputTag("mlflow.data.context", context)
    client.log_inputs(run_id, datasets=[DatasetInput(dataset, [tag])])


def _has_other_role(
    client: MlflowClient, run_id: str, name: str, digest: str, context: str
) -> bool:
    inputs = client.get_run(run_id).inputs
    for known in inputs.dataset_inputs if inputs else ():
        if (known.dataset.name, known.dataset.digest) == (name, digest):
            return all(tag.value != context for tag in known.tags)
    return False


def _send_artifact(client: MlflowClient, run_id: str, entry: Entry, run_dir: Path) -> None:
    path = run_dir / entry["path"]
    if not path.is_file():
        raise FileNotFoundError(f"{path} was to be recorded and is gone")
    client.log_artifact(run_id, str(path), entry["to"])


class Courier:
    """A thread that delivers a journal while training goes on."""

    def __init__(self, delivery: Delivery, config: TrackingConfig) -> None:
        self._delivery = delivery
        self._config = config
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Tells the thread that there is something to deliver; returns at once."""
        self._wake.set()

    def close(self) -> bool:
        """Waits, for a bounded time, until the journal is delivered.

        Returns:
            Whether everything was delivered.
        """
        self._closing.set()
        self._wake.set()
        self._thread.join(self._config.close_timeout_s)
        left = sum(1 for _ in self._delivery.journal.pending())
        if left:
            log.warning(
                "%d entries did not reach %s; they are kept: prefixworks registry sync %s",
                left,
                self._delivery.identity.location.uri,
                self._delivery.journal.run_dir,
            )
        return left == 0

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing.is_set()
            delivered = self._try()
            if closing:
                return
            if not delivered:
                self._closing.wait(self._config.retry_s)
                self._wake.set()

    def _try(self) -> bool:
        try:
            self._delivery.deliver()
        except Exception as error:  # the thread's boundary: training must not notice
            if not self._warned:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                log.warning("MLflow is not reached, training goes on: %s", reason)
            self._warned = True
            return False
        return True
