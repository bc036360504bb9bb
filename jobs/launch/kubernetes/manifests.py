"""From a job to the files that kubectl applies: pure, so what is shown is what is sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from jobs.launch.job import JobConfig
from jobs.launch.kubernetes.checks import FROZEN, Kind, check
from jobs.launch.kubernetes.pod import ARGUMENTS, RECIPE, Manifest, metadata
from jobs.launch.kubernetes.ray import ray_cluster, rayjob
from jobs.launch.kubernetes.text import dump
from jobs.launch.kubernetes.training import indexed_job, jobset, pytorchjob, trainjob
from pipeline.errors import ConfigError
from pipeline.tracking.secrets import redact

KINDS: tuple[Kind, ...] = get_args(Kind)
"""What a job can be rendered as; the first needs no operator in the cluster."""

_LARGEST_RECIPE = 900_000
"""Bytes; an object of Kubernetes ends at a mebibyte."""
_WITHOUT_RAY: dict[str, Callable[[JobConfig], list[Manifest]]] = {
    "indexed-job": indexed_job,
    "jobset": jobset,
    "trainjob": trainjob,
    "pytorchjob": pytorchjob,
}
_WITH_RAY: dict[str, Callable[[JobConfig, int], list[Manifest]]] = {
    "rayjob": rayjob,
    "ray-cluster": ray_cluster,
}


def render(
    job: JobConfig, kind: str = KINDS[0], *, recipe: str | None = None, ray_workers: int = 1
) -> dict[str, str]:
    """The manifests of a job.

    Args:
        job: The job.
        kind: One of KINDS.
        recipe: The text of its recipe, which travels in a ConfigMap; None reads the job's file.
        ray_workers: Pods of a Ray cluster beside its head; other kinds do not read it.

    Returns:
        File name -> YAML of one object. In the order of their names the objects can be created.

    Raises:
        ConfigError: the kind is unknown, or cannot hold this job.
    """
    known = next((each for each in KINDS if each == kind), None)
    if known is None:
        raise ConfigError(f"kind = {kind!r}: must be one of {', '.join(KINDS)}")
    if ray_workers < 1:
        raise ConfigError(f"ray_workers = {ray_workers}: must be 1 or more; the head runs no tasks")
    check(job, known)
    with_ray = _WITH_RAY.get(known)
    objects = with_ray(job, ray_workers) if with_ray else _WITHOUT_RAY[known](job)
    frozen = _frozen(job, _read(job.recipe) if recipe is None else recipe)
    return {
        f"{number:02}-{manifest['kind'].lower()}.yaml": dump(manifest)
        for number, manifest in enumerate([frozen, *objects])
    }


def arguments(job: JobConfig) -> list[str]:
    """The words of the job's command line after `prefixworks`, as they are in the pod."""
    settings = [f"--{override}" for override in job.overrides]
    # A job that was never interrupted has nothing to continue, and begins.
    resume = ["--resume"] if job.stage == "train" else []
    return [job.stage, f"--config={FROZEN}/{RECIPE}", *settings, *resume]


def _frozen(job: JobConfig, recipe: str) -> Manifest:
    words = json.dumps(arguments(job), indent=1) + "\n"
    if redact(recipe) != recipe or redact(words) != words:
        # Whoever may look at pods may read it there.
        raise ConfigError(
            f"recipe = {job.recipe!r}: it or an override holds a password; name the address in a"
            " variable, such as MLFLOW_TRACKING_URI, by secrets"
        )
    size = len(recipe.encode())
    if size > _LARGEST_RECIPE:
        raise ConfigError(
            f"recipe = {job.recipe!r}: has {size} bytes; {_LARGEST_RECIPE} fit into a ConfigMap"
        )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(job),
        # A pod that starts again runs what was submitted.
        "immutable": True,
        "data": {RECIPE: recipe, ARGUMENTS: words},
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"recipe = {path!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"recipe = {path!r}: is no text in UTF-8") from error
