"""Jobs sent to a Kubernetes cluster by kubectl, which knows where it is and who we are.

The frozen settings travel in the manifests' ConfigMap; code and packages are those of the image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from jobs.launch.backend import JobState, Rendered
from jobs.launch.freeze import CONFIG, FrozenJob
from jobs.launch.job_folder import CANCELLED, submission
from jobs.launch.kubernetes.checks import INSTANCE
from jobs.launch.kubernetes.commands import kubectl
from jobs.launch.kubernetes.conditions import state_of
from jobs.launch.kubernetes.kubectl import run, shown
from jobs.launch.kubernetes.manifests import render
from pipeline.errors import ConfigError, DataError

MANIFESTS = "manifests.yaml"


class KubernetesBackend:
    """Creates the job's objects, asks for their state, and deletes them."""

    def render(self, frozen: FrozenJob) -> Rendered:
        """The manifests in one file, and kubectl that creates them."""
        launch, where = frozen.launch, frozen.launch.kubernetes
        if where.kind == "ray-cluster":
            raise ConfigError(
                "kubernetes.kind = ray-cluster: a cluster is no job and never ends; python -m"
                " jobs.launch.kubernetes --kubernetes.kind=ray-cluster writes its manifests"
            )
        if launch.python is not None:
            raise ConfigError(
                f"python = {launch.python!r}: a pod runs its image's own; leave it out"
            )
        # The overrides are part of the frozen settings already.
        settled = dataclasses.replace(launch, overrides=[])
        files = render(
            settled, where.kind, recipe=frozen.files[CONFIG], ray_workers=where.ray_workers
        )
        path = str(frozen.folder / MANIFESTS)
        return Rendered(
            files={MANIFESTS: "---\n".join(files.values())},
            command=[*kubectl(where.namespace, where.context), "create", f"--filename={path}"],
        )

    def submit(self, folder: Path, command: list[str]) -> str:
        """Creates the objects, all or none; the job's own, as words for kubectl.

        Raises:
            DataError: kubectl is missing or refuses, or objects of these names exist.
        """
        named = [*command[: command.index("create")]]
        manifests = f"--filename={folder / MANIFESTS}"
        if submission(folder) is not None:
            # Submitted again: what is left of the last time has ended.
            run([*named, "delete", manifests, "--ignore-not-found", "--cascade=foreground"])
        there = run([*named, "get", manifests, "--ignore-not-found", "--output=name"]).split()
        if there:
            raise DataError(
                f"{', '.join(there)} exist in the cluster, made by something else: take another"
                " name, or delete them with kubectl"
            )
        try:
            made = run([*command, "--output=name"]).split()
        except DataError:
            run([*named, "delete", manifests, "--ignore-not-found", "--wait=false"])
            raise
        return made[-1]

    def state(self, folder: Path, job_id: str) -> JobState:
        """As the object's conditions say."""
        found = shown([*self._named(folder), "get", job_id, "--ignore-not-found"])
        cancelled = (folder / CANCELLED).exists()
        if found is not None:
            state = state_of(found)
            if not (cancelled and state.word in ("failed", "interrupted")):
                return state
        if cancelled:
            return JobState(word="cancelled", detail=f"{job_id} was deleted")
        return JobState(word="lost", detail=f"{job_id} is gone; somebody else deleted it")

    def cancel(self, folder: Path, job_id: str) -> None:
        """Deletes the objects; the pods get SIGTERM and their time to save."""
        manifests = f"--filename={folder / MANIFESTS}"
        run([*self._named(folder), "delete", manifests, "--ignore-not-found", "--wait=false"])

    def logs(self, folder: Path, job_id: str, lines: int) -> Iterator[str]:
        """The last lines of each pod that is still there, behind the pod's name."""
        name = job_id.rpartition("/")[2]
        command = [*self._named(folder), "logs", f"--selector={INSTANCE}={name}"]
        said = run([*command, "--prefix", f"--tail={lines}", "--max-log-requests=100"])
        yield from said.splitlines()

    def _named(self, folder: Path) -> list[str]:
        """The words for kubectl, with the namespace and cluster that the job was sent to."""
        sent = submission(folder)
        if sent is None:
            raise ConfigError(f"JOB = {folder.name!r}: was written but never submitted")
        return sent.command[: sent.command.index("create")]


BACKEND = KubernetesBackend()
