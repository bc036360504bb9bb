"""Where image bytes and annotation files come from: folders of this machine, and ranges of files.

An address is the name of a file below a store's location, or a range of one:
`<file>@<offset>+<length>`, followed by `;base64` when the range holds base64 text.
"""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from data_prep.errors import DataError
from data_prep.quarantine import Reason, Rejected

_RANGE = re.compile(r"(?P<file>.+)@(?P<offset>[0-9]+)\+(?P<length>[0-9]+)(?P<base64>;base64)?")


class StoreError(DataError):
    """The store itself cannot be reached; every image would be rejected wrongly."""


class Stamp(NamedTuple):
    """Size of an image and a text that changes when it changes; (-1, '') for what is missing."""

    bytes: int
    state: str


class ImageStore(Protocol):
    """Gives the bytes of images by address."""

    def read(self, address: str) -> bytes:
        """The bytes at an address; Rejected when this one image cannot be had."""

    def stamps(self, addresses: Sequence[str]) -> list[Stamp]:
        """Size and state of images, in the order of their addresses."""


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, address: str) -> bytes:
        found = _RANGE.fullmatch(address)
        name = found["file"] if found else address
        path = self._path(name)
        try:
            if not found:
                return path.read_bytes()
            with path.open("rb") as file:
                content = os.pread(file.fileno(), int(found["length"]), int(found["offset"]))
            # OFA reads both of the usual alphabets.
            plain = content.replace(b"-", b"+").replace(b"_", b"/")
            return base64.b64decode(plain, validate=True) if found["base64"] else content
        except FileNotFoundError as error:
            raise Rejected(Reason.MISSING_IMAGE, f"{name}: no such file") from error
        except (OSError, ValueError, OverflowError, binascii.Error) as error:
            words = (
                os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
            )
            raise Rejected(Reason.UNREADABLE_IMAGE, f"{name}: {words}") from error

    def stamps(self, addresses: Sequence[str]) -> list[Stamp]:
        return [self._stamp(address) for address in addresses]

    def _stamp(self, address: str) -> Stamp:
        found = _RANGE.fullmatch(address)
        try:
            status = self._path(found["file"] if found else address).stat()
        except (OSError, ValueError, Rejected):
            return Stamp(-1, "")
        size = int(found["length"]) if found else status.st_size
        return Stamp(size, str(status.st_mtime_ns))

    def _path(self, name: str) -> Path:
        parts = name.replace("\\", "/").split("/")
        if not name or name.startswith("/") or ".." in parts or "\0" in name:
            raise Rejected(Reason.BAD_IMAGE_NAME, f"{name!r:.80} is not a name inside the folder")
        return self._folder / name


@lru_cache(maxsize=64)
def open_store(location: str) -> ImageStore:
    """The store at a location; DataError when there is none."""
    if not Path(location).is_dir():
        raise DataError(f"{location}: no such folder of images")
    return _Folder(Path(location))


def open_input(location: str) -> BinaryIO:
    """Opens an annotation file for reading; DataError when it cannot be."""
    try:
        return Path(location).open("rb")
    except OSError as error:
        raise DataError(f"{location} cannot be read: {error.strerror}") from error


def input_sha256(location: str) -> str:
    """SHA-256 of an annotation file as hex."""
    with open_input(location) as file:
        try:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
        except OSError as error:
            raise DataError(f"{location} cannot be read: {error.strerror}") from error


def input_name(location: str) -> str:
    """Name of an annotation file without the folders of this machine."""
    return Path(location).name
