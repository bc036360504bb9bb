"""Images behind URLs of a real server: fetched within bounds, and only from where it is allowed."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import ConfigError, DataError
from pipeline.registry import picture_fetch
from pipeline.registry.picture_input import open_image
from pipeline.registry.picture_sources import SOURCES_VARIABLE


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, format="PNG")
    return buffer.getvalue()


class Pages(BaseHTTPRequestHandler):
    """What the test server answers, by path."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        answers = {
            "/red.png": self.send_picture,
            "/moved": lambda: self.send_redirect("/red.png"),
            "/local": lambda: self.send_redirect("file:///etc/hostname"),
            "/round": lambda: self.send_redirect("/round"),
            "/endless": self.send_endless,
            "/slow": self.send_slowly,
            "/broken": self.send_half,
        }
        with suppress(BrokenPipeError, ConnectionResetError):
            answers.get(self.path.partition("?")[0], lambda: self.send_error(404))()

    def send_picture(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(png())))
        self.end_headers()
        self.wfile.write(png())

    def send_redirect(self, place: str) -> None:
        self.send_response(302)
        self.send_header("Location", place)
        self.end_headers()

    def send_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(bytes(1 << 16))

    def send_slowly(self) -> None:
        # A byte now and then: no single wait is long.
        for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1_000:
            self.wfile.write(bytes([byte]))
            time.sleep(0.05)

    def send_half(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(png())))
        self.end_headers()
        self.wfile.write(png()[:40])


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def _private_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOURCES_VARIABLE, "private-url")


@pytest.mark.usefixtures("_private_allowed")
@pytest.mark.parametrize("path", ["/red.png", "/red.png?size=8", "/moved"])
def test_a_url_gives_the_image(site: str, path: str) -> None:
    assert open_image(site + path).size == (8, 6)


@pytest.mark.usefixtures("_private_allowed")
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/absent.png", "status 404"),
        ("/local", "file:///etc/hostname: only http and https URLs are fetched"),
        ("/round", "more than 3 redirects"),
        ("/broken", "cannot be fetched"),
        ("/slow", "no answer in"),
        ("/endless", "more than 100,000 bytes"),
    ],
)
def test_what_is_not_fetched(
    site: str, path: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_fetch, "MAX_BYTES", 100_000)
    if path == "/slow":
        monkeypatch.setattr(picture_fetch, "TIMEOUT_S", 0.5)
    with pytest.raises(DataError, match=reason):
        open_image(site + path)


def test_private_addresses_are_not_reached_unless_allowed(site: str) -> None:
    port = site.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1"):
        with pytest.raises(DataError, match=r"private network.*private-url allows it"):
            open_image(f"http://{host}:{port}/red.png")


def test_files_are_only_reached_where_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a red.png"
    path.write_bytes(png())
    with pytest.raises(DataError, match="file-url allows it"):
        open_image(path.as_uri())
    monkeypatch.setenv(SOURCES_VARIABLE, "file-url")
    assert open_image(path.as_uri()).size == (8, 6)
    with pytest.raises(DataError, match=r"absent\.png does not exist"):
        open_image((tmp_path / "absent.png").as_uri())
    with pytest.raises(DataError, match="with path allows it"):
        open_image(str(path))
    with pytest.raises(DataError, match="with url allows it"):
        open_image("https://127.0.0.1/a.png")
    monkeypatch.setenv(SOURCES_VARIABLE, "path, urls")
    with pytest.raises(ConfigError, match="'urls' is none of path, url"):
        open_image(str(path))


def test_a_file_longer_than_an_image_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_fetch, "MAX_BYTES", 1_000)
    (tmp_path / "long.png").write_bytes(bytes(2_000))
    with pytest.raises(DataError, match="more than 1,000 bytes"):
        open_image(tmp_path / "long.png")
