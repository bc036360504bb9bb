"""Journal entries as calls to MLflow, each of them safe to repeat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from pipeline.tracking.checkpoint_models import remove_model, send_model
from pipeline.tracking.entries import Entry

LONGEST_VALUE = 5_000
"""Characters of a tag or parameter that every MLflow store takes."""
VALUES_A_CALL = 100
"""Parameters or tags in one call: MLflow's own limit."""
CONTEXT_TAG = "mlflow.data.context"


class Unsendable(Exception):
    """An entry that no store will ever take."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The MLflow run that entries go to."""

    client: MlflowClient
    run_id: str
    run_key: str
    run_dir: Path


def send(target: Target, group: Sequence[Entry]) -> None:
    """Sends one entry, or several of kind `metrics` in one call.

    Raises:
        Unsendable: the entry cannot be sent, whatever the store.
        Exception: whatever MLflow raises.
    """
    kind = group[0]["kind"]
    if kind == "metrics":
        _send_metrics(target, group)
        return
    sender = _SENDERS.get(kind)
    if sender is None:
        raise Unsendable(f"entries of kind {kind!r} are not known here")
    sender(target, group[0])


def _send_metrics(target: Target, group: Sequence[Entry]) -> None:
    try:
        metrics = [
            Metric(name, float(value), entry["time_ms"], entry["step"])
            for entry in group
            for name, value in entry["values"].items()
        ]
    except (TypeError, ValueError) as error:
        raise Unsendable(f"a metric that is no number: {error}") from error
    target.client.log_batch(target.run_id, metrics=metrics)


def _begin(target: Target, entry: Entry) -> None:
    target.client.update_run(target.run_id, status="RUNNING")


def _end(target: Target, entry: Entry) -> None:
    target.client.set_terminated(target.run_id, entry["status"], entry["time_ms"])


def _send_params(target: Target, entry: Entry) -> None:
    # MLflow keeps the first value of a parameter; what a resumed run changed is told in a tag.
    values = {name: _short(value) for name, value in entry["values"].items()}
    known = target.client.get_run(target.run_id).data.params
    fresh = [Param(name, value) for name, value in values.items() if name not in known]
    for start in range(0, len(fresh), VALUES_A_CALL):
        target.client.log_batch(target.run_id, params=fresh[start : start + VALUES_A_CALL])
    changed = {n: v for n, v in values.items() if n in known and known[n] != v}
    if changed:
        _send_tags(target, {"values": {"config.changed_on_resume": str(changed)}})


def _send_tags(target: Target, entry: Entry) -> None:
    tags = [RunTag(name, _short(value)) for name, value in entry["values"].items()]
    for start in range(0, len(tags), VALUES_A_CALL):
        target.client.log_batch(target.run_id, tags=tags[start : start + VALUES_A_CALL])


def _send_input(target: Target, entry: Entry) -> None:
    # MLflow keeps 36 characters of a digest; the whole one is in the profile.
    digest = entry["digest"].removeprefix("sha256:")[:36]
    name, context = entry["name"], entry["context"]
    # MLflow ties a data set to a run once, so its second role needs a name of its own.
    if _has_other_role(target, name, digest, context):
        name = f"{name} ({context})"
    dataset = Dataset(
        name=name,
        digest=digest,
        source_type="prefixworks",
        source=entry["source"],
        profile=entry["profile"],
    )
    tag = InputTag(CONTEXT_TAG, context)
    target.client.log_inputs(target.run_id, datasets=[DatasetInput(dataset, [tag])])


def _has_other_role(target: Target, name: str, digest: str, context: str) -> bool:
    inputs = target.client.get_run(target.run_id).inputs
    for known in inputs.dataset_inputs if inputs else ():
        if (known.dataset.name, known.dataset.digest) == (name, digest):
            return all(tag.value != context for tag in known.tags)
    return False


def _send_artifact(target: Target, entry: Entry) -> None:
    path = target.run_dir / entry["path"]
    if not path.is_file():
        raise Unsendable(f"{path} was to be recorded and is gone")
    target.client.log_artifact(target.run_id, str(path), entry["to"])


def _send_model(target: Target, entry: Entry) -> None:
    send_model(target.client, target.run_id, f"{target.run_key}/{entry['key']}", entry)


def _remove_model(target: Target, entry: Entry) -> None:
    remove_model(target.client, target.run_id, f"{target.run_key}/{entry['key']}")


def _short(value: object) -> str:
    value = str(value)
    return value if len(value) <= LONGEST_VALUE else value[: LONGEST_VALUE - 1] + "…"


_SENDERS: dict[str, Callable[[Target, Entry], None]] = {
    "begin": _begin,
    "params": _send_params,
    "tags": _send_tags,
    "input": _send_input,
    "artifact": _send_artifact,
    "model": _send_model,
    "model_gone": _remove_model,
    "end": _end,
}
