"""Jobs of a Ray cluster: sent, asked for and stopped through its Jobs API."""

from __future__ import annotations

import re
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.launch.backend import JobState, Rendered
from jobs.launch.freeze import FrozenJob
from jobs.launch.job_folder import CANCELLED, log_lines, recorded_end, submission
from jobs.launch.ray import jobs_api, node
from jobs.launch.ray.package import REQUEST, check_package, package
from jobs.launch.ray.request import check, file_for_nodes
from pipeline.config_reader import load
from pipeline.errors import EXIT_INTERRUPTED

_RESUBMITTED = re.compile(r"-r(\d+)$")


class RayBackend:
    """A job's id is Ray's submission id and the dashboard that knows it: `ID@http://HOST:8265`."""

    def render(self, frozen: FrozenJob) -> Rendered:
        """The request; the package of code goes with it."""
        check(frozen.launch)
        check_package(frozen, frozen.launch.ray.excludes, frozen.launch.ray.max_upload_mb)
        where = jobs_api.address(frozen.launch.ray.address)
        return Rendered(
            files={REQUEST: file_for_nodes(frozen)}, command=["POST", f"{where}/api/jobs/"]
        )

    def submit(self, folder: Path, command: list[str]) -> str:
        """Sends code and request; a job that was sent before gets a new id."""
        from jobs.launch.config import LaunchConfig

        launch = load(LaunchConfig, [folder / "job.yaml"])
        where = jobs_api.address(launch.ray.address)
        asked = node.description(folder)["request"]
        if (before := submission(folder)) is not None:
            asked["submission_id"] = _next(before.job_id.partition("@")[0])
        packed = package(folder, launch.ray.excludes, launch.ray.max_upload_mb)
        with tempfile.TemporaryDirectory() as scratch, jobs_api.client(where) as ray:
            path = Path(scratch, "job.zip")
            path.write_bytes(packed)
            asked["runtime_env"]["working_dir"] = str(path)
            return f"{ray.submit_job(**asked)}@{where}"

    def state(self, folder: Path, job_id: str) -> JobState:
        """As Ray says; for a stopped job, as its driver wrote down."""
        name, _, where = job_id.partition("@")
        with jobs_api.client(where) as ray:
            known = {each.submission_id: each for each in ray.list_jobs()}
        if name not in known:
            return recorded_end(
                folder, f"Ray at {where} knows no job {name}: its cluster was started anew"
            )
        return _state(folder, known[name], f"Ray job {name}")

    def cancel(self, folder: Path, job_id: str) -> None:
        """Asks the driver to stop; its ranks have `signal_before_end_s` to save."""
        name, _, where = job_id.partition("@")
        with jobs_api.client(where) as ray:
            ray.stop_job(name)

    def logs(self, folder: Path, job_id: str, lines: int) -> Iterator[str]:
        """The last lines of the ranks' logs, and of what Ray kept of the driver's."""
        yield from log_lines(folder, lines)
        name, _, where = job_id.partition("@")
        with jobs_api.client(where) as ray:
            said = ray.get_job_logs(name)
        yield f"==> Ray job {name} <=="
        yield from deque(said.splitlines(), maxlen=lines)


def _state(folder: Path, found: Any, job: str) -> JobState:
    word = str(found.status)
    if word == "PENDING":
        return JobState(word="waiting", detail=f"{job}: {_reason(found.message)}")
    if word == "RUNNING":
        return JobState(word="running", detail=job)
    if word == "SUCCEEDED":
        return JobState(word="finished", exit_status=0)
    if word == "STOPPED":
        ended = recorded_end(folder, "")
        if ended.word != "lost":
            return ended
        return JobState(word="cancelled", detail=f"{job} was stopped; launch resume goes on")
    status = found.driver_exit_code
    if (folder / CANCELLED).exists():
        return JobState(word="cancelled", exit_status=status)
    if status is None:
        return JobState(word="failed", detail=f"{job}: {_reason(found.message)}")
    if status == EXIT_INTERRUPTED:
        return JobState(word="interrupted", detail="its state is saved", exit_status=status)
    return JobState(word="failed", detail=f"exit status {status}", exit_status=status)


def _reason(message: str | None) -> str:
    """The last line of what Ray says, where the reason stands."""
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "Ray gives no reason"


def _next(name: str) -> str:
    """Ray takes no id twice."""
    found = _RESUBMITTED.search(name)
    number = int(found[1]) + 1 if found else 1
    return f"{_RESUBMITTED.sub('', name)}-r{number}"


BACKEND = RayBackend()
