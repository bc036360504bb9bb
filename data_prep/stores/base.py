"""What every store of images offers, and the bounds that hold in all of them.

A store finds bytes by an address that came out of an annotation file, so addresses are never
trusted: a name stays inside its location, and one image has a largest size.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from data_prep.errors import DataError
from data_prep.quarantine import Reason, Rejected

MAX_IMAGE_BYTES = 256 * 2**20
"""More than this is never read for one image: the largest images that ImagePolicy lets through
are smaller even without compression."""


class StoreError(DataError):
    """The store itself cannot be used: unreachable, refused, or damaged as a whole.

    It stops a preparation, since every image would be rejected for a fault that is not its own.
    """


class Stamp(NamedTuple):
    """What tells an unchanged image from a changed one without reading it.

    Attributes:
        bytes: Stored bytes of the image; -1 when it is missing.
        state: Changes when the bytes do; empty when the image is missing.
    """

    bytes: int
    state: str


MISSING = Stamp(-1, "")


class ImageStore(Protocol):
    """A place that holds the bytes of images."""

    def read(self, address: str) -> bytes:
        """The bytes of one image.

        Args:
            address: Name in the store, or a range of a file in it (see data_prep.stores.addresses).

        Raises:
            Rejected: This image is missing, unreadable, or its name leads out of the store.
            StoreError: The store cannot be used.
        """
        ...

    def stamps(self, addresses: Sequence[str]) -> list[Stamp]:
        """Stamps of many images, in their order; MISSING for those that cannot be looked at.

        Raises:
            StoreError: The store cannot be used.
        """
        ...


def checked_name(name: str) -> str:
    """A name in its one canonical form: '/' between its parts, without '.' and empty parts.

    Raises:
        Rejected: The name is empty, absolute, leads upwards, or no file can be called so.
    """
    parts = name.replace("\\", "/").split("/")
    if not name or name.startswith(("/", "\\")) or ".." in parts or "\0" in name:
        raise Rejected(Reason.BAD_IMAGE_NAME, f"{name!r:.80} is not a name inside the folder")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise Rejected(Reason.BAD_IMAGE_NAME, f"{name!r:.80} is not valid Unicode") from error
    kept = "/".join(part for part in name.split("/") if part not in ("", "."))
    if not kept:
        raise Rejected(Reason.BAD_IMAGE_NAME, f"{name!r:.80} names no file")
    return kept


def check_size(name: str, size: int) -> None:
    """Rejected when more bytes would be read than one image may have."""
    if size > MAX_IMAGE_BYTES:
        raise Rejected(
            Reason.UNREADABLE_IMAGE, f"{name}: {size} bytes, an image may have {MAX_IMAGE_BYTES}"
        )
