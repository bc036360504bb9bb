"""Tar and zip: found by an index, bounded, and never unpacked."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.quarantine import Reason, Rejected
from data_prep.stores import MISSING, StoreError, open_store
from data_prep.stores import zip as zip_module
from data_prep.stores.base import MAX_IMAGE_BYTES

A, B = b"first" * 300, os.urandom(2000)
Entries = list[tuple[Any, bytes]]


def tar_entry(name: str, **fields: Any) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry


def write_tar(path: Path, entries: Entries, kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in entries:
            entry = tar_entry(name) if isinstance(name, str) else name
            if entry.isreg():
                entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def write_zip(path: Path, entries: Entries, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


WRITERS: dict[str, Callable[[Path, Entries], Path]] = {"a.tar": write_tar, "a.zip": write_zip}
both = pytest.mark.parametrize("kind", WRITERS)


def reason(path: Path, name: str) -> str:
    with pytest.raises(Rejected) as caught:
        open_store(str(path)).read(name)
    return str(caught.value.reason)


@both
def test_members_are_read_by_name(tmp_path: Path, kind: str) -> None:
    long = "d/" * 60 + "é" * 60 + ".jpg"
    path = WRITERS[kind](tmp_path / kind, [("im/a.jpg", A), ("./b.jpg", B), (long, B), ("e", b"")])
    store = open_store(str(path))
    assert store.read("im/a.jpg") == A
    assert store.read("b.jpg") == store.read(long) == B
    assert store.read("e") == b""
    assert reason(path, "im") == reason(path, "c.jpg") == Reason.MISSING_IMAGE
    assert reason(path, "../b.jpg") == Reason.BAD_IMAGE_NAME
    assert [stamp.bytes for stamp in store.stamps(["b.jpg", "no", "im/a.jpg"])] == [2000, -1, 1500]
    assert open_store(f"{path}/im").read("a.jpg") == A
    with pytest.raises(StoreError, match="nothing in a folder 'imag'"):
        open_store(f"{path}/imag")
    assert store.read("b.jpg@10+20") == B[10:30]
    with pytest.raises(Rejected, match="end behind the file's 2000"):
        store.read("b.jpg@1990+20")


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_of_tar_is_read(tmp_path: Path, kind: int) -> None:
    path = write_tar(tmp_path / "a.tar", [("d/" * 45 + "a.jpg", A), ("b.jpg", B)], kind)
    assert open_store(str(path)).read("d/" * 45 + "a.jpg") == A
    assert open_store(str(path)).read("b.jpg") == B


def test_stored_members_of_a_zip_are_read(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", [("a.jpg", A), ("b.jpg", B)], zipfile.ZIP_STORED)
    assert open_store(str(path)).read("b.jpg") == B


@both
def test_of_equal_names_the_last_counts(tmp_path: Path, kind: str) -> None:
    # zipfile warns of what it is asked to write.
    with warnings.catch_warnings(action="ignore"):
        path = WRITERS[kind](tmp_path / kind, [("a.jpg", A), ("b.jpg", A), ("a.jpg", B)])
    assert open_store(str(path)).read("a.jpg") == B


@both
def test_names_that_lead_out_are_forgotten(tmp_path: Path, kind: str) -> None:
    entries: Entries = [(n, A) for n in ("../a.jpg", "x/../../a.jpg", "..\\a.jpg", "b.jpg")]
    path = WRITERS[kind](tmp_path / kind, entries)
    assert open_store(str(path)).read("b.jpg") == A
    assert reason(path, "a.jpg") == Reason.MISSING_IMAGE
    assert [p.name for p in tmp_path.rglob("*.jpg")] == []


def test_links_and_devices_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    entries: Entries = [
        ("real.jpg", A),
        (tar_entry("soft.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), b""),
        (tar_entry("hard.jpg", type=tarfile.LNKTYPE, linkname="real.jpg"), b""),
        (tar_entry("device.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=5), b""),
        (tar_entry("pipe.jpg", type=tarfile.FIFOTYPE), b""),
        (tar_entry("folder.jpg", type=tarfile.DIRTYPE), b""),
        # A link that replaces a file of the same name wins, as it would after unpacking.
        ("replaced.jpg", A),
        (tar_entry("replaced.jpg", type=tarfile.SYMTYPE, linkname="real.jpg"), b""),
    ]
    path = write_tar(tmp_path / "a.tar", entries)
    for name in ("soft", "hard", "device", "pipe", "replaced"):
        assert reason(path, f"{name}.jpg") == Reason.UNREADABLE_IMAGE
        assert open_store(str(path)).stamps([f"{name}.jpg"]) == [MISSING]
    assert reason(path, "folder.jpg") == Reason.MISSING_IMAGE


def test_links_in_a_zip_are_not_followed(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("a.jpg")
    link.external_attr = 0o120777 << 16
    path = write_zip(tmp_path / "a.zip", [(link, b"/etc/passwd")])
    assert reason(path, "a.jpg") == Reason.UNREADABLE_IMAGE


def set_sizes(path: Path, *, size: int | None = None, crc: int | None = None) -> None:
    """Changes what the directory of a zip with one member declares."""
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    if size is not None:
        struct.pack_into("<I", content, entry + 24, size)
    if crc is not None:
        struct.pack_into("<I", content, entry + 16, crc)
    path.write_bytes(content)


def test_a_zip_bomb_is_stopped_at_its_declared_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "a.zip", [("a.jpg", bytes(50_000_000))])
    set_sizes(path, size=1000)
    made: list[int] = []
    inflate = zlib.decompressobj

    class Counting:
        def __init__(self, bits: int) -> None:
            self._inflater = inflate(bits)

        def decompress(self, packed: bytes, limit: int) -> bytes:
            content = self._inflater.decompress(packed, limit)
            made.append(len(content))
            return content

    monkeypatch.setattr(zip_module.zlib, "decompressobj", Counting)
    with pytest.raises(Rejected, match="not the 1000 bytes that the archive says"):
        open_store(str(path)).read("a.jpg")
    assert made == [1001]
    set_sizes(path, size=MAX_IMAGE_BYTES + 1)
    with pytest.raises(Rejected, match="an image may have"):
        open_store(str(path)).read("a.jpg")
    assert made == [1001]


def test_damage_in_a_zip_costs_the_member(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", [("a.jpg", A)])
    set_sizes(path, crc=1)
    assert reason(path, "a.jpg") == Reason.UNREADABLE_IMAGE
    for place, byte in ((0, 0), (45, 255)):
        content = bytearray(write_zip(tmp_path / "a.zip", [("a.jpg", A)]).read_bytes())
        content[place] = byte
        path.write_bytes(content)
        assert reason(path, "a.jpg") == Reason.UNREADABLE_IMAGE
    path = write_zip(tmp_path / "b.zip", [("a.jpg", A)], zipfile.ZIP_LZMA)
    with pytest.raises(Rejected, match="method 14; only deflate"):
        open_store(str(path)).read("a.jpg")


@both
@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_a_damaged_archive_is_one_error(tmp_path: Path, kind: str, damage: str) -> None:
    path = WRITERS[kind](tmp_path / kind, [("a.jpg", A), ("b.jpg", B)])
    whole = path.read_bytes()
    cut = whole[: whole.index(B[:50]) + 100]
    path.write_bytes({"empty": b"", "text": b"hello" * 500, "cut": cut}[damage])
    with pytest.raises(StoreError, match=f"{kind} is not a whole {kind[2:]}"):
        open_store(str(path))


def test_a_damaged_header_does_not_hide_the_rest_of_a_tar(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.jpg", A), ("b.jpg", B)], tarfile.USTAR_FORMAT)
    content = bytearray(path.read_bytes())
    second = content.index(b"b.jpg")
    content[second] = ord("c")
    path.write_bytes(content)
    with pytest.raises(StoreError, match=f"damaged at byte {second}"):
        open_store(str(path))


def test_a_giant_header_is_refused(tmp_path: Path) -> None:
    header = tar_entry("x", type=tarfile.XHDTYPE, size=2**33).tobuf(tarfile.GNU_FORMAT)
    path = tmp_path / "a.tar"
    path.write_bytes(header)
    with path.open("ab") as file:
        file.truncate(2**33 + 10_240)
    with pytest.raises(StoreError, match="a header of 8589934592 bytes"):
        open_store(str(path))


def test_an_index_is_made_once_and_again_for_another_archive(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_prep.stores import archive, close_stores

    scans: list[str] = []
    scan = archive.scan_tar

    def counting(file: Any) -> Any:
        scans.append(file.name)
        return scan(file)

    monkeypatch.setattr(archive, "scan_tar", counting)
    path = write_tar(tmp_path / "a.tar", [("a.jpg", A)])
    before = open_store(str(path)).stamps(["a.jpg"])
    close_stores()
    assert open_store(str(path)).read("a.jpg") == A
    assert len(scans) == 1
    write_tar(path, [("b.jpg", B), ("a.jpg", B)])
    assert open_store(str(path)).read("a.jpg") == B
    assert open_store(str(path)).stamps(["a.jpg"]) != before
    assert len(scans) == 2
    for index in cache.glob("*.sqlite"):
        index.write_bytes(b"no index")
    close_stores()
    assert open_store(str(path)).read("a.jpg") == B
    assert len(scans) == 3


def test_without_a_cache_folder_a_process_has_its_own_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("PREFIXWORKS_CACHE", str(tmp_path / "file" / "x"))
    path = write_zip(tmp_path / "a.zip", [("a.jpg", A)])
    assert open_store(str(path)).read("a.jpg") == A


def test_threads_share_a_store(tmp_path: Path) -> None:
    contents = {f"{i}.jpg": os.urandom(3000) for i in range(50)}
    path = write_tar(tmp_path / "a.tar", list(contents.items()))
    found: dict[str, bytes] = {}

    def read(names: list[str]) -> None:
        for name in names:
            found[name] = open_store(str(path)).read(name)

    names = list(contents)
    threads = [threading.Thread(target=read, args=(names[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == contents
