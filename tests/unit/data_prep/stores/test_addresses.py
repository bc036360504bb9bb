"""Addresses come from strangers: names stay inside, ranges inside their files."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import DataError
from data_prep.quarantine import Reason, Rejected
from data_prep.stores import MISSING, absolute_location, open_store, range_address
from data_prep.stores.addresses import Address, decoded, parse_address
from data_prep.stores.base import MAX_IMAGE_BYTES, checked_name
from data_prep.stores.locations import parse_location, split_archive


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../x.jpg",
        "a/../../x",
        "a\\..\\b",
        "\\\\host\\x",
        "\0",
        ".",
        "./",
        "\ud800",
    ],
)
def test_names_stay_inside(name: str) -> None:
    with pytest.raises(Rejected) as caught:
        checked_name(name)
    assert caught.value.reason is Reason.BAD_IMAGE_NAME
    with pytest.raises(Rejected):
        parse_address(f"{name}@0+1")


def test_an_image_has_a_name() -> None:
    with pytest.raises(Rejected, match="bad_image_name"):
        parse_address("")


def test_a_name_has_one_form() -> None:
    assert checked_name("./train//a..b.jpg") == "train/a..b.jpg"


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\\\0."), min_size=1),
    st.integers(0, 10**18 - 1),
    st.integers(0, 10**18 - 1),
    st.booleans(),
)
def test_a_range_is_read_back(name: str, offset: int, length: int, text: bool) -> None:
    address = range_address(name, offset, length, base64=text)
    assert parse_address(address) == Address(name, offset, length, text)


@pytest.mark.parametrize("name", ["a@2x.jpg", "a@1+2.jpg", "a@b+c", "a@+1", "a@1+", "a;base64"])
def test_what_only_looks_like_a_range_is_a_name(name: str) -> None:
    assert parse_address(name) == Address(name)


@given(st.binary(max_size=200))
def test_both_alphabets_of_base64_are_read(content: bytes) -> None:
    assert decoded("x", base64.b64encode(content)) == content
    assert decoded("x", base64.urlsafe_b64encode(content).rstrip(b"=")) == content
    assert decoded("x", base64.encodebytes(content)) == content


@pytest.mark.parametrize("text", [b"a", b"ab*d", b"\xff\xff\xff\xff", b"ab=d"])
def test_other_text_is_no_base64(text: bytes) -> None:
    with pytest.raises(Rejected, match="unreadable_image: x: not base64"):
        decoded("x", text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "a.tsv").write_bytes(b"0\t" + base64.b64encode(b"picture") + b"\n")
    return folder


def test_a_range_of_a_file_is_an_image(folder: Path) -> None:
    store = open_store(str(folder))
    assert store.read("a.tsv@2+12;base64") == b"picture"
    assert store.read("a.tsv@0+2") == b"0\t"
    assert store.read("a.tsv@15+0") == b""


@pytest.mark.parametrize("address", ["a.tsv@2+14", "a.tsv@999+1", "a.tsv@0+999999999999999999"])
def test_a_range_ends_inside_its_file(folder: Path, address: str) -> None:
    with pytest.raises(Rejected, match="unreadable_image: a"):
        open_store(str(folder)).read(address)


def test_a_range_has_a_largest_size(folder: Path) -> None:
    with (folder / "big").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    store = open_store(str(folder))
    for address in ("big", f"big@0+{MAX_IMAGE_BYTES + 1}"):
        with pytest.raises(Rejected, match="unreadable_image: big: 268435457 bytes"):
            store.read(address)


def test_stamps_keep_their_order_and_never_raise(folder: Path) -> None:
    addresses = ["no", "a.tsv@2+12;base64", "../x", "a.tsv", "no@0+1", "a.tsv@0+2", "a.tsv"]
    stamps = open_store(str(folder)).stamps(addresses)
    assert [stamp.bytes for stamp in stamps] == [-1, 12, -1, 15, -1, 2, 15]
    assert [stamp == MISSING for stamp in stamps] == [True, False, True, False, True, False, False]
    (folder / "a.tsv").write_bytes(b"something else")
    changed = open_store(str(folder)).stamps(addresses)
    assert [a.state != b.state for a, b in zip(stamps, changed, strict=True)] == [
        stamp != MISSING for stamp in stamps
    ]


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://10.0.0.1/images", r"http:// cannot be read; give a folder, a .tar"),
        ("HTTPS://x/y.tar", "https:// cannot be read"),
        ("ftp://x/y", "ftp:// cannot be read"),
        ("file://host/images", "three slashes"),
        ("file:///images?links=yes", "links must be follow or inside"),
        ("s3://", "expected s3://bucket/path"),
        ("s3://key:secret@bucket/x", "without credentials"),
        ("s3://bucket/../other", "have no meaning"),
        ("s3://bucket/x?regin=a", "no option 'regin' there; allowed: anonymous, endpoint, region"),
        ("s3://bucket/x?anonymous=1", "anonymous must be true or false"),
        ("hf://datasets/a/b?region=x", "allowed: none"),
        ("a\0b", "is not a location"),
    ],
)
def test_bad_locations_say_what_can_be_given(location: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        parse_location(location)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_archives_stand_anywhere_in_a_location(tmp_path: Path) -> None:
    def split(location: str) -> tuple[str, str] | None:
        return split_archive(parse_location(location))

    assert split("s3://b/coco/train.zip") == ("b/coco/train.zip", "")
    assert split("s3://b/coco/train.ZIP/a//b/") == ("b/coco/train.ZIP", "a/b")
    assert split("/data/x.tar/y") == ("/data/x.tar", "y")
    assert split("/data/images") is None
    (tmp_path / "x.tar").mkdir()
    assert split(str(tmp_path / "x.tar")) is None
    for name in ("x.tar.gz", "x.TGZ", "x.tar.zst"):
        with pytest.raises(DataError, match="compressed tar; decompress it"):
            split(f"s3://b/{name}")


def test_relative_locations_are_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_location("images") == str(tmp_path / "images")
    assert absolute_location("s3://b/x?region=y") == "s3://b/x?region=y"
