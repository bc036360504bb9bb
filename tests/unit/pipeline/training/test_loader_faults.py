"""What breaks while data are loaded is one error that names it, soon, and nothing stays behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from model.checkpoint import TOKENIZER_FILE, load_config
from model.tokenizer import OFATokenizer
from pipeline.errors import DataError, TrainingError
from pipeline.training.data import Collator, ShardReader
from pipeline.training.data_config import DataConfig
from pipeline.training.loader import BatchMaker, Loader, build_order
from pipeline.training.workers import Kind
from tests.support.small_world import prepared_world
from tests.support.training_run import ROOT, small_base

pytestmark = pytest.mark.timeout(120)

SOON_S = 60.0
STEPS = 4000


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_world(tmp_path_factory.mktemp("prepared"), scenes=5, shard_size=12)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    return small_base(tmp_path_factory.mktemp("base") / "base", prepared)


@contextmanager
def loader(
    folder: Path, base: Path, kind: Kind, *, workers: int = 2, timeout_s: float = SOON_S
) -> Iterator[Loader]:
    tokenizer = OFATokenizer.from_file(base / TOKENIZER_FILE)
    collate = Collator(tokenizer, load_config(str(base)), 32)
    with ShardReader(folder) as reader:
        order = build_order([reader], DataConfig(streams=8), 0)
        make = BatchMaker([reader], collate, 0)
        with Loader(
            order,
            make,
            rank=0,
            ranks=1,
            batch_size=4,
            accumulation=1,
            workers=workers,
            kind=kind,
            timeout_s=timeout_s,
        ) as made:
            yield made


def ended(process: psutil.Process) -> bool:
    """Whether nothing of it runs; where nobody waits for orphans its entry may stay."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Worker processes: the children of the fork server."""
    return [
        worker
        for child in process.children()
        if not ended(child) and "forkserver" in " ".join(child.cmdline())
        for worker in child.children()
    ]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_worker_is_an_error_at_once(prepared: Path, base: Path) -> None:
    with loader(prepared, base, "processes") as made:
        steps = made.steps(0, STEPS)
        next(steps)
        workers = workers_of(psutil.Process())
        assert len(workers) == 2
        workers[0].kill()
        began = time.monotonic()
        with pytest.raises(
            TrainingError, match=r"a loader worker died while .*shard-\d{6}\.tar.* was to be read"
        ):
            for _ in steps:
                pass
        assert time.monotonic() - began < SOON_S / 2
    until(lambda: all(map(ended, workers)))


def test_a_worker_that_hangs_is_an_error_in_time(prepared: Path, base: Path) -> None:
    with loader(prepared, base, "processes", workers=1) as made:
        steps = made.steps(0, STEPS)
        next(steps)  # with time for the worker to start
        assert made._workers is not None
        made._workers._timeout_s = 2.0
        (worker,) = workers_of(psutil.Process())
        worker.send_signal(signal.SIGSTOP)
        with pytest.raises(TrainingError, match=r"no batch for 2 s out of .*shard-\d{6}\.tar"):
            for _ in steps:
                pass
    until(lambda: ended(worker))


def test_workers_stay_when_the_job_is_asked_to_stop(prepared: Path, base: Path) -> None:
    with loader(prepared, base, "processes", workers=1) as made:
        steps = made.steps(0, 20)
        next(steps)
        (worker,) = workers_of(psutil.Process())
        worker.send_signal(signal.SIGTERM)
        worker.send_signal(signal.SIGINT)
        assert len(list(steps)) == 19


def missing(shard: Path) -> None:
    shard.unlink()


def truncated(shard: Path) -> None:
    os.truncate(shard, shard.stat().st_size // 2)


def emptied(shard: Path) -> None:
    os.truncate(shard, 0)


def corrupt(shard: Path) -> None:
    shard.write_bytes(bytes(shard.stat().st_size))


@pytest.mark.parametrize("kind", ["threads", "processes"])
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (missing, "cannot be opened"),
        (truncated, "its manifest says"),
        (emptied, "has 0 bytes"),
        (corrupt, "is corrupt"),
    ],
)
def test_a_bad_shard_is_named(
    prepared: Path,
    base: Path,
    tmp_path: Path,
    kind: Kind,
    harm: Callable[[Path], None],
    said: str,
) -> None:
    copied = Path(shutil.copytree(prepared, tmp_path / "copy"))
    harm(copied / "shard-000001.tar")
    began = time.monotonic()
    with (
        pytest.raises(DataError, match=rf"shard-000001\.tar.* {said}") as caught,
        loader(copied, base, kind) as made,
    ):
        for _ in made.steps(0, 100):
            pass
    assert time.monotonic() - began < SOON_S
    assert "\n" not in str(caught.value)


_RANK = """
import sys
from pathlib import Path
from tests.unit.pipeline.training.test_loader_faults import loader
if __name__ == "__main__":
    with loader(Path(sys.argv[1]), Path(sys.argv[2]), "processes") as made:
        for number, _ in enumerate(made.steps(0, 100000)):
            if number == 5:
                print("loading", flush=True)
"""


_STUCK = """
import sys
from pathlib import Path
from tests.unit.pipeline.training.test_loader_faults import loader
if __name__ == "__main__":
    with loader(Path(sys.argv[1]), Path(sys.argv[2]), "threads", timeout_s=2.0) as made:
        for _ in made.steps(0, 100):
            pass
"""


def test_a_thread_that_hangs_in_a_read_does_not_keep_a_failed_run_from_ending(
    prepared: Path, base: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(prepared, tmp_path / "copy"))
    shard = copied / "shard-000001.tar"
    shard.unlink()
    os.mkfifo(shard)
    script = tmp_path / "rank.py"
    script.write_text(_STUCK)
    done = subprocess.run(
        [sys.executable, str(script), str(copied), str(base)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SOON_S,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "no batch for 2 s out of" in done.stderr.splitlines()[-1]
    assert shard.name in done.stderr.splitlines()[-1]


def test_workers_end_with_a_rank_that_is_killed(prepared: Path, base: Path, tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(_RANK)
    rank = subprocess.Popen(
        [sys.executable, str(script), str(prepared), str(base)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "loading\n"
        started = psutil.Process(rank.pid).children(recursive=True)
        assert len(workers_of(psutil.Process(rank.pid))) == 2
    finally:
        rank.kill()
        rank.wait()
    until(lambda: all(map(ended, started)))
