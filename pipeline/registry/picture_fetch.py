"""Images behind URLs, fetched for a service that anybody may send URLs to.

What a stranger may ask a server to fetch is bounded: http and https only, a few redirects, a whole
answer within seconds, at most so many bytes, and no address of the server's own network, which the
stranger could not reach otherwise. The address that was checked is the one that is connected to.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from pipeline.errors import DataError
from pipeline.registry.picture_sources import ImageSources

MAX_BYTES = 32 * 1024 * 1024
"""Longest answer that is read."""
TIMEOUT_S = 20.0
"""Longest that one image may take, redirects included."""
_MAX_REDIRECTS = 3
_CHUNK = 1 << 16


def fetch(url: str, sources: ImageSources) -> bytes:
    """Fetches the file behind a URL.

    Args:
        url: `http://`, `https://` or, where allowed, `file://`.
        sources: What may be fetched.

    Raises:
        DataError: the URL is of a kind that is not allowed, leads to a private address, does not
            answer with a file in time, or the file is too long.
    """
    if urlsplit(url).scheme == "file":
        return _local(url, sources)
    guard = _Guard(url)
    try:
        for _ in range(_MAX_REDIRECTS + 1):
            answer = _get(url, sources, guard)
            if isinstance(answer, bytes):
                return answer
            url = urljoin(url, answer)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = f"no answer in {TIMEOUT_S:.0f} s" if guard.expired else error
        raise DataError(f"{url:.200} cannot be fetched: {reason}") from error
    finally:
        guard.cancel()
    raise DataError(f"{url:.200} cannot be fetched: more than {_MAX_REDIRECTS} redirects")


class _Guard:
    """Cuts the connection when the time is over: timeouts of a socket begin anew with each byte."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.expired = False
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(TIMEOUT_S, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, connected: socket.socket) -> None:
        self._socket = connected
        if self.expired:
            raise TimeoutError

    def cancel(self) -> None:
        self._timer.cancel()

    def _expire(self) -> None:
        self.expired = True
        if self._socket is not None:
            with suppress(OSError):  # it ended by itself
                self._socket.shutdown(socket.SHUT_RDWR)


def _local(url: str, sources: ImageSources) -> bytes:
    if not sources.file_urls:
        raise DataError(f"{url:.200}: {sources.refusal('file-url')}")
    path = Path(unquote(urlsplit(url).path))
    if not path.is_file():
        raise DataError(f"image {url:.200} does not exist")
    return read_bounded(path)


def read_bounded(path: Path) -> bytes:
    """Reads an image file, unless it is longer than one can be.

    Raises:
        DataError: it is too long, or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"image {path} cannot be read: {error}") from error
    if len(content) > MAX_BYTES:
        raise DataError(f"image {path} has more than {MAX_BYTES:,} bytes")
    return content


def _get(url: str, sources: ImageSources, guard: _Guard) -> bytes | str:
    """One request: the body, or where it is to be found instead."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DataError(f"{url:.200}: only http and https URLs are fetched")
    if not sources.urls:
        raise DataError(f"{url:.200}: {sources.refusal('url')}")
    connection = _connection(parts, sources, guard)
    try:
        path = parts.path or "/"
        connection.request("GET", f"{path}?{parts.query}" if parts.query else path)
        with connection.getresponse() as answer:
            if answer.status in (301, 302, 303, 307, 308) and answer.getheader("Location"):
                return str(answer.getheader("Location"))
            if answer.status != 200:
                raise DataError(f"{url:.200} cannot be fetched: status {answer.status}")
            return _body(answer, url, guard)
    finally:
        connection.close()


def _body(answer: http.client.HTTPResponse, url: str, guard: _Guard) -> bytes:
    content = bytearray()
    while chunk := answer.read1(_CHUNK):
        content += chunk
        if len(content) > MAX_BYTES:
            raise DataError(f"{url:.200} has more than {MAX_BYTES:,} bytes: too many for an image")
    # A cut connection ends like a whole answer does, where the server named no length.
    if guard.expired or answer.length:
        raise TimeoutError("the answer broke off")
    return bytes(content)


def _connection(
    parts: SplitResult, sources: ImageSources, guard: _Guard
) -> http.client.HTTPConnection:
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    # Connected here, to the address that was checked: a second look-up may give another one.
    connected = socket.create_connection((_address(host, port, sources), port), timeout=TIMEOUT_S)
    guard.watch(connected)
    if not secure:
        connection = http.client.HTTPConnection(host, port)
        connection.sock = connected
        return connection
    wrapped = ssl.create_default_context().wrap_socket(
        connected, server_hostname=host, do_handshake_on_connect=False
    )
    guard.watch(wrapped)
    wrapped.do_handshake()
    connection = http.client.HTTPSConnection(host, port)
    connection.sock = wrapped
    return connection


def _address(host: str, port: int, sources: ImageSources) -> str:
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in found:
        if not sources.private_urls and not ipaddress.ip_address(address).is_global:
            raise DataError(
                f"{host} is {address}, an address of a private network:"
                f" {sources.refusal('private-url')}"
            )
    return found[0]
