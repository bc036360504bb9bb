"""Copies of files that are to be delivered, since the files may change before."""

from __future__ import annotations

import shutil
from pathlib import Path


class Copies:
    """A folder of copies, each in a folder of its own, so that it keeps its name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, source: Path) -> Path:
        """Copies a file.

        Raises:
            OSError: it cannot be copied; no part of it stays behind.
        """
        self._folder.mkdir(exist_ok=True)
        numbers = [int(path.name) for path in self._folder.iterdir() if path.name.isdigit()]
        place = self._folder / f"{max(numbers, default=0) + 1:06d}"
        try:
            place.mkdir()
            shutil.copyfile(source, place / source.name)
        except OSError:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return place / source.name

    def size(self) -> int:
        """Bytes of all copies."""
        return sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())

    def clear(self) -> None:
        """Deletes all copies."""
        if self._folder.is_dir():
            shutil.rmtree(self._folder)
