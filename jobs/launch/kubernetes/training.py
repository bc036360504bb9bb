"""Jobs of pods that meet: a plain Indexed Job, JobSet, and Kubeflow's TrainJob and PyTorchJob.

What tells a preemption from a failure: a rank that was asked to stop saves and exits with 75, and
Kubernetes marks pods that it evicts. Neither counts as a failure where the kind can tell the
difference, which a PyTorchJob cannot.
"""

from __future__ import annotations

from typing import Any

from jobs.cli import EXIT_CONFIG
from jobs.launch.job import JobConfig
from jobs.launch.kubernetes.checks import FROZEN, INSTANCE
from jobs.launch.kubernetes.pod import (
    ARGUMENTS,
    MASTER_PORT,
    Manifest,
    container,
    metadata,
    pod_template,
)
from pipeline.errors import EXIT_INTERRUPTED

JOBSET_API = "jobset.x-k8s.io/v1alpha2"
TRAINER_API = "trainer.kubeflow.org/v1alpha1"
PYTORCH_API = "kubeflow.org/v1"

_CONTAINER = "node"
_ANCESTOR = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
"""By this label Kubeflow knows which job of a runtime is the one that trains."""


def indexed_job(job: JobConfig) -> list[Manifest]:
    """A headless service, by which the pods find the first one, and an Indexed Job."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(job),
        "spec": {
            "clusterIP": "None",
            # A pod is found before it is ready: they become so together.
            "publishNotReadyAddresses": True,
            "selector": {INSTANCE: job.name},
            "ports": [{"name": "ranks", "port": MASTER_PORT}],
        },
    }
    spec = _job_spec(
        job,
        master=f"{job.name}-0.{job.name}",
        rules=[*_no_failure("Ignore"), _on_exit(EXIT_CONFIG, "FailJob")],
        # When one rank fails, the others lose it: a failure is one of every pod.
        backoff_limit=job.max_restarts * job.nodes,
        subdomain=job.name,
    )
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata(job), "spec": spec}
    return [service, whole]


def jobset(job: JobConfig) -> list[Manifest]:
    """A JobSet of one Indexed Job, whose pods start again all together."""
    return [
        {
            "apiVersion": JOBSET_API,
            "kind": "JobSet",
            "metadata": metadata(job),
            "spec": _jobset_spec(job, {}),
        }
    ]


def trainjob(job: JobConfig) -> list[Manifest]:
    """A TrainingRuntime that holds the JobSet, and a TrainJob that runs it."""
    runtime = {
        "apiVersion": TRAINER_API,
        "kind": "TrainingRuntime",
        "metadata": metadata(job),
        "spec": {
            "mlPolicy": {"numNodes": job.nodes},
            "template": {"spec": _jobset_spec(job, _ANCESTOR)},
        },
    }
    reference = {"apiGroup": TRAINER_API.split("/")[0], "kind": "TrainingRuntime", "name": job.name}
    run = {
        "apiVersion": TRAINER_API,
        "kind": "TrainJob",
        "metadata": metadata(job),
        "spec": {"runtimeRef": reference, "trainer": {"numNodes": job.nodes}},
    }
    return [runtime, run]


def pytorchjob(job: JobConfig) -> list[Manifest]:
    """A PyTorchJob; its operator sets MASTER_ADDR, MASTER_PORT and RANK, which counts pods."""
    own = container(
        job,
        "pytorch",
        _ranks(job, "RANK"),
        ports=[{"name": "pytorchjob-port", "containerPort": MASTER_PORT}],
    )
    # OnFailure starts the container again in its pod, whatever the status; ExitCode would take 75
    # and every failure of ours for final.
    replica = {"restartPolicy": "OnFailure", "template": pod_template(job, own)}
    replicas = {"Master": {"replicas": 1, **replica}}
    if job.nodes > 1:
        replicas["Worker"] = {"replicas": job.nodes - 1, **replica}
    policy = {
        "cleanPodPolicy": "Running",
        "activeDeadlineSeconds": job.time_limit_s,
        "backoffLimit": job.max_restarts * job.nodes,
    }
    return [
        {
            "apiVersion": PYTORCH_API,
            "kind": "PyTorchJob",
            "metadata": metadata(job),
            "spec": {"runPolicy": policy, "pytorchReplicaSpecs": replicas},
        }
    ]


def _jobset_spec(job: JobConfig, job_labels: dict[str, str]) -> Manifest:
    spec = _job_spec(
        job,
        master=f"{job.name}-{_CONTAINER}-0-0.{job.name}",
        rules=_no_failure("FailJob"),
        backoff_limit=0,
    )
    template = {**({"metadata": {"labels": job_labels}} if job_labels else {}), "spec": spec}
    return {
        "network": {
            "enableDNSHostnames": True,
            "subdomain": job.name,
            "publishNotReadyAddresses": True,
        },
        "failurePolicy": {
            "maxRestarts": job.max_restarts,
            "rules": [
                # The job ended by its own rules above, which name what is no failure.
                {
                    "name": "savedOrEvicted",
                    "action": "RestartJobSetAndIgnoreMaxRestarts",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                },
                {
                    "name": "outOfTime",
                    "action": "FailJobSet",
                    "onJobFailureReasons": ["DeadlineExceeded"],
                },
            ],
        },
        "replicatedJobs": [{"name": _CONTAINER, "replicas": 1, "template": template}],
    }


def _no_failure(action: str) -> list[Manifest]:
    """What to do when a rank saved its state, or when the cluster took a pod away."""
    evicted = {"type": "DisruptionTarget", "status": "True"}
    return [_on_exit(EXIT_INTERRUPTED, action), {"action": action, "onPodConditions": [evicted]}]


def _on_exit(status: int, action: str) -> Manifest:
    statuses = {"containerName": _CONTAINER, "operator": "In", "values": [status]}
    return {"action": action, "onExitCodes": statuses}


def _job_spec(
    job: JobConfig,
    *,
    master: str,
    rules: list[Manifest],
    backoff_limit: int,
    **pod_fields: Any,
) -> Manifest:
    own = container(job, _CONTAINER, _ranks(job, "JOB_COMPLETION_INDEX"))
    meeting = {"MASTER_ADDR": master, "MASTER_PORT": str(MASTER_PORT)}
    own["env"] += [{"name": name, "value": value} for name, value in meeting.items()]
    return {
        "completionMode": "Indexed",
        "completions": job.nodes,
        "parallelism": job.nodes,
        "backoffLimit": backoff_limit,
        "activeDeadlineSeconds": job.time_limit_s,
        # A pod that is still saving keeps its place until it is gone.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": rules},
        "template": pod_template(job, own, restartPolicy="Never", **pod_fields),
    }


def _ranks(job: JobConfig, node_rank_from: str) -> list[str]:
    arguments = f"{FROZEN}/{ARGUMENTS}"
    if job.stage != "train":
        return [arguments]
    return [
        arguments,
        f"--nodes={job.nodes}",
        f"--ranks-per-node={job.ranks_per_node}",
        f"--node-rank-from={node_rank_from}",
    ]
