"""Jobs on a real Ray cluster of three nodes: sent by the command, and losing a node on the way.

All run in a folder whose name a shell would act on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import ray.job_submission
from PIL import Image

from data_prep.config import DatasetConfig
from data_prep.dataset import finish, locked
from data_prep.plan import plan_dataset
from data_prep.shard_job import build_shard
from jobs.launch.command import main
from jobs.launch.job_folder import submission
from jobs.launch.ray.backend import BACKEND
from jobs.launch.submitted import follow
from pipeline.config_reader import to_yaml
from pipeline.errors import EXIT_INTERRUPTED
from tests.support.fault import Fault
from tests.support.raw_data import prepare_config, sources, write_raw
from tests.support.ray_cluster import RayNode, dashboard_lacks, free_port, head, joined
from tests.support.training_run import assert_same, write_recipe

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        bool(dashboard_lacks()),
        reason="Ray's job server needs the extra 'cluster' (ray[default])",
    ),
]

HOSTILE = 'it\'s "a" $(touch pwned) `touch pwned` ${HOME} \n folder'
SECRET = "correct-horse $HOME \"battery\" 'staple' $(touch pwned)"
SHARDS = 12


class Cluster:
    """A head and two more nodes; one that is lost is replaced for the next test."""

    def __init__(self, stack: ExitStack) -> None:
        port = free_port()
        self.dashboard = f"http://127.0.0.1:{port}"
        self._stack = stack
        self._address = stack.enter_context(head(cpus=1, dashboard_port=port))
        self.nodes: list[RayNode] = []

    def complete(self) -> None:
        """Makes it three nodes again."""
        self.nodes = [node for node in self.nodes if node.raylet() is not None]
        while len(self.nodes) < 2:
            self.nodes.append(self._stack.enter_context(joined(self._address)))

    def node_of_rank(self, rank: int) -> RayNode | None:
        """The node, other than the head, that runs a rank."""
        for node in self.nodes:
            raylet = node.raylet()
            assert raylet is not None
            for process in raylet.children(recursive=True):
                if "jobs.train" in process.cmdline() and process.environ()["RANK"] == str(rank):
                    return node
        return None


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(stack)


@pytest.fixture
def cluster(three: Cluster) -> Cluster:
    three.complete()
    return three


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where jobs are launched from."""
    folder = tmp_path / HOSTILE
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def submit(stage: str, cluster: Cluster, recipe: Path, *words: str) -> Path:
    """Sends a job; its folder."""
    arguments = [
        *(stage, "--on=ray", "--name=job", f"--recipe={recipe.name}", "--submit"),
        *(f"--python={sys.executable}", f"--ray.address={cluster.dashboard}"),
        *("--cpus_per_process=1", *words),
    ]
    assert main(arguments) == 0
    (folder,) = Path("launched").glob("job-*")
    return folder.absolute()


