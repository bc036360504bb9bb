"""Training over two machines that are reached by ssh, without a scheduler."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from jobs.launch.command import main as launch
from jobs.launch.hosts import BACKEND
from jobs.launch.job_folder import submission
from jobs.launch.submitted import follow
from tests.support.held_run import HeldRun
from tests.support.ssh_hosts import SshHosts, skip_without_hosts
from tests.support.training_run import assert_same, write_recipe

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def hosts() -> Iterator[SshHosts]:
    skip_without_hosts()
    with tempfile.TemporaryDirectory(prefix="hosts-") as folder, SshHosts(Path(folder)) as running:
        yield running


def launched(folder: Path, hosts: SshHosts, recipe: Path, held: HeldRun | None = None) -> Path:
    """Submits training over both hosts; the job's folder."""
    # What a rank is told reaches it whole, whatever a shell would make of it.
    environment = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_NOTE": "two  words; $(touch nowhere) \"'"}
    if held is not None:
        environment["PYTHONPATH"] = str(held.folder)
    tree = {
        "name": "trial",
        "backend": "hosts",
        "recipe": str(recipe),
        "nodes": 2,
        "processes_per_node": 1,
        "cpus_per_process": 1,
        "output_root": "launched",
        "environment": environment,
        "hosts": {"hostfile": str(hosts.hostfile), "master_addr": "127.0.0.1"},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(tree))
    assert launch(["train", f"--config={folder / 'job.yaml'}", "--submit"]) == 0
    (job,) = (folder / "launched").iterdir()
    return job


def said(job: Path) -> str:
    return "\n".join(BACKEND.logs(job, "", 60))


@pytest.fixture
def here(tmp_path: Path, hosts: SshHosts, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in hosts.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_two_hosts_train_what_two_processes_do(
    here: Path, hosts: SshHosts, base: Path, data: Path, undisturbed: Path
) -> None:
    recipe = write_recipe(here / "run.yaml", base, data)
    job = launched(here, hosts, recipe)
    assert follow(job) == 0, said(job)
    assert_same(recipe, undisturbed)
    assert {path.name for path in (job / "logs").iterdir()} >= {"rank-0.log", "rank-1.log"}
    assert not list(here.glob("**/nowhere"))


def test_a_cancelled_job_saves_on_its_hosts_and_is_resumed(
    here: Path, hosts: SshHosts, base: Path, data: Path, undisturbed: Path
) -> None:
    recipe = write_recipe(here / "run.yaml", base, data)
    held = HeldRun(here / "held").until_asked_to_stop(3)
    job = launched(here, hosts, recipe, held)
    held.wait()
    assert launch(["cancel", str(job)]) == 0
    sent = submission(job)
    assert sent is not None
    until = time.monotonic() + 120
    while (state := BACKEND.state(job, sent.job_id)).active:
        assert time.monotonic() < until, said(job)
        time.sleep(0.2)
    assert state.word == "cancelled", said(job)
    assert "step 4 of 6 is saved" in said(job)
    assert launch(["resume", str(job)]) == 0
    assert follow(job) == 0, said(job)
    assert_same(recipe, undisturbed)


def test_ranks_that_were_left_alone_save_before_the_job_goes_on(
    here: Path, hosts: SshHosts, base: Path, data: Path, undisturbed: Path
) -> None:
    recipe = write_recipe(here / "run.yaml", base, data)
    held = HeldRun(here / "held").until_asked_to_stop(3)
    job = launched(here, hosts, recipe, held)
    held.wait()
    sent = submission(job)
    assert sent is not None
    # As when the power of this machine fails: what runs on the hosts is not below the script.
    script = psutil.Process(int(sent.job_id.partition(":")[0]))
    for process in (script, *script.children(recursive=True)):
        process.kill()
    assert follow(job) == 1
    assert BACKEND.state(job, sent.job_id).word == "lost"
    assert launch(["resume", str(job)]) == 0
    assert follow(job) == 0, said(job)
    assert "step 4 of 6 is saved" in said(job)
    assert_same(recipe, undisturbed)
