"""The kubectl commands of a job, as words for a process without a shell."""

from __future__ import annotations

from pathlib import Path

from jobs.launch.job import JobConfig
from jobs.launch.kubernetes.checks import INSTANCE, Kind

RESOURCES: dict[Kind, str] = {
    "indexed-job": "jobs.batch",
    "jobset": "jobsets.jobset.x-k8s.io",
    "trainjob": "trainjobs.trainer.kubeflow.org",
    "pytorchjob": "pytorchjobs.kubeflow.org",
    "rayjob": "rayjobs.ray.io",
    "ray-cluster": "rayclusters.ray.io",
}
"""What kubectl calls the object that a kind is named after."""


def submit_command(folder: str | Path, namespace: str | None = None) -> list[str]:
    """Sends all manifests of a folder."""
    return [*kubectl(namespace), "apply", f"--filename={folder}"]


def status_command(job: JobConfig, kind: Kind, namespace: str | None = None) -> list[str]:
    """Shows the job and its pods."""
    wanted = f"{RESOURCES[kind]},pods"
    return [*kubectl(namespace), "get", wanted, f"--selector={INSTANCE}={job.name}"]


def logs_command(job: JobConfig, namespace: str | None = None) -> list[str]:
    """Prints what the pods of the job have said so far, each line with the name of its pod."""
    return [
        *(*kubectl(namespace), "logs", f"--selector={INSTANCE}={job.name}"),
        # Of a selector, kubectl shows ten lines of five pods unless told otherwise.
        *("--prefix", "--tail=-1", f"--max-log-requests={job.nodes + 1}"),
    ]


def cancel_command(folder: str | Path, namespace: str | None = None) -> list[str]:
    """Ends the job and removes its objects; the ranks get SIGTERM and their time to save."""
    return [*kubectl(namespace), "delete", f"--filename={folder}", "--ignore-not-found"]


def kubectl(namespace: str | None, context: str | None = None) -> list[str]:
    """The program, told where: None takes what it is set up for."""
    return [
        "kubectl",
        *([f"--context={context}"] if context else []),
        *([f"--namespace={namespace}"] if namespace else []),
    ]
