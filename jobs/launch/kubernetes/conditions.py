"""How a job stands, from what Kubernetes or an operator wrote into its object.

Source: the status fields of batch/v1 Job, JobSet v1alpha2, TrainJob v1alpha1, PyTorchJob v1 and
RayJob v1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.launch.backend import JobState

_FINISHED = ("Complete", "Completed", "Succeeded", "SuccessCriteriaMet")
_FAILED = ("Failed", "FailureTarget")
_RUNNING = ("Running",)
_OUT_OF_TIME = "DeadlineExceeded"
_RAY_WORDS = {"SUCCEEDED": "finished", "FAILED": "failed", "STOPPED": "failed"}


def state_of(found: Mapping[str, Any]) -> JobState:
    """The state of a job's object.

    Args:
        found: The object, as kubectl prints it.
    """
    name = f"{str(found.get('kind', 'object')).lower()}/{found.get('metadata', {}).get('name')}"
    status = found.get("status") or {}
    if found.get("kind") == "RayJob":
        return _ray(name, status)
    held = {
        condition.get("type"): condition
        for condition in status.get("conditions") or ()
        if condition.get("status") == "True"
    }
    for word in _FINISHED:
        if word in held:
            return JobState(word="finished", detail=name, exit_status=0)
    for word in _FAILED:
        if word in held:
            return _failed(name, str(held[word].get("reason")), str(held[word].get("message", "")))
    if any(word in held for word in _RUNNING) or _has_pods(status):
        return JobState(word="running", detail=name)
    return JobState(word="waiting", detail=name)


def _failed(name: str, reason: str, message: str) -> JobState:
    if reason == _OUT_OF_TIME:
        detail = f"{name}: out of time; what was saved can be resumed"
        return JobState(word="interrupted", detail=detail)
    return JobState(word="failed", detail=f"{name}: {reason}" + (f", {message}" if message else ""))


def _has_pods(status: Mapping[str, Any]) -> bool:
    """Whether any pod of the job runs, by the counts of a Job or of a JobSet's and TrainJob's."""
    parts = (status.get(name) or () for name in ("replicatedJobsStatus", "jobsStatus"))
    counts = [status, *(count for part in parts for count in part)]
    return any(count.get("active") for count in counts)


def _ray(name: str, status: Mapping[str, Any]) -> JobState:
    word = _RAY_WORDS.get(str(status.get("jobStatus")))
    message = str(status.get("message", ""))
    if word == "finished":
        return JobState(word="finished", detail=name, exit_status=0)
    if word == "failed" or status.get("jobDeploymentStatus") == "Failed":
        return _failed(name, str(status.get("reason") or status.get("jobStatus")), message)
    if status.get("jobStatus") == "RUNNING":
        return JobState(word="running", detail=name)
    return JobState(word="waiting", detail=name)
