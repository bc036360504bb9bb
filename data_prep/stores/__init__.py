"""Where image bytes come from."""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

from data_prep.errors import DataError
from data_prep.quarantine import Reason, Rejected


class StoreError(DataError):
    """A store that cannot be reached at all: no image in it can be judged."""


class Stamp(NamedTuple):
    """Size in bytes and state of an image; (-1, "") for one that is missing."""

    bytes: int
    state: str


class ImageStore(Protocol):
    """Images by address."""

    def read(self, address: str) -> bytes:
        """The bytes of an image; Rejected for a bad one, StoreError when the store is gone."""
        ...

    def stamps(self, addresses: Sequence[str]) -> list[Stamp]:
        """Size and state of each image; (-1, "") for what is missing."""
        ...


class FolderStore:
    """Image files below a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def read(self, address: str) -> bytes:
        """The bytes of an image file; Rejected when it cannot be read."""
        path = image_path(str(self._folder), address)
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            if not self._folder.is_dir():
                raise StoreError(f"{self._folder}: no such folder of images") from error
            raise Rejected(Reason.MISSING_IMAGE, f"{address}: no such file") from error
        except (OSError, ValueError) as error:
            words = (
                os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
            )
            raise Rejected(Reason.UNREADABLE_IMAGE, f"{address}: {words}") from error

    def stamps(self, addresses: Sequence[str]) -> list[Stamp]:
        """Size and time of each image file."""
        return [self._stamp(address) for address in addresses]

    def _stamp(self, address: str) -> Stamp:
        try:
            found = image_path(str(self._folder), address).stat()
        except (OSError, ValueError, Rejected):
            # Whoever reads the image says what is wrong; here it only must not look present.
            return Stamp(-1, "")
        return Stamp(found.st_size, str(found.st_mtime_ns))


def image_path(images: str, name: str) -> Path:
    """The file of an image; Rejected when its name leads out of the folder of images."""
    parts = name.replace("\\", "/").split("/")
    if not name or name.startswith("/") or ".." in parts or "\0" in name:
        raise Rejected(Reason.BAD_IMAGE_NAME, f"{name!r:.80} is not a name inside the folder")
    return Path(images, name)


@lru_cache(maxsize=64)
def open_store(location: str) -> ImageStore:
    """The store at a location."""
    return FolderStore(location)
