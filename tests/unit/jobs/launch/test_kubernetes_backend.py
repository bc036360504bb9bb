"""`launch --on=kubernetes`: what kubectl is told, and what its answers mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.launch.backend import JobState
from jobs.launch.command import main
from jobs.launch.kubernetes.conditions import state_of
from jobs.launch.submitted import follow
from pipeline.errors import ConfigError, DataError
from tests.support.fake_kubectl import FakeKubectl
from tests.support.launched_job import recipe

JOB = "job.batch/trial"


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKubectl:
    fake = FakeKubectl(tmp_path / "fake")
    monkeypatch.setenv("PATH", f"{fake.programs}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return fake


def words(tmp_path: Path, *more: str) -> list[str]:
    return [
        *("train", "--on=kubernetes", "--name=trial", "--image=images/prefixworks:gpu"),
        *(f"--recipe={recipe(tmp_path)}", "--nodes=2", "--processes_per_node=1"),
        "--volumes=[{source: 'pvc:runs', mount: /home/prefixworks/runs}]",
        *("--kubernetes.namespace=ml", *more),
    ]


def submitted(tmp_path: Path, *more: str) -> Path:
    assert main([*words(tmp_path, *more), "--submit"]) == 0
    (folder,) = (tmp_path / "launched").iterdir()
    return folder


def test_a_dry_run_shows_the_manifests_and_sends_nothing(
    kubectl: FakeKubectl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path)) == 0
    said = capsys.readouterr().out
    assert "kind: Job" in said
    assert "kubectl --namespace=ml create" in said
    assert kubectl.objects == set()
    assert not (tmp_path / "launched").exists()


def test_the_frozen_settings_travel_and_not_the_recipe(
    kubectl: FakeKubectl, tmp_path: Path
) -> None:
    submitted(tmp_path, "--overrides=[optimizer.lr=0.125]")
    assert kubectl.objects == {"configmap/trial", "service/trial", JOB}
    data = kubectl.read("configmap/trial")["data"]
    settings = yaml.safe_load(data["recipe.yaml"])
    assert settings["optimizer"]["lr"] == 0.125
    assert settings["engine"]["processes"] == 2
    assert "0.125" not in data["arguments.json"]


def test_a_job_is_looked_after_by_its_folder(
    kubectl: FakeKubectl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = submitted(tmp_path)
    assert main(["status", folder.name]) == 0
    assert "waiting" in capsys.readouterr().out
    kubectl.report(JOB, {"active": 2})
    assert main(["status", folder.name]) == 0
    assert "running" in capsys.readouterr().out
    assert main(["logs", folder.name, "--lines=7"]) == 0
    assert "trial-0" in capsys.readouterr().out
    assert "--tail=7" in kubectl.calls[-1]
    assert main(["cancel", folder.name]) == 0
    assert kubectl.objects == set()
    capsys.readouterr()
    assert main(["status", folder.name]) == 0
    assert "cancelled" in capsys.readouterr().out
    assert main(["resume", folder.name]) == 0
    assert JOB in kubectl.objects
    assert all(call[0] == "--namespace=ml" for call in kubectl.calls)


def test_waiting_takes_the_end_of_the_job(kubectl: FakeKubectl, tmp_path: Path) -> None:
    folder = submitted(tmp_path)
    kubectl.report(JOB, {"conditions": [{"type": "Complete", "status": "True"}]})
    assert follow(folder) == 0


def test_a_failed_job_is_made_anew_by_resume(kubectl: FakeKubectl, tmp_path: Path) -> None:
    folder = submitted(tmp_path)
    reason = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}
    kubectl.report(JOB, {"conditions": [reason]})
    assert follow(folder) == 1
    assert main(["resume", folder.name]) == 0
    assert "status" not in kubectl.read(JOB)


def test_objects_of_others_are_left_alone(kubectl: FakeKubectl, tmp_path: Path) -> None:
    submitted(tmp_path)
    with pytest.raises(DataError, match=r"job\.batch/trial exist in the cluster"):
        main([*words(tmp_path, "--time_limit_s=700"), "--submit"])
    assert len(kubectl.objects) == 3


def test_a_refused_object_leaves_none_behind(kubectl: FakeKubectl, tmp_path: Path) -> None:
    kubectl.refuse(JOB)
    with pytest.raises(DataError, match="admission webhook denied"):
        main([*words(tmp_path), "--submit"])
    assert kubectl.objects == set()


def test_a_cluster_that_does_not_answer_is_said_in_a_line(
    kubectl: FakeKubectl, tmp_path: Path
) -> None:
    folder = submitted(tmp_path)
    kubectl.goes_down()
    with pytest.raises(DataError, match="connection to the server was refused"):
        main(["status", folder.name])


def test_nothing_is_sent_without_kubectl_or_for_what_cannot_be_a_job(
    kubectl: FakeKubectl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="ray-cluster: a cluster is no job"):
        main([*words(tmp_path, "--kubernetes.kind=ray-cluster"), "--submit"])
    with pytest.raises(ConfigError, match="python = '/opt/python': a pod runs its image's own"):
        main([*words(tmp_path, "--python=/opt/python"), "--submit"])
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DataError, match="kubectl is not on PATH"):
        main([*words(tmp_path), "--submit"])
    assert kubectl.objects == set()


def held(kind: str, **condition: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "metadata": {"name": "trial"},
        "status": {"conditions": [{"status": "True", **condition}]},
    }


def ray(**status: str) -> dict[str, Any]:
    return {"kind": "RayJob", "metadata": {"name": "trial"}, "status": status}


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (held("Job", type="Complete"), "finished"),
        (held("Job", type="FailureTarget", reason="PodFailurePolicy"), "failed"),
        (held("Job", type="Failed", reason="DeadlineExceeded"), "interrupted"),
        (held("JobSet", type="Completed"), "finished"),
        (held("JobSet", type="Failed", reason="FailedJobs"), "failed"),
        (held("TrainJob", type="Complete"), "finished"),
        (held("PyTorchJob", type="Running"), "running"),
        (held("PyTorchJob", type="Succeeded"), "finished"),
        (held("Job", type="Suspended"), "waiting"),
        ({"kind": "JobSet", "status": {"replicatedJobsStatus": [{"active": 1}]}}, "running"),
        ({"kind": "TrainJob", "status": {"jobsStatus": [{"active": 0}]}}, "waiting"),
        ({"kind": "Job"}, "waiting"),
        (ray(jobStatus="RUNNING"), "running"),
        (ray(jobStatus="SUCCEEDED"), "finished"),
        (ray(jobStatus="FAILED", message="exit code 1"), "failed"),
        (ray(jobDeploymentStatus="Failed", reason="DeadlineExceeded"), "interrupted"),
        (ray(jobDeploymentStatus="Initializing"), "waiting"),
    ],
)
def test_the_conditions_of_each_kind_are_understood(found: dict[str, Any], word: str) -> None:
    state: JobState = state_of(found)
    assert state.word == word
