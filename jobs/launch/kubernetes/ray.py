"""Ray on Kubernetes through the KubeRay operator: a cluster, or a job with a cluster of its own."""

from __future__ import annotations

import shlex
from importlib.metadata import version
from typing import Any

from jobs.launch.job import JobConfig
from jobs.launch.kubernetes.checks import FROZEN
from jobs.launch.kubernetes.pod import (
    ARGUMENTS,
    Manifest,
    container,
    container_security,
    labels,
    metadata,
    pod_security,
    pod_template,
    shared_memory_bytes,
)

RAY_API = "ray.io/v1"
_AGENT_PORT = 52_365
_PORTS = {"gcs": 6379, "dashboard": 8265, "client": 10_001}
_STORE_SHARE = 0.8
"""Of /dev/shm, for Ray's objects: Ray wants some room left."""
_KEEP_S = 3600
"""Seconds that a finished job's cluster stays, so that its logs can be read."""


def ray_cluster(job: JobConfig, workers: int) -> list[Manifest]:
    """A cluster that takes jobs through Ray's Jobs API."""
    return [
        {
            "apiVersion": RAY_API,
            "kind": "RayCluster",
            "metadata": metadata(job),
            "spec": _cluster(job, workers),
        }
    ]


def rayjob(job: JobConfig, workers: int) -> list[Manifest]:
    """A job with a cluster of its own, which goes when the job is done."""
    # The entry point goes through several shells, so it holds nothing that a user wrote.
    entry = ["python", "-m", "jobs.launch.kubernetes.entry", f"{FROZEN}/{ARGUMENTS}"]
    return [
        {
            "apiVersion": RAY_API,
            "kind": "RayJob",
            "metadata": metadata(job),
            "spec": {
                "entrypoint": shlex.join(entry),
                "submissionMode": "K8sJobMode",
                "shutdownAfterJobFinishes": True,
                "ttlSecondsAfterFinished": _KEEP_S,
                "activeDeadlineSeconds": job.time_limit_s,
                # Each try has a new cluster; preparation goes on where the last one came to.
                "backoffLimit": job.max_restarts,
                "submitterPodTemplate": _submitter(job),
                "rayClusterSpec": _cluster(job, workers),
            },
        }
    ]


def _cluster(job: JobConfig, workers: int) -> Manifest:
    store = {"object-store-memory": str(int(shared_memory_bytes(job) * _STORE_SHARE))}
    ports = [{"name": name, "containerPort": port} for name, port in _PORTS.items()]
    head = pod_template(job, container(job, "ray-head", None, ports=ports, **_probes()))
    worker = pod_template(job, container(job, "ray-worker", None, **_probes()))
    return {
        "rayVersion": version("ray"),
        "headGroupSpec": {
            # Without CPUs for tasks: what the head computed would die with it.
            "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0", **store},
            "template": head,
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": workers,
                "minReplicas": workers,
                "maxReplicas": workers,
                "rayStartParams": store,
                "template": worker,
            }
        ],
    }


def _probes() -> dict[str, Any]:
    """Those that KubeRay adds may call wget, which the image does not have."""
    ask = {"httpGet": {"path": "/api/local_raylet_healthz", "port": _AGENT_PORT}}
    patience = {"initialDelaySeconds": 30, "periodSeconds": 10, "timeoutSeconds": 5}
    return {
        "readinessProbe": {**ask, **patience, "failureThreshold": 6},
        "livenessProbe": {**ask, **patience, "failureThreshold": 30},
    }


def _submitter(job: JobConfig) -> Manifest:
    return {
        "metadata": {"labels": labels(job)},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": pod_security(),
            "containers": [
                {
                    "name": "ray-job-submitter",
                    "image": job.image,
                    "resources": {"requests": {"cpu": "500m", "memory": "500M"}},
                    "securityContext": container_security(),
                }
            ],
        },
    }
