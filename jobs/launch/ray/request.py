"""What a cluster is asked for: the request to its Jobs API, and the file for the nodes.

The entry point is the only text that a shell reads on the cluster; it holds no value of the job but
the interpreter's name.
"""

from __future__ import annotations

import json
import shlex
from pathlib import PurePosixPath
from typing import Any

from jobs.launch.config import LaunchConfig
from jobs.launch.freeze import LOGS, FrozenJob
from jobs.launch.ray import node
from pipeline.errors import ConfigError


def request(frozen: FrozenJob) -> dict[str, Any]:
    """Arguments of the Jobs API's submission, without package and number."""
    launch = frozen.launch
    asked: dict[str, Any] = {
        "entrypoint": f"exec {shlex.quote(launch.python or 'python')} -m jobs.launch.ray.driver",
        "submission_id": frozen.folder.name,
        "metadata": {"name": launch.name, "stage": launch.stage, "job": frozen.folder.name},
        "runtime_env": {
            "worker_process_setup_hook": node.HOOK,
            "env_vars": {
                # The sent code, and never what lies in the folder that the job runs in.
                "PYTHONSAFEPATH": "1",
                # From the request to stop until Ray kills: Ray's own 3 s save nothing.
                "RAY_JOB_STOP_WAIT_TIME_S": str(launch.signal_before_end_s),
            },
        },
    }
    if launch.stage == "evaluate":
        # It computes by itself; the others leave that to tasks and ranks, and need no room.
        asked["entrypoint_num_cpus"] = launch.cpus_per_process
        if launch.accelerators_per_node:
            asked["entrypoint_num_gpus"] = launch.accelerators_per_node
        if launch.memory_gb is not None:
            asked["entrypoint_memory"] = int(launch.memory_gb * 1e9)
    if launch.ray.driver_resources:
        asked["entrypoint_resources"] = launch.ray.driver_resources
    return asked


def file_for_nodes(frozen: FrozenJob) -> str:
    """The JSON text that travels with the job."""
    launch = frozen.launch
    work_folder = launch.ray.work_folder or str(frozen.working_dir)
    above = PurePosixPath(work_folder)
    described = {
        "request": request(frozen),
        "node": {
            "work_folder": work_folder,
            "environment": launch.environment,
            "secrets": [str(above / path) for path in launch.secrets],
        },
        "driver": {
            "stage": launch.stage,
            "folder": str(frozen.folder),
            "time_limit_s": launch.time_limit_s,
            "signal_before_end_s": launch.signal_before_end_s,
        },
        "group": group(launch, str(frozen.folder / LOGS)) if launch.stage == "train" else None,
    }
    return json.dumps(described, indent=2, sort_keys=True) + "\n"


def group(launch: LaunchConfig, logs: str) -> dict[str, Any]:
    """The ranks of a training job, as `jobs.launch.ray.group.Group` takes them."""
    ranks = launch.ranks_per_node
    memory = None if launch.memory_gb is None else int(launch.memory_gb * 1e9 / ranks)
    return {
        "nodes": launch.nodes,
        "ranks_per_node": ranks,
        "gpus_per_rank": launch.accelerators_per_node // ranks,
        "cpus_per_rank": launch.cpus_per_process,
        "memory_bytes_per_rank": memory,
        "resources": launch.ray.resources,
        "placement": launch.ray.placement,
        "max_restarts": launch.max_restarts,
        "save_s": launch.signal_before_end_s,
        "logs": logs,
    }


def check(launch: LaunchConfig) -> None:
    """Refuses what a Ray cluster cannot run.

    Raises:
        ConfigError: images, volumes, or ranks that do not have one GPU each.
    """
    refused = {
        "image": launch.image,
        "volumes": [volume.mount for volume in launch.volumes] or None,
    }
    for path, value in refused.items():
        if value is not None:
            raise ConfigError(
                f"{path} = {value!r}: backend = ray runs what is installed on the cluster's nodes;"
                " a RayJob of Kubernetes runs images"
            )
    gpus = launch.accelerators_per_node
    if launch.stage == "train" and gpus and launch.ranks_per_node != gpus:
        raise ConfigError(
            f"processes_per_node = {launch.processes_per_node}: backend = ray gives each rank a GPU"
            f" of its own, so it must be accelerators_per_node = {gpus}, or null"
        )
