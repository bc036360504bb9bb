"""Pages as a person sees them: headless Chromium gives the page's text and a picture of it."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
_HEADLESS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")


def browser() -> str | None:
    """The path of an installed browser, or None."""
    return next((found for name in _BROWSERS if (found := shutil.which(name))), None)


def screenshots(otherwise: Path) -> Path:
    """Where pictures of pages are kept: PREFIXWORKS_SCREENSHOTS, which the gate sets."""
    folder = Path(os.environ.get("PREFIXWORKS_SCREENSHOTS") or otherwise)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def look(url: str, picture: Path, *, height: int = 1_500) -> str:
    """Opens a page, waits until it has loaded, and returns its document.

    Args:
        url: The page.
        picture: PNG file to write what it looks like into.
        height: Of the window in pixels.
    """
    program = browser()
    assert program is not None
    with tempfile.TemporaryDirectory() as profile:
        command = [program, *_HEADLESS, *_QUIET, f"--user-data-dir={profile}", "--hide-scrollbars"]
        command += [f"--window-size=1600,{height}", "--virtual-time-budget=30000"]
        command += [f"--screenshot={picture}", "--dump-dom", url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@contextmanager
def signed_in(uri: str, user: str, password: str) -> Iterator[str]:
    """A site as someone sees it who has typed name and password, which headless nobody can.

    Yields:
        An address that forwards every request to the site, with the credentials.
    """
    secret = base64.b64encode(f"{user}:{password}".encode()).decode()

    class Forward(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            request = urllib.request.Request(
                f"{uri}{self.path}",
                data=self.rfile.read(length) if length else None,
                method=self.command,
                headers={
                    "Authorization": f"Basic {secret}",
                    "Content-Type": self.headers.get("Content-Type") or "application/json",
                },
            )
            try:
                answer = urllib.request.urlopen(request, timeout=60)
            except urllib.error.HTTPError as error:
                answer = error
            with answer:
                body = answer.read()
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.headers.get("Content-Type") or "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        do_POST = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Forward)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
