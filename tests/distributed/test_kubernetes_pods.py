"""Two pods of one job, as two processes that meet by address: they save together and go on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs.launch.job import JobConfig, Volume
from jobs.launch.kubernetes import render
from tests.support.fault import Fault
from tests.support.training_run import ROOT, assert_same, finish, run_dir_of, write_recipe

pytestmark = pytest.mark.distributed

NODES = 2


def run_pods(recipe: Path, fault: Fault | None = None) -> list[tuple[int, str]]:
    """Runs what the pods of the rendered job run, with what a kubelet would give them.

    Returns:
        Status and words of each pod.
    """
    job = JobConfig(
        name="pods",
        recipe=str(recipe),
        nodes=NODES,
        cpus_per_process=1,
        image="none",
        volumes=[Volume(source="/data", mount="/data")],
    )
    objects = {each["kind"]: each for each in map(yaml.safe_load, render(job).values())}
    frozen = recipe.parent / "frozen"
    frozen.mkdir(exist_ok=True)
    for name, text in objects["ConfigMap"]["data"].items():
        (frozen / name).write_text(text.replace("/etc/prefixworks", str(frozen)))
    (container,) = objects["Job"]["spec"]["template"]["spec"]["containers"]
    words = [sys.executable, *container["command"][1:], *container["args"]]
    words = [word.replace("/etc/prefixworks", str(frozen)) for word in words]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {each["name"]: each["value"] for each in container["env"]}
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    python_path = [str(fault.folder)] if fault else []
    pods = [
        subprocess.Popen(
            words,
            cwd=ROOT,
            env={
                **os.environ,
                **environment,
                **here,
                "JOB_COMPLETION_INDEX": str(index),
                "PYTHONPATH": os.pathsep.join([*python_path, str(ROOT)]),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(NODES)
    ]
    return [finish(pod) for pod in pods]


def test_a_drained_node_saves_the_whole_job_which_then_ends_as_an_undisturbed_one(
    base: Path, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "run.yaml", base, data)
    # Rank 1 has the signal sent to its pod's first process, as a kubelet does.
    drain = "os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(0.5)"
    ends = run_pods(recipe, Fault(tmp_path / "f", drain, rank=1, when="args[1] == 3"))
    assert [status for status, _ in ends] == [75, 75], ends
    assert (run_dir_of(recipe) / "interrupted").is_file()

    ends = run_pods(recipe)
    assert [status for status, _ in ends] == [0, 0], ends
    assert not (run_dir_of(recipe) / "interrupted").exists()
    assert_same(recipe, undisturbed)


def test_a_killed_rank_ends_both_pods_with_a_failure(
    base: Path, data: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "run.yaml", base, data)
    kill = Fault(
        tmp_path / "f", "os.kill(os.getpid(), signal.SIGKILL)", rank=1, when="args[1] == 2"
    )
    (status, said), (killed, last_words) = run_pods(recipe, kill)
    assert (status, killed) == (1, 137), (said, last_words)
    assert "error: rank 0 lost contact with another rank" in said
    assert "error: rank 1 was killed by SIGKILL" in last_words
    assert "Traceback" not in said + last_words
