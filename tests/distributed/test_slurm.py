"""Jobs on a real Slurm cluster of two nodes: launched, disturbed, and as good as undisturbed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from jobs.launch.backend import JobState
from jobs.launch.command import main as launch
from jobs.launch.job_folder import submission
from jobs.launch.slurm import BACKEND
from tests.support.held_run import HeldRun
from tests.support.slurm_cluster import SlurmCluster, open_cluster
from tests.support.training_run import assert_same, write_recipe

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(420)]

_PATIENCE_S = 90


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with open_cluster() as running:
        yield running


class Launched:
    """A job of the cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def job_id(self) -> str:
        sent = submission(self.folder)
        assert sent is not None
        return sent.job_id

    def state(self) -> JobState:
        return BACKEND.state(self.folder, self.job_id)

    def wait(self) -> JobState:
        """Until it has ended."""
        until = time.monotonic() + _PATIENCE_S
        while (state := self.state()).active:
            assert time.monotonic() < until, f"{state} after {_PATIENCE_S} s\n{self.said()}"
            time.sleep(0.3)
        return state

    def wait_for(self, happened: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + _PATIENCE_S
        while not happened():
            assert time.monotonic() < until, f"{what}: not so\n{self.said()}"
            time.sleep(0.2)

    def said(self) -> str:
        return "\n".join(BACKEND.logs(self.folder, self.job_id, 60))


class Launcher:
    """Launches training over both nodes of the cluster, one rank on each."""

    def __init__(self, folder: Path, base: Path, data: Path) -> None:
        self._folder, self._base, self._data = folder, base, data
        self.recipe = write_recipe(folder / "run.yaml", base, data)

    def __call__(
        self, *words: str, held: HeldRun | None = None, launcher: str = "srun"
    ) -> Launched:
        """Submits the job.

        Args:
            words: More words of the command line.
            held: Where the run is to hold still.
            launcher: Who starts the ranks.
        """
        job = self._folder / "job.yaml"
        environment = {"DS_ACCELERATOR": "cpu"}
        if held is not None:
            environment["PYTHONPATH"] = str(held.folder)
        tree = {
            "name": "trial",
            "backend": "slurm",
            "recipe": str(self.recipe),
            "nodes": 2,
            "processes_per_node": 1,
            "cpus_per_process": 1,
            "time_limit_s": 1800,
            "output_root": str(self._folder / "launched"),
            "environment": environment,
            "slurm": {"master_addr": "127.0.0.1", "launcher": launcher, "partition": "low"},
        }
        job.write_text(yaml.safe_dump(tree))
        assert launch(["train", f"--config={job}", "--submit", *words]) == 0
        (folder,) = (self._folder / "launched").iterdir()
        return Launched(folder)

    def launch(self, action: str, job: Launched) -> int:
        return launch([action, str(job.folder)])


@pytest.fixture
def train(
    cluster: SlurmCluster,
    tmp_path: Path,
    base: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Launcher:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return Launcher(tmp_path, base, data)


@pytest.mark.parametrize("launcher", ["srun", "torchrun", "deepspeed"])
def test_two_nodes_train_what_two_processes_do(
    train: Launcher, undisturbed: Path, launcher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = train(launcher=launcher)
    assert job.wait().word == "finished", job.said()
    assert_same(train.recipe, undisturbed)
    assert train.launch("status", job) == 0
    assert train.launch("logs", job) == 0
    shown = capsys.readouterr().out
    assert "finished" in shown
    assert "6 steps in" in shown


def test_a_preempted_job_saves_goes_back_and_ends_as_if_undisturbed(
    train: Launcher, cluster: SlurmCluster, undisturbed: Path, tmp_path: Path
) -> None:
    held = HeldRun(tmp_path / "held").until_asked_to_stop(3)
    job = train(held=held)
    held.wait()
    cluster.batch("--partition=high", "--nodes=2", "--exclusive", script="sleep 1\n")
    assert job.wait().word == "finished", job.said()
    facts = cluster.facts(job.job_id)
    assert (facts["Restarts"], facts["JobState"]) == ("1", "COMPLETED")
    assert "step 4 of 6 is saved" in job.said()
    assert_same(train.recipe, undisturbed)


@pytest.mark.parametrize("launcher", ["srun", "torchrun", "deepspeed"])
def test_a_time_limit_saves_and_the_job_goes_on_from_there(
    train: Launcher, cluster: SlurmCluster, undisturbed: Path, tmp_path: Path, launcher: str
) -> None:
    held = HeldRun(tmp_path / "held").until_asked_to_stop(3)
    job = train(held=held, launcher=launcher)
    held.wait()
    cluster.signal_script(job.job_id)
    assert job.wait().word == "finished", job.said()
    assert cluster.facts(job.job_id)["Restarts"] == "1"
    assert "step 4 of 6 is saved" in job.said()
    assert_same(train.recipe, undisturbed)


def test_a_job_that_finishes_as_the_signal_arrives_is_not_run_twice(
    train: Launcher, cluster: SlurmCluster, undisturbed: Path, tmp_path: Path
) -> None:
    held = HeldRun(tmp_path / "held").when_done()
    job = train(held=held)
    held.wait()
    cluster.signal_script(job.job_id)
    time.sleep(2)  # for the script to hand it on; too early a release makes the test no stricter
    held.release()
    assert job.wait().word == "finished", job.said()
    assert cluster.facts(job.job_id)["Restarts"] == "0"
    assert "back into the queue" not in job.said()
    assert_same(train.recipe, undisturbed)


def test_a_lost_node_puts_the_job_back_and_it_goes_on_from_its_checkpoint(
    train: Launcher, cluster: SlurmCluster, undisturbed: Path, tmp_path: Path
) -> None:
    held = HeldRun(tmp_path / "held").until_released(5)
    job = train(held=held)
    held.wait()
    cluster.lose_node("n2")
    held.release()
    job.wait_for(lambda: cluster.facts(job.job_id)["Restarts"] == "1", "the job was put back")
    cluster.start_node("n2")
    assert job.wait().word == "finished", job.said()
    assert_same(train.recipe, undisturbed)


def test_a_job_that_fails_is_not_repeated(train: Launcher, cluster: SlurmCluster) -> None:
    job = train('--overrides=["data.train=[nowhere]"]')
    state = job.wait()
    assert (state.word, cluster.facts(job.job_id)["Restarts"]) == ("failed", "0"), job.said()
    assert "nowhere" in job.said()


def test_a_cancelled_job_saves_stays_away_and_can_be_resumed(
    train: Launcher,
    undisturbed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    held = HeldRun(tmp_path / "held").until_asked_to_stop(3)
    job = train(held=held)
    held.wait()
    assert train.launch("cancel", job) == 0
    assert job.wait().word == "cancelled", job.said()
    assert "step 4 of 6 is saved" in job.said()
    assert train.launch("resume", job) == 0
    assert job.wait().word == "finished", job.said()
    assert_same(train.recipe, undisturbed)
    assert "cancelled" in capsys.readouterr().out
