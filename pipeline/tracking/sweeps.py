"""Parent runs: what holds the runs of a sweep together."""

from __future__ import annotations

import re

from mlflow.tracking import MlflowClient

SWEEP_TAG = "prefixworks.sweep"
_RUN_ID = re.compile(r"[0-9a-f]{32}")


def find_parent(client: MlflowClient, experiment: str, parent: str) -> str:
    """The id of a parent run.

    Args:
        client: The store.
        experiment: Id of the experiment that holds the sweep.
        parent: The id of a run, or the name of a sweep, whose parent is made when missing.

    Raises:
        MlflowException: there is no run of that id, or the store is not reached.
    """
    if _RUN_ID.fullmatch(parent):
        return str(client.get_run(parent).info.run_id)
    # A filter has no way to write a quotation mark.
    sweep = parent.replace("'", "")
    known = _parents(client, experiment, sweep)
    if known:
        return known[0]
    made = client.create_run(experiment, run_name=parent, tags={SWEEP_TAG: sweep})
    client.set_terminated(made.info.run_id)
    # Another run of the sweep may have made one at the same time: all take the oldest.
    known = _parents(client, experiment, sweep)
    if known[0] != made.info.run_id:
        client.delete_run(made.info.run_id)
    return known[0]


def _parents(client: MlflowClient, experiment: str, sweep: str) -> list[str]:
    runs = client.search_runs([experiment], f"tags.`{SWEEP_TAG}` = '{sweep}'")
    ages = sorted((run.info.start_time, run.info.run_id) for run in runs)
    return [str(run_id) for _, run_id in ages]
