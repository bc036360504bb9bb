"""A checkpoint on disk: what comes back, what damage is seen, what a kill or a full disk leaves."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import CheckpointError, TrainingError
from pipeline.training import checkpoint
from pipeline.training.checkpoint import (
    Best,
    RunState,
    read_checkpoint,
    read_state,
    write_checkpoint,
)
from pipeline.training.checkpoint_folder import (
    CheckpointFolder,
    checkpoints_in,
    newest_checkpoint,
    opened,
)
from pipeline.training.config import TrainingConfig
from pipeline.training.world import World

START = RunState(
    step=0,
    total_steps=9,
    base_fingerprint="sha256:0",
    datasets={"/data/a": "sha256:1"},
    ranks=2,
    zero_stage=1,
    global_batch=4,
    seconds=1.5,
    config={"name": "run", "optimizer": {"betas": [0.9, 0.999]}, "007": None},
)


class Plain:
    """An engine as far as a folder of checkpoints looks at it: tensors that change each step."""

    def __init__(self) -> None:
        self.taken: dict[str, Tensor] = {}

    def full_state(self) -> dict[str, Tensor]:
        return tensors_of(1)

    def take_full_state(self, tensors: dict[str, Tensor]) -> None:
        self.taken = tensors


def tensors_of(seed: int) -> dict[str, Tensor]:
    values = torch.randn(300, 40, generator=torch.Generator().manual_seed(seed))
    odd = torch.tensor([-0.0, 0.0, float("nan"), float("inf"), 1e-45])
    return {"parameter/a": values, "exp_avg/a": odd, "step/a": torch.tensor(float(seed))}


def folder_of(run_dir: Path, **training: Any) -> CheckpointFolder:
    world = World(rank=0, size=1, device=torch.device("cpu"))
    return CheckpointFolder(run_dir, world, TrainingConfig(**training))


def save(run_dir: Path, *steps: int, **training: Any) -> None:
    with folder_of(run_dir, **training) as folder:
        for step in steps:
            folder.save(Plain(), {}, replace(START, step=step))  # type: ignore[arg-type]


def raw(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


def test_every_bit_comes_back(tmp_path: Path) -> None:
    best = Best(step=3, value=float("nan"), metrics={"vqa/accuracy": 1.0})
    state = replace(START, step=4, best=best, mark=0.25, stale=2)
    write_checkpoint(tmp_path, state, tensors_of(3))
    read, tensors = read_checkpoint(tmp_path)
    assert repr(read) == repr(state)
    assert {n: raw(t) for n, t in tensors.items()} == {n: raw(t) for n, t in tensors_of(3).items()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_checkpoint(folder, replace(START, step=4), tensors_of(3))
    return folder


@settings(max_examples=30)
@given(data=st.data())
def test_a_changed_byte_is_seen(written: Path, data: st.DataObject) -> None:
    path = written / data.draw(st.sampled_from(["state.json", "tensors.safetensors"]))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = data.draw(st.integers(1, 255)) ^ whole[at]
    try:
        path.write_bytes(whole[:at] + bytes([changed]) + whole[at + 1 :])
        record = path.name == "state.json"
        same = record and json.loads(whole) == _json(path.read_bytes())
        if not same:  # one blank for another changes no record
            with pytest.raises(CheckpointError, match=r"damaged|has format"):
                read_checkpoint(written)
        path.write_bytes(whole[:at])
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(written)
    finally:
        path.write_bytes(whole)
    read_checkpoint(written)


def _json(text: bytes) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", '{"format": "prefixworks.checkpoint/2"}', "[" * 10**5, "\xff"]
)
def test_what_is_no_record_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"state\.json (is missing or damaged|has format)"):
        read_state(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": "four"}, "step = 'four': must be a whole number"),
        ({"later": 1}, "later"),
        ({"tensors": 3}, "another type"),
        ({"config": None}, "another type"),
        ({"best": {"step": 1}}, "value"),
    ],
)
def test_a_record_of_another_shape_is_refused_though_its_digest_is_right(
    change: dict[str, Any], said: str, written: Path, tmp_path: Path
) -> None:
    record = json.loads((written / "state.json").read_text()) | change
    del record["digest"]
    (tmp_path / "state.json").write_text(
        json.dumps({**record, "digest": checkpoint._digest(record)})
    )
    with pytest.raises(CheckpointError, match=said):
        read_state(tmp_path)


def test_the_former_format_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"format": "prefixworks.checkpoint/1", "step": 4}')
    with pytest.raises(CheckpointError, match=r"format prefixworks\.checkpoint/1, DeepSpeed's own"):
        read_state(tmp_path)


def test_tensors_of_another_checkpoint_are_damage(written: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(written, tmp_path / "copy")
    save_file(tensors_of(4), folder / "tensors.safetensors")
    with pytest.raises(CheckpointError, match="its SHA-256 is not the recorded one"):
        read_checkpoint(folder)


def test_damage_names_the_checkpoint_to_go_back_to(tmp_path: Path) -> None:
    save(tmp_path, 2, 4, 6, keep_last=3)
    folder = tmp_path / "checkpoints"
    for step in (6, 4):
        with (folder / f"step-00000{step}" / "tensors.safetensors").open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x55")
    newest = newest_checkpoint(tmp_path)
    assert newest == folder / "step-000006"
    with pytest.raises(CheckpointError, match=r"damaged.*--resume=step-000002 continues from"):
        opened(newest)
    (folder / "latest").write_text("../../elsewhere\n")
    with pytest.raises(CheckpointError, match=r"'elsewhere', which is no whole.*step-000002"):
        newest_checkpoint(tmp_path)
    shutil.rmtree(folder / "step-000002")
    with pytest.raises(CheckpointError, match="no whole one; begin again"):
        opened(newest)


def test_the_last_ones_stay_and_those_of_another_way_until_they_are_replaced(
    tmp_path: Path,
) -> None:
    save(tmp_path, 2, 4, 6, 8, keep_last=2)
    folder = tmp_path / "checkpoints"
    assert [path.name for path in checkpoints_in(folder)] == ["step-000006", "step-000008"]
    save(tmp_path, 7, keep_last=1)
    assert [path.name for path in checkpoints_in(folder)] == ["step-000007", "step-000008"]
    assert newest_checkpoint(tmp_path) == folder / "step-000007"
    save(tmp_path, 8, keep_last=1)
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["step-000008"]
    assert newest_checkpoint(tmp_path) == folder / "step-000008"


def test_buffers_go_with_the_tensors_and_come_back(tmp_path: Path) -> None:
    held = {"buffer/mean": torch.tensor([1.0, 2.0]), "buffer/count": torch.tensor(7)}
    with folder_of(tmp_path) as folder:
        folder.save(Plain(), held, replace(START, step=2))  # type: ignore[arg-type]
    place = tmp_path / "checkpoints" / "step-000002"
    engine, buffers = Plain(), {name: torch.zeros_like(t) for name, t in held.items()}
    folder_of(tmp_path).load(engine, buffers, place, read_checkpoint(place)[1])  # type: ignore[arg-type]
    assert engine.taken.keys() == tensors_of(1).keys()
    assert all(torch.equal(buffers[name], held[name]) for name in held)
    with pytest.raises(
        CheckpointError, match=r"step-000002 cannot be loaded: .*mean is unexpected"
    ):
        folder_of(tmp_path).load(engine, {}, place, read_checkpoint(place)[1])  # type: ignore[arg-type]


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    with folder_of(tmp_path) as folder:
        folder.save(Plain(), {}, replace(START, step=2))  # type: ignore[arg-type]
        folder.wait()
        place = tmp_path / "checkpoints" / "step-000002"
        before = place.stat().st_ino
        folder.save(Plain(), {}, replace(START, step=2))  # type: ignore[arg-type]
        folder.wait()
        assert place.stat().st_ino == before


def test_a_run_that_went_back_points_at_where_it_stands(tmp_path: Path) -> None:
    save(tmp_path, 2, 4)
    places = checkpoints_in(tmp_path / "checkpoints")
    for place in places:
        inode = place.stat().st_ino
        with folder_of(tmp_path) as folder:
            folder.load(Plain(), {}, place, read_checkpoint(place)[1])  # type: ignore[arg-type]
            state = replace(START, step=int(place.name[5:]))
            folder.save(Plain(), {}, state)  # type: ignore[arg-type]
        assert newest_checkpoint(tmp_path) == place
        (tmp_path / "checkpoints" / "latest").write_text("step-000004\n")
        # The newest is not written again.
        assert (place.stat().st_ino == inode) == (place == places[-1])


_CALLS = ("fsync", "rename", "replace", "rmdir", "unlink", "mkdir")


def _at_each_call(act: Callable[[], None], call: int) -> None:
    """Makes the n-th system call of these act first."""
    count = 0

    def counting(original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == call:
                act()
            return original(*arguments, **named)

        return counted

    for name in _CALLS:
        setattr(os, name, counting(getattr(os, name)))


def _in_child(run: Callable[[], None]) -> int:
    """Runs it in a copy of this process; its exit status as os.waitpid has it."""
    child = os.fork()
    if child == 0:
        try:
            # The threads that torch computes with did not come along.
            torch.set_num_threads(1)
            run()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("background", [False, True])
def test_a_kill_at_any_moment_of_saving_leaves_a_whole_checkpoint(
    background: bool, tmp_path: Path
) -> None:
    found, call, status = set(), 0, -1
    while status != 0:
        call += 1
        run_dir = tmp_path / str(call)
        save(run_dir, 2, 4, keep_last=2)

        def killed(run_dir: Path = run_dir, call: int = call) -> None:
            _at_each_call(lambda: os.kill(os.getpid(), signal.SIGKILL), call)
            save(run_dir, 6, keep_last=2, async_checkpoints=background)

        status = _in_child(killed)
        assert status in (0, signal.SIGKILL)
        newest = newest_checkpoint(run_dir)
        assert newest is not None
        found.add(read_checkpoint(newest)[0].step)
        for place in checkpoints_in(run_dir / "checkpoints"):
            read_checkpoint(place)
        # What is left does not stand in the way of going on.
        save(run_dir, 8, keep_last=1)
        kept = [path for path in (run_dir / "checkpoints").iterdir() if path.is_dir()]
        assert [path.name for path in kept] == ["step-000008"]
    assert found == {4, 6}
    assert call > 10


def test_a_first_checkpoint_without_its_pointer_counts(tmp_path: Path) -> None:
    save(tmp_path, 2)
    (tmp_path / "checkpoints" / "latest").unlink()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-000002"
    assert newest_checkpoint(tmp_path / "nothing") is None


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("limit", [0, 1_000, 20_000])
def test_a_full_disk_breaks_the_run_in_one_line_and_loses_nothing(
    limit: int, background: bool, tmp_path: Path
) -> None:
    save(tmp_path, 2)
    said = tmp_path / "said"
    said.touch()

    def full() -> None:
        descriptor = os.open(said, os.O_WRONLY)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            save(tmp_path, 4, async_checkpoints=background)
        except TrainingError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            os.write(descriptor, str(error).encode())

    assert _in_child(full) == 0
    assert re.fullmatch(r"\S+step-000004 cannot be written: .+", said.read_text())
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert read_checkpoint(newest)[0].step == 2
    save(tmp_path, 4)
    assert read_checkpoint(tmp_path / "checkpoints" / "step-000004")[0].step == 4


@pytest.mark.parametrize("background", [False, True])
def test_a_disk_that_keeps_other_bytes_is_found_out(
    background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 2)
    sync = checkpoint.sync

    def forgetful(path: Path) -> None:
        if path.name.endswith("tensors.safetensors"):
            with path.open("r+b") as file:
                file.seek(-3, os.SEEK_END)
                file.write(b"\x11")
        sync(path)

    monkeypatch.setattr(checkpoint, "sync", forgetful)
    with pytest.raises(CheckpointError, match="does not hold what was written into it"):
        save(tmp_path, 4, async_checkpoints=background)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "step-000002"


def test_a_failure_in_the_background_comes_out_at_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    folder = folder_of(tmp_path)
    folder.save(Plain(), {}, replace(START, step=2))  # type: ignore[arg-type]
    assert folder._pending is not None
    folder._pending.exception()
    with pytest.raises(TrainingError, match="step-000002 cannot be written"):
        folder.check()


def test_another_error_stays_the_last_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "checkpoints").write_text("in the way")

    def broken() -> None:
        with folder_of(tmp_path) as folder:
            folder.save(Plain(), {}, replace(START, step=2))  # type: ignore[arg-type]
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert "step-000002 cannot be written" in caplog.text


def test_the_copy_is_of_the_step_that_was_saved(tmp_path: Path) -> None:
    engine = Plain()
    own = tensors_of(1)
    engine.full_state = lambda: {n: t.clone() for n, t in own.items()}  # type: ignore[method-assign]
    with folder_of(tmp_path) as folder:
        folder.save(engine, {}, replace(START, step=2))  # type: ignore[arg-type]
        for tensor in own.values():
            tensor.fill_(5.0)
    held = load_file(tmp_path / "checkpoints" / "step-000002" / "tensors.safetensors")
    assert raw(held["parameter/a"]) == raw(tensors_of(1)["parameter/a"])
