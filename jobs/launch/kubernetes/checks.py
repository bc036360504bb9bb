"""What Kubernetes would refuse in a job, or take and do wrong, said before anything is rendered."""

from __future__ import annotations

import re
from typing import Literal

from jobs.launch.job import JobConfig, Volume
from pipeline.errors import ConfigError

Kind = Literal["indexed-job", "jobset", "trainjob", "pytorchjob", "rayjob", "ray-cluster"]

INSTANCE = "app.kubernetes.io/instance"
"""Label of everything that belongs to one job."""
FROZEN = "/etc/prefixworks"
"""Folder in the pod with the recipe and the arguments of the job."""
CLAIM = "pvc:"
MEMORY = "memory:"
SHARED_MEMORY = "/dev/shm"

_RAY: dict[Kind, int] = {"rayjob": 47, "ray-cluster": 50}
"""Longest names that KubeRay takes: it appends what its services and pods are called."""
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_SIZE = re.compile(r"([1-9][0-9]*)(Ki|Mi|Gi|Ti)")
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_OURS = frozenset(
    {
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
        *("MASTER_ADDR", "MASTER_PORT", "JOB_COMPLETION_INDEX"),
        *("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "DS_ACCELERATOR"),
    }
)
"""Variables that a rank gets from its pod."""


def check(job: JobConfig, kind: Kind) -> None:
    """Refuses what this kind of manifest cannot hold.

    Raises:
        ConfigError: with the setting, its value and what is allowed.
    """
    _check_name(job.name, kind)
    _check_stage(job, kind)
    if not job.image:
        raise ConfigError("image = null: Kubernetes runs images; name the one of this project")
    for variable, value in job.environment.items():
        if variable in _OURS:
            raise ConfigError(f"environment.{variable}: every rank gets its own; leave it out")
        _check_text(f"environment.{variable}", value)
    for index, secret in enumerate(job.secrets):
        if not _SUBDOMAIN.fullmatch(secret) or len(secret) > 253:
            raise ConfigError(
                f"secrets[{index}] = {secret!r}: must be the name of a Kubernetes secret"
                " (lower-case letters, digits, '-' and '.')"
            )
    _check_volumes(job)


def size_bytes(volume: Volume) -> int:
    """Bytes of a memory volume that was checked."""
    found = _SIZE.fullmatch(volume.source.removeprefix(MEMORY))
    assert found is not None
    return int(found[1]) * _UNITS[found[2]]


def _check_name(name: str, kind: Kind) -> None:
    if not _LABEL.fullmatch(name):
        raise ConfigError(
            f"name = {name!r}: must begin with a letter on Kubernetes, where it names a service"
        )
    longest = _RAY.get(kind)
    if longest is not None and len(name) > longest:
        raise ConfigError(
            f"name = {name!r}: has {len(name)} characters; {kind} takes {longest} at most"
        )


def _check_stage(job: JobConfig, kind: Kind) -> None:
    if job.stage == "sweep":
        raise ConfigError("stage = sweep: has no manifest; launch it on a Ray cluster")
    if kind in _RAY and job.stage not in ("prepare", "features"):
        raise ConfigError(
            f"stage = {job.stage}: a {kind} runs prepare or features, which are Ray jobs; take"
            " indexed-job, jobset, trainjob or pytorchjob"
        )
    if kind in _RAY and job.accelerators_per_node:
        raise ConfigError(
            f"accelerators_per_node = {job.accelerators_per_node}: a {kind} computes on CPU; take 0"
        )
    if kind in ("trainjob", "pytorchjob") and job.stage != "train":
        raise ConfigError(f"stage = {job.stage}: a {kind} runs train; take indexed-job or jobset")
    if job.stage != "train" and job.nodes > 1:
        raise ConfigError(f"nodes = {job.nodes}: only train runs on several nodes")


def _check_volumes(job: JobConfig) -> None:
    taken: set[str] = set()
    for index, volume in enumerate(job.volumes):
        path = f"volumes[{index}]"
        _check_source(path, volume)
        mount = volume.mount.rstrip("/")
        _check_text(f"{path}.mount", mount)
        if ":" in mount or ".." in mount.split("/") or not mount:
            raise ConfigError(
                f"{path}.mount = {volume.mount!r}: must be a folder below /, without ':' and '..'"
            )
        if mount in taken or mount == FROZEN or mount.startswith(f"{FROZEN}/"):
            raise ConfigError(f"{path}.mount = {volume.mount!r}: another volume is mounted there")
        taken.add(mount)
    kept = [each for each in job.volumes if not each.source.startswith(MEMORY)]
    if job.stage == "train" and all(each.read_only for each in kept):
        raise ConfigError(
            "volumes: training needs one that can be written and outlives the pod, such as"
            " pvc:NAME, for its run folder"
        )


def _check_source(path: str, volume: Volume) -> None:
    source = volume.source
    _check_text(f"{path}.source", source)
    if source.startswith(CLAIM):
        good = bool(_SUBDOMAIN.fullmatch(source.removeprefix(CLAIM))) and len(source) <= 253
    elif source.startswith(MEMORY):
        good = bool(_SIZE.fullmatch(source.removeprefix(MEMORY)))
    else:
        good = source.startswith("/") and ".." not in source.split("/")
    if not good:
        raise ConfigError(
            f"{path}.source = {source!r}: must be pvc:NAME, memory:SIZE with Ki, Mi, Gi or Ti, or"
            " an absolute path on the host"
        )


def _check_text(path: str, text: str) -> None:
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ConfigError(f"{path} = {text!r}: must be text in UTF-8")
