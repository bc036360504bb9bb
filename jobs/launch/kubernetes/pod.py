"""The pod that every kind of job is made of: one a node, without privileges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.launch.job import JobConfig, Volume
from jobs.launch.kubernetes.checks import (
    CLAIM,
    FROZEN,
    INSTANCE,
    MEMORY,
    SHARED_MEMORY,
    size_bytes,
)
from jobs.launch.kubernetes.text import literal

Manifest = dict[str, Any]

USER = 10_001
"""User and group of the image."""
RECIPE = "recipe.yaml"
ARGUMENTS = "arguments.json"
"""Words of the stage's command line, a JSON list."""
MASTER_PORT = 29_500
"""Where the first rank waits for the others."""
_SHARED = Volume(source=f"{MEMORY}2Gi", mount=SHARED_MEMORY)
_FROZEN_VOLUME = "frozen"


def labels(job: JobConfig) -> dict[str, str]:
    """Labels of the job's objects."""
    return {
        # Not `name`: KubeRay finds its head by that one.
        "app.kubernetes.io/part-of": "prefixworks",
        INSTANCE: job.name,
        "app.kubernetes.io/component": job.stage,
    }


def metadata(job: JobConfig) -> Manifest:
    """Name and labels of an object that is named after the job."""
    return {"name": job.name, "labels": labels(job)}


def pod_template(job: JobConfig, container: Manifest, **fields: object) -> Manifest:
    """A pod around one container.

    Args:
        job: The job.
        container: The container, as of `container`.
        fields: More fields of the pod, such as its restart policy.
    """
    sources = [(f"volume-{index}", each) for index, each in enumerate(_volumes(job))]
    return {
        "metadata": {"labels": labels(job)},
        "spec": {
            **fields,
            # What stops a pod sends SIGTERM, and this much later SIGKILL.
            "terminationGracePeriodSeconds": job.signal_before_end_s,
            "automountServiceAccountToken": False,
            # A service called `master` would else set MASTER_PORT to an address.
            "enableServiceLinks": False,
            "securityContext": pod_security(),
            "containers": [container],
            "volumes": [
                *({"name": name, **_source(each)} for name, each in sources),
                {"name": _FROZEN_VOLUME, "configMap": {"name": job.name}},
            ],
        },
    }


def container(
    job: JobConfig, name: str, arguments: Sequence[str] | None, **fields: object
) -> Manifest:
    """The container that runs the job.

    Args:
        job: The job.
        name: Its name in the pod; some operators look for one of their own.
        arguments: What follows `python -m jobs.launch.kubernetes.entry`, which holds nothing that a
            user wrote: that stands in a file. None leaves the command to an operator.
        fields: More fields of the container.
    """
    run = {
        "command": ["python", "-m", "jobs.launch.kubernetes.entry"],
        "args": list(arguments or ()),
    }
    return {
        "name": name,
        "image": job.image,
        **({} if arguments is None else run),
        **fields,
        "env": [
            *(
                {"name": variable, "value": literal(value)}
                for variable, value in {**job.environment, **_rank_environment(job)}.items()
            )
        ],
        "envFrom": [{"secretRef": {"name": secret}} for secret in job.secrets],
        "resources": _resources(job),
        "securityContext": container_security(),
        "volumeMounts": [
            *(
                {"name": f"volume-{index}", "mountPath": each.mount, "readOnly": each.read_only}
                for index, each in enumerate(_volumes(job))
            ),
            {"name": _FROZEN_VOLUME, "mountPath": FROZEN, "readOnly": True},
        ],
    }


def pod_security() -> Manifest:
    """Of a pod: the image's user, who also owns what is written to volumes."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        # Else every start walks through all files of a data set to change their group.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Manifest:
    """Of a container: as the strictest of Kubernetes' pod security standards wants it."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def shared_memory_bytes(job: JobConfig) -> int:
    """Size of /dev/shm."""
    return next(size_bytes(each) for each in _volumes(job) if _is_shared_memory(each))


def _volumes(job: JobConfig) -> list[Volume]:
    own = [] if any(map(_is_shared_memory, job.volumes)) else [_SHARED]
    return [*job.volumes, *own]


def _is_shared_memory(volume: Volume) -> bool:
    return volume.mount.rstrip("/") == SHARED_MEMORY and volume.source.startswith(MEMORY)


def _source(volume: Volume) -> Manifest:
    if volume.source.startswith(CLAIM):
        claim = volume.source.removeprefix(CLAIM)
        return {"persistentVolumeClaim": {"claimName": claim, "readOnly": volume.read_only}}
    if volume.source.startswith(MEMORY):
        size = volume.source.removeprefix(MEMORY)
        return {"emptyDir": {"medium": "Memory", "sizeLimit": size}}
    return {"hostPath": {"path": volume.source, "type": "Directory"}}


def _rank_environment(job: JobConfig) -> dict[str, str]:
    cpu = {} if job.accelerators_per_node else {"DS_ACCELERATOR": "cpu"}
    return {"OMP_NUM_THREADS": str(job.cpus_per_process), "TOKENIZERS_PARALLELISM": "false"} | cpu


def _resources(job: JobConfig) -> Manifest:
    requests = {"cpu": str(job.cpus_per_process * job.ranks_per_node)}
    # No limit on CPU time: it would stop ranks in the middle of a step that others wait for.
    limits: dict[str, str] = {}
    if job.memory_gb is not None:
        requests["memory"] = limits["memory"] = f"{round(job.memory_gb * 1000)}M"
    if job.accelerators_per_node:
        requests["nvidia.com/gpu"] = limits["nvidia.com/gpu"] = str(job.accelerators_per_node)
    return {"requests": requests, **({"limits": limits} if limits else {})}
