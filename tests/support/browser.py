"""Pages as a person sees them: headless Chromium gives the page's text and a picture of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
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
