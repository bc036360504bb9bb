"""Object stores: S3 against a real server, the others as far as a machine without them allows."""

from __future__ import annotations

import base64
import io
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data_prep.errors import DataError
from data_prep.quarantine import Reason, Rejected
from data_prep.stores import (
    MISSING,
    StoreError,
    close_stores,
    filesystems,
    input_sha256,
    inputs,
    open_input,
    open_store,
    opening,
    remote,
)
from data_prep.stores.retries import Retries
from tests.support.s3_server import BUCKET, ENVIRONMENT, S3Server, free_port, s3_server

pytestmark = pytest.mark.timeout(120)

IMAGE = os.urandom(5000)
SHORT = Retries(attempts=2, first_delay_s=0.01)


@pytest.fixture(scope="module")
def running() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def server(running: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": running.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(opening, "Retries", lambda: SHORT)
    monkeypatch.setattr(inputs, "Retries", lambda: SHORT)
    return running


def test_objects_are_read_by_name(server: S3Server) -> None:
    server.put({"im/a.jpg": IMAGE, "im/é +%.jpg": b"odd", "im/empty.jpg": b"", "im/d/x": b""})
    store = open_store(f"s3://{BUCKET}/im")
    assert store.read("a.jpg") == IMAGE
    assert store.read("./a.jpg") == IMAGE
    assert store.read("é +%.jpg") == b"odd"
    assert store.read("empty.jpg") == b""
    for name, reason in {
        "b.jpg": Reason.MISSING_IMAGE,
        "d": Reason.MISSING_IMAGE,
        "../x": Reason.BAD_IMAGE_NAME,
    }.items():
        with pytest.raises(Rejected) as caught:
            store.read(name)
        assert caught.value.reason is reason
    stamps = store.stamps(["b.jpg", "a.jpg", "d", "../x", "empty.jpg"])
    assert [stamp.bytes for stamp in stamps] == [-1, 5000, -1, -1, 0]
    assert stamps[0] == MISSING


def test_the_location_names_endpoint_and_region(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    server.put({"im/a.jpg": IMAGE, "im/b.jpg": IMAGE})
    server.client().put_object_acl(Bucket=BUCKET, Key="im/a.jpg", ACL="public-read")
    location = f"s3://{BUCKET}/im?endpoint={server.url}&region=eu-west-1&anonymous=true"
    assert open_store(location).read("a.jpg") == IMAGE
    with pytest.raises(StoreError, match="refuses access"):
        open_store(location).read("b.jpg")
    with pytest.raises(DataError, match="expected http"):
        open_store(f"s3://{BUCKET}/im?endpoint=ftp://x")


def test_ranges_of_objects_are_read(server: S3Server) -> None:
    server.put({"t/a.tsv": b"0\t" + base64.b64encode(IMAGE)})
    store = open_store(f"s3://{BUCKET}/t")
    assert store.read("a.tsv@2+6668;base64") == IMAGE
    with pytest.raises(Rejected, match="end behind the file's 6670"):
        store.read("a.tsv@6600+100")
    with pytest.raises(Rejected, match="missing_image"):
        store.read("b.tsv@0+1")


def archives() -> dict[str, bytes]:
    content = {f"im/{i}.jpg": IMAGE + bytes([i]) for i in range(20)}
    tar, archive = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as writer:
        for name, image in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(image)
            writer.addfile(entry, io.BytesIO(image))
    with zipfile.ZipFile(archive, "w") as zipped:
        for name, image in content.items():
            zipped.writestr(name, image)
    return {"x/a.tar": tar.getvalue(), "x/a.zip": archive.getvalue()}


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
def test_archives_are_read_by_ranges(
    server: S3Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put(archives())
    read: list[int] = []
    read_at = remote.RemoteFile.read_at

    def counting(self: remote.RemoteFile, offset: int, length: int) -> bytes:
        read.append(length)
        return read_at(self, offset, length)

    monkeypatch.setattr(remote.RemoteFile, "read_at", counting)
    store = open_store(f"s3://{BUCKET}/x/{name}/im")
    read.clear()
    assert store.read("7.jpg") == IMAGE + b"\7"
    assert len(read) == 1
    assert read[0] <= len(IMAGE) + 200
    assert [stamp.bytes for stamp in store.stamps(["3.jpg", "no.jpg"])] == [5001, -1]
    # Another process of this machine finds the index.
    close_stores()
    read.clear()
    assert open_store(f"s3://{BUCKET}/x/{name}/im").read("8.jpg") == IMAGE + b"\x08"
    assert len(read) == 1


def test_annotation_files_are_read(server: S3Server, tmp_path: Any) -> None:
    lines = b"".join(b"line %d\n" % i for i in range(1000))
    server.put({"a/x.jsonl": lines})
    (tmp_path / "x.jsonl").write_bytes(lines)
    with open_input(f"s3://{BUCKET}/a/x.jsonl") as file:
        assert list(file) == lines.splitlines(keepends=True)
    digest = input_sha256(f"s3://{BUCKET}/a/x.jsonl")
    assert digest == input_sha256(str(tmp_path / "x.jsonl"))
    with pytest.raises(DataError, match=r"s3://pictures/a/no\.json cannot be read: no such object"):
        open_input(f"s3://{BUCKET}/a/no.json")


@pytest.mark.parametrize("location", ["s3://nobody/im", f"s3://{BUCKET}/nothing"])
def test_a_location_without_objects_is_one_error(server: S3Server, location: str) -> None:
    with pytest.raises(StoreError, match="there is nothing; check the bucket and the path"):
        open_store(location)


def test_an_object_is_no_folder(server: S3Server) -> None:
    server.put({"im/a.jpg": IMAGE})
    with pytest.raises(StoreError, match=r"expected a folder of images, a \.tar or a \.zip"):
        open_store(f"s3://{BUCKET}/im/a.jpg")


def test_stamps_ask_many_at_once(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.put({"im/a.jpg": IMAGE})
    store: Any = open_store(f"s3://{BUCKET}/im")
    busy, most, lock = 0, 0, threading.Lock()
    filesystem = store._filesystem

    class Slow:
        def get_file_info(self, path: str) -> Any:
            nonlocal busy, most
            with lock:
                busy += 1
                most = max(most, busy)
            time.sleep(0.05)
            with lock:
                busy -= 1
            return filesystem.get_file_info(path)

    monkeypatch.setattr(store, "_filesystem", Slow())
    assert store.stamps([f"{i}.jpg" for i in range(40)]) == [MISSING] * 40
    assert most > 8


def test_a_store_that_goes_away_rejects_no_image(server: S3Server) -> None:
    server.put({"im/a.jpg": IMAGE, "t/a.tsv": IMAGE})
    store, table = open_store(f"s3://{BUCKET}/im"), open_store(f"s3://{BUCKET}/t")
    assert table.read("a.tsv@0+10") == IMAGE[:10]
    server.stop()
    try:
        for fail in (
            lambda: store.read("a.jpg"),
            lambda: store.stamps(["a.jpg"]),
            lambda: table.read("a.tsv@10+10"),
            lambda: open_input(f"s3://{BUCKET}/t/a.tsv?endpoint={server.url}"),
        ):
            with pytest.raises(
                StoreError, match=r"cannot be reached .*check the network"
            ) as caught:
                fail()
            assert "\n" not in str(caught.value)
    finally:
        server.start()
    assert store.read("a.jpg") == IMAGE


def test_a_passing_failure_is_tried_again(server: S3Server) -> None:
    server.put({"im/a.jpg": IMAGE})
    store: Any = open_store(f"s3://{BUCKET}/im")
    store._retries = Retries(attempts=6, first_delay_s=0.2)
    server.stop()
    back = threading.Timer(1.0, server.start)
    back.start()
    assert store.read("a.jpg") == IMAGE
    back.join()


def test_refused_credentials_are_one_error_and_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    # From its second request on, this server checks signatures.
    environment = {**os.environ, **ENVIRONMENT, "INITIAL_NO_AUTH_ACTION_COUNT": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        server = S3Server()
        server.url = f"http://127.0.0.1:{port}"
        server.client().create_bucket(Bucket=BUCKET)
        for name, value in ENVIRONMENT.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(opening, "Retries", lambda: Retries(attempts=5, first_delay_s=100.0))
        with pytest.raises(StoreError, match=r"refuses access .*check the credentials") as caught:
            open_store(f"s3://{BUCKET}/im?endpoint={server.url}")
        assert "\n" not in str(caught.value)
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("data_prep.stores.filesystems.REQUEST_TIMEOUT_S", 1.0)
    monkeypatch.setattr(opening, "Retries", lambda: SHORT)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        with pytest.raises(StoreError, match="cannot be reached"):
            open_store(f"s3://x-y/z?endpoint=http://127.0.0.1:{silent.getsockname()[1]}")


# There is no server for Google's protocol here: what these show is the way to the client and what
# a person is told when the store is not there.
@pytest.mark.parametrize("name", ["im", "im/a.tar", "im/a.zip"])
def test_google_is_routed_and_unreachable_is_one_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "Retries", lambda: SHORT)
    made: list[Any] = []
    client = pa.fs.GcsFileSystem
    monkeypatch.setattr(pa.fs, "GcsFileSystem", lambda **k: made.append(client(**k)) or made[-1])
    location = f"gs://bucket/{name}?anonymous=true&endpoint=http://127.0.0.1:{free_port()}"
    with pytest.raises(StoreError, match=r"gs://bucket/im.* cannot be reached") as caught:
        open_store(location)
    assert [client.type_name for client in made] == ["gcs"]
    assert "\n" not in str(caught.value)


HUB = """
import os, sys
from data_prep.stores import StoreError, open_store, opening
from data_prep.stores.retries import Retries
opening.Retries = lambda: Retries(attempts=1)
try:
    open_store("hf://datasets/owner/name/images")
except StoreError as error:
    print(error)
"""


def test_an_unreachable_hub_is_one_error() -> None:
    # The hub's client reads its endpoint when it is imported, hence another process.
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    done = subprocess.run(
        [sys.executable, "-c", HUB], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.stdout.count("\n") == 1, done.stderr
    assert done.stdout.startswith("hf://datasets/owner/name/images cannot be reached (1 attempts; ")


def test_fsspec_reads_as_the_others_do() -> None:
    """The way through fsspec, with its filesystem in memory in place of the hub's."""
    memory = MemoryFileSystem()
    memory.pipe({"/b/im/a.jpg": IMAGE, "/b/im/d/x": b""})
    filesystem = pa.fs.PyFileSystem(filesystems._Handler(memory))
    store = remote.ObjectStore(filesystem, "b/im", "memory", SHORT)
    assert store.read("a.jpg") == IMAGE
    assert store.read("a.jpg@10+20") == IMAGE[10:30]
    assert [stamp.bytes for stamp in store.stamps(["a.jpg", "b.jpg", "d"])] == [5000, -1, -1]
    with pytest.raises(Rejected, match="missing_image"):
        store.read("b.jpg")


def test_failures_of_a_client_are_failures_of_the_store() -> None:
    class Broken(MemoryFileSystem):
        def info(self, path: str, **options: Any) -> Any:
            raise RuntimeError("the client's own error")

    filesystem = pa.fs.PyFileSystem(filesystems._Handler(Broken()))
    with pytest.raises(StoreError, match=r"memory cannot be reached .*client's own"):
        remote.ObjectStore(filesystem, "b", "memory", SHORT)
