"""One run writes, and what an earlier run still does can no longer change anything."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest

from data_prep import claim as claim_module
from data_prep.claim import LEDGER, Claim, locked
from data_prep.dataset import commit, finish, survey
from data_prep.errors import DataError
from data_prep.plan import plan_dataset
from data_prep.shard_job import build_shard
from tests.support.raw_data import jpeg, prepare_config, write_raw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out" / LEDGER).mkdir(parents=True)
    return tmp_path / "out"


def as_if_elsewhere(folder: Path) -> None:
    """Makes the present owner one of another machine, which no lock here speaks of."""
    path = folder / LEDGER / "owner"
    path.write_text(json.dumps({**json.loads(path.read_text()), "kernel": "another"}))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim_module, "BEAT_S", 0.05)
    monkeypatch.setattr(claim_module, "SILENCE_S", 1.0)


@pytest.mark.usefixtures("impatient")
def test_a_run_on_another_machine_is_seen_by_its_beat(folder: Path) -> None:
    elsewhere = Claim(folder)
    elsewhere.begin()
    as_if_elsewhere(folder)
    with (
        pytest.raises(DataError, match=r"another preparation \(process \d+ on .*is writing"),
        locked(folder),
    ):
        pass
    elsewhere.check()
    elsewhere.release()
    with locked(folder) as mine:
        mine.begin()
        mine.check()


@pytest.mark.usefixtures("impatient")
def test_a_run_on_another_machine_that_fell_silent_is_taken_over(folder: Path) -> None:
    elsewhere = Claim(folder)
    elsewhere.begin()
    as_if_elsewhere(folder)
    elsewhere._ended.set()
    elsewhere._thread.join()
    with locked(folder) as mine:
        mine.begin()
        with pytest.raises(DataError, match=r"another preparation \(.*\) took over"):
            elsewhere.check()
        # The one that was taken over ends and leaves the other its claim.
        elsewhere.release()
        mine.check()
    assert [path.name for path in (folder / LEDGER).iterdir()] == ["lock"]


def test_a_folder_that_vanishes_is_one_error(folder: Path) -> None:
    with locked(folder) as mine:
        mine.begin()
        shutil.rmtree(folder)
        with pytest.raises(DataError, match="is gone"):
            mine.check()


def test_nothing_changes_before_a_run_begins(folder: Path) -> None:
    with locked(folder):
        pass
    times = {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}
    with locked(folder):
        pass
    assert {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))} == times
    assert [threading.current_thread()] == [
        thread for thread in threading.enumerate() if thread.name in ("claim", "MainThread")
    ]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_task_that_outlives_its_run_changes_nothing(tmp_path: Path) -> None:
    """Of three tasks with older input, one ends early, one in between and one after the new run."""
    write_raw(tmp_path / "raw")
    config = prepare_config(tmp_path / "raw", tmp_path / "out")
    old = plan_dataset(config, "mix")
    (old.folder / LEDGER).mkdir(parents=True, exist_ok=True)
    # A run that is killed: its claim is never released, its lock is gone.
    killed = Claim(old.folder)
    killed.begin()
    early = build_shard(old.task(0), killed.staging)
    staging = killed.staging

    (tmp_path / "raw" / "images" / f"{1:012d}.jpg").write_bytes(jpeg(77))
    new = plan_dataset(config, "mix")
    fresh = plan_dataset(prepare_config(tmp_path / "raw", tmp_path / "fresh"), "mix")
    (fresh.folder / LEDGER).mkdir(parents=True, exist_ok=True)
    for number in range(fresh.shards):
        build_shard(fresh.task(number))
    finish(fresh, 0.0)

    with locked(new.folder) as mine:
        mine.begin()
        with pytest.raises(DataError, match="cannot be written: No such file"):
            build_shard(old.task(1), staging)
        # A task that had its files open already can bring its folder back.
        staging.mkdir()
        late = build_shard(old.task(1), staging)
        for number in survey(new).todo:
            commit(mine, build_shard(new.task(number), mine.staging))
        for built in (early, late):
            with pytest.raises(DataError, match="took over"):
                commit(killed, built)
        finish(new, 0.0, mine)
    build_shard(old.task(2), staging)
    assert files_of(new.folder) == files_of(fresh.folder)
    assert survey(new).todo == ()
    killed.release()
    with locked(new.folder) as again:
        again.begin()
        assert [path.name for path in (new.folder / LEDGER).glob("run-*")] == [again.staging.name]
