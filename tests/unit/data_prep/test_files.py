"""Files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.errors import DataError
from data_prep.files import remove_temporaries, whole_file, write_whole


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with whole_file(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def _break_off(path: Path, error: BaseException) -> None:
    with whole_file(path) as file:
        file.write(b"new")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError(), DataError("x")])
def test_what_breaks_off_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        _break_off(path, error)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_error(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"a cannot be written: No space left"),
        whole_file(tmp_path / "a"),
        # A device that is always full stands in for the disk.
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written: No such file"):
        write_whole(tmp_path / "gone" / "a", b"x")


def test_left_over_temporaries_are_removed(tmp_path: Path) -> None:
    write_whole(tmp_path / "kept.tmp", b"x")
    (tmp_path / ".shard-000000.tar.123.tmp").write_bytes(b"half")
    remove_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.tmp"]