def wait_for(fault: Fault, job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Until a fault has happened in a job."""
    sent = submission(job)
    assert sent is not None
    until = time.monotonic() + 240
    while not fault.happened:
        state = BACKEND.state(job, sent.job_id)
        assert state.active, f"{state}\n{said(job, capsys)}"
        assert time.monotonic() < until, f"{state}\n{said(job, capsys)}"
        time.sleep(0.2)


def said(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command shows of a job's logs."""
    capsys.readouterr()
    assert main(["logs", folder.name, "--lines=200"]) == 0
    return capsys.readouterr().out


class SlowRun:
    """A run whose second rank waits before its fourth step, once, until it may go on."""

    def __init__(self, here: Path, base: Path, data: Path) -> None:
        self.recipe = write_recipe(here / "run.yaml", base, data)
        self._go = here / "go"
        # It fails where a variable did not arrive as it was written.
        variables = {"TOKEN": SECRET, "ODD": HOSTILE}
        arrived = f"all(os.environ[name] == value for name, value in {variables!r}.items())"
        mark = str(here / "fault" / "happened")
        self.fault = Fault(
            here / "fault",
            f"assert {arrived}\nwhile not os.path.exists({str(self._go)!r}): time.sleep(0.05)",
            rank=1,
            when=f"args[1] == 3 and not os.path.exists({mark!r})",
        )
        (here / "secrets").write_text(f"# for tests\nTOKEN={SECRET}\n")
        self.words = [
            *("--nodes=2", '--secrets=["secrets"]', '--overrides=["output_dir=runs"]'),
            f"--environment={json.dumps({'PYTHONPATH': str(here / 'fault'), 'ODD': HOSTILE})}",
        ]

    def go_on(self) -> None:
        self._go.touch()


def test_training_survives_a_lost_node(
    cluster: Cluster,
    here: Path,
    base: Path,
    data: Path,
    undisturbed: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slow = SlowRun(here, base, data)
    job = submit("train", cluster, slow.recipe, *slow.words)
    wait_for(slow.fault, job, capsys)
    node = cluster.node_of_rank(1) or cluster.node_of_rank(0)
    assert node is not None
    node.lose("RankHost")
    assert follow(job) == 0
    assert_same(slow.recipe, undisturbed)
    logs = said(job, capsys)
    assert "was lost" in logs
    assert "restart 1 of 3" in logs
    assert "restart 2" not in logs
    shown = ray.job_submission.JobSubmissionClient(cluster.dashboard).list_jobs()
    assert [each.submission_id for each in shown if each.submission_id == job.name]
    assert "correct-horse" not in repr(shown)
    assert not list(here.rglob("pwned"))


def test_a_cancelled_run_is_saved_and_resumed(
    cluster: Cluster,
    here: Path,
    base: Path,
    data: Path,
    undisturbed: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slow = SlowRun(here, base, data)
    job = submit("train", cluster, slow.recipe, *slow.words)
    wait_for(slow.fault, job, capsys)
    assert main(["cancel", job.name]) == 0
    until = time.monotonic() + 60
    while "asked to save and stop" not in said(job, capsys):
        assert time.monotonic() < until, "the ranks were not asked"
        time.sleep(0.5)
    slow.go_on()
    assert follow(job) == EXIT_INTERRUPTED
    capsys.readouterr()
    assert main(["status", job.name]) == 0
    assert capsys.readouterr().out == f"{job.name}: cancelled\n"
    assert main(["resume", job.name]) == 0
    assert follow(job) == 0
    assert_same(slow.recipe, undisturbed)
    sent = submission(job)
    assert sent is not None
    assert sent.job_id == f"{job.name}-r1@{cluster.dashboard}"
    assert (job / "logs" / "rank-0.log").read_text().count("step 1/6") == 1


def test_a_run_that_fails_of_itself_is_not_started_again(
    cluster: Cluster, here: Path, base: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(here / "run.yaml", base, data)
    job = submit("train", cluster, recipe, '--overrides=["data.train=[missing]"]', "--nodes=2")
    assert follow(job) not in (0, EXIT_INTERRUPTED)
    logs = said(job, capsys)
    assert "missing" in logs
    assert "restart" not in logs
    assert main(["status", job.name]) == 0
    assert ": failed, exit status" in capsys.readouterr().out


def write_heavy(folder: Path) -> None:
    """Images that take a worker a while, each with two captions."""
    write_raw(folder, images=SHARDS)
    first = folder / "images" / f"{1:012d}.jpg"
    Image.effect_noise((2400, 1800), 60).save(first, "PNG", compress_level=1)
    for number in range(2, SHARDS + 1):
        path = folder / "images" / f"{number:012d}.jpg"
        path.unlink()
        os.link(first, path)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_preparation_survives_a_lost_node(
    cluster: Cluster, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_heavy(here / "raw")
    captions = DatasetConfig(sources=[sources(Path("raw"))["coco_captions"]])
    config = prepare_config(Path("raw"), Path("out"), shard_size=1, workers=None)
    config = dataclasses.replace(config, datasets={"mix": captions})
    recipe = here / "prepare.yaml"
    recipe.write_text(to_yaml(config))
    job = submit("prepare", cluster, recipe)
    cluster.nodes[0].lose("_build")
    finished = len(list(Path("out/mix/.ledger").glob("shard-*.json")))
    assert finished < SHARDS, "it was lost too late to test anything"
    assert follow(job) == 0
    assert f"{SHARDS} shards made, 0 kept" in said(job, capsys)
    plan = plan_dataset(dataclasses.replace(config, output_dir="alone"), "mix")
    with locked(plan.folder):
        for number in range(plan.shards):
            build_shard(plan.task(number))
        finish(plan, config.max_reject_rate)
    assert files_of(Path("out/mix")) == files_of(Path("alone/mix"))
    assert not list(here.rglob("pwned"))
