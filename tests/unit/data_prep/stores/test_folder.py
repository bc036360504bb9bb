"""A folder of images: what is in it and nothing else."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from data_prep.errors import DataError
from data_prep.quarantine import Reason, Rejected
from data_prep.stores import MISSING, StoreError, input_name, input_sha256, open_input, open_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "a.jpg").write_bytes(b"inside")
    (tmp_path / "secret.jpg").write_bytes(b"outside")
    return folder


def reason(folder: Path, name: str, location: str | None = None) -> Reason:
    with pytest.raises(Rejected) as caught:
        open_store(location or str(folder)).read(name)
    return caught.value.reason


def test_images_are_read_by_name(folder: Path) -> None:
    for location in (str(folder), f"file://{folder}", f"{folder}/"):
        assert open_store(location).read("train/a.jpg") == b"inside"


def test_what_is_no_file_is_rejected_by_its_reason(folder: Path) -> None:
    assert reason(folder, "b.jpg") is Reason.MISSING_IMAGE
    assert reason(folder, "train/a.jpg/b.jpg") is Reason.MISSING_IMAGE
    assert reason(folder, "train") is Reason.UNREADABLE_IMAGE
    assert reason(folder, "x" * 300) is Reason.UNREADABLE_IMAGE
    assert open_store(str(folder)).stamps(["b.jpg", "train", "x" * 300]) == [MISSING] * 3


@pytest.mark.timeout(20)
def test_pipes_and_devices_do_not_hold_a_worker(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.jpg"))
    assert reason(folder, "pipe.jpg") is Reason.UNREADABLE_IMAGE
    assert reason(folder, "socket.jpg") is Reason.UNREADABLE_IMAGE
    (folder / "null.jpg").symlink_to("/dev/zero")
    assert reason(folder, "null.jpg", f"file://{folder}?links=follow") is Reason.UNREADABLE_IMAGE
    assert open_store(str(folder)).stamps(["pipe.jpg", "socket.jpg", "null.jpg"]) == [MISSING] * 3


def test_links_inside_the_folder_are_followed(folder: Path) -> None:
    (folder / "b.jpg").symlink_to("train/a.jpg")
    (folder / "val").symlink_to(folder / "train")
    store = open_store(str(folder))
    assert store.read("b.jpg") == store.read("val/a.jpg") == b"inside"


def test_the_folder_itself_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    (folder / "b.jpg").symlink_to("train/a.jpg")
    assert open_store(str(tmp_path / "link")).read("b.jpg") == b"inside"


def test_links_out_of_the_folder_need_a_word(folder: Path, tmp_path: Path) -> None:
    (folder / "out.jpg").symlink_to("../secret.jpg")
    (folder / "up").symlink_to(tmp_path)
    # A neighbour whose name begins alike is not inside, either.
    (tmp_path / "images2").mkdir()
    (tmp_path / "images2" / "x.jpg").write_bytes(b"outside")
    (folder / "near.jpg").symlink_to(tmp_path / "images2" / "x.jpg")
    for name in ("out.jpg", "up/secret.jpg", "near.jpg"):
        assert reason(folder, name) is Reason.BAD_IMAGE_NAME
        assert open_store(str(folder)).stamps([name]) == [MISSING]
        assert open_store(f"file://{folder}?links=follow").read(name) == b"outside"
    (folder / "circle.jpg").symlink_to("circle.jpg")
    assert reason(folder, "circle.jpg") is Reason.UNREADABLE_IMAGE


def test_a_missing_folder_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder of images"):
        open_store(str(tmp_path / "no"))


def test_annotation_files_are_read_by_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"one\ntwo\n" * 5000)
    with open_input(str(path)) as file:
        assert sum(line in (b"one\n", b"two\n") for line in file) == 10_000
        assert file.seek(4) == 4
        assert file.read(3) == b"two"
    assert input_name(str(path)) == "a.jsonl"
    assert input_name("s3://b/x/a.jsonl?region=y") == "a.jsonl"
    assert input_sha256(str(path)) == input_sha256(f"file://{path}")


@pytest.mark.timeout(20)
def test_unusable_annotation_files_are_one_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, words in {"no": "No such file", "": "not a file", "pipe": "not a file"}.items():
        with pytest.raises(DataError, match=words):
            open_input(str(tmp_path / name))
