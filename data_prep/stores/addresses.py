"""Addresses of images: a name, or a range of a file as '<file>@<offset>+<length>[;base64]'.

Images often lie inside a bigger file: a TSV with base64 columns, a table, a WebDataset tar. A range
reaches them in any store without a store of their own. A file whose own name ends like a range
cannot be read by that name.
"""

import base64
import binascii
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from data_prep.quarantine import Reason, Rejected
from data_prep.stores.base import MAX_IMAGE_BYTES, MISSING, Stamp, check_size, checked_name

_RANGE = re.compile(
    r"(?P<name>.+)@(?P<offset>[0-9]{1,18})\+(?P<length>[0-9]{1,18})(?P<base64>;base64)?",
    re.DOTALL,
)
_URL_ALPHABET = bytes.maketrans(b"-_", b"+/")


class Address(NamedTuple):
    """Where an image lies: a whole file when length is None, else a range of it in bytes."""

    name: str
    offset: int = 0
    length: int | None = None
    base64: bool = False


def parse_address(address: str) -> Address:
    """Takes an address apart; Rejected when its name leads out of the store."""
    found = _RANGE.fullmatch(address)
    if found is None:
        return Address(checked_name(address))
    return Address(
        checked_name(found["name"]),
        int(found["offset"]),
        int(found["length"]),
        found["base64"] is not None,
    )


def range_address(name: str, offset: int, length: int, *, base64: bool = False) -> str:
    """The address of length bytes at offset of a file, which are an image or its base64 text."""
    return f"{name}@{offset}+{length}{';base64' if base64 else ''}"


def range_length(address: str) -> int:
    """Bytes of a range in its file, as its address says; 0 for a whole file."""
    found = _RANGE.fullmatch(address)
    return 0 if found is None else int(found["length"])


def check_range(address: Address, size: int) -> int:
    """The length of a range; Rejected when it ends behind the file's size bytes or is too long."""
    length = address.length or 0
    check_size(address.name, length)
    if address.offset + length > size:
        raise Rejected(
            Reason.UNREADABLE_IMAGE,
            f"{address.name}: bytes {address.offset}+{length} end behind the file's {size}",
        )
    return length


class AddressedStore(ABC):
    """The grammar of addresses over a store that knows only files."""

    @abstractmethod
    def read_file(self, name: str) -> bytes:
        """A whole file by its checked name; errors as in ImageStore.read."""

    @abstractmethod
    def read_range(self, address: Address) -> bytes:
        """A range of a file, checked with check_range; errors as in ImageStore.read."""

    @abstractmethod
    def file_stamps(self, names: Sequence[str]) -> list[Stamp]:
        """Stamps of files by their checked and distinct names; errors as in ImageStore.stamps."""

    def read(self, address: str) -> bytes:
        """See ImageStore.read."""
        parsed = parse_address(address)
        if parsed.length is None:
            return self.read_file(parsed.name)
        content = self.read_range(parsed)
        return decoded(parsed.name, content) if parsed.base64 else content

    def stamps(self, addresses: Sequence[str]) -> list[Stamp]:
        """See ImageStore.stamps; each file is looked at once, however many ranges it holds."""
        parsed = [_parsed_or_none(address) for address in addresses]
        names = list(dict.fromkeys(address.name for address in parsed if address is not None))
        files = dict(zip(names, self.file_stamps(names), strict=True))
        return [MISSING if one is None else _stamp(one, files[one.name]) for one in parsed]


def _parsed_or_none(address: str) -> Address | None:
    try:
        return parse_address(address)
    except Rejected:
        return None  # reading it says what is wrong


def _stamp(address: Address, file: Stamp) -> Stamp:
    if address.length is None or file == MISSING:
        return file
    return Stamp(address.length, f"{file.bytes}:{file.state}")


def decoded(name: str, text: bytes) -> bytes:
    """Decodes base64 in either of its alphabets; Rejected when it is something else."""
    compact = text.translate(_URL_ALPHABET, delete=b" \t\r\n").rstrip(b"=")
    try:
        content = base64.b64decode(compact + b"=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Rejected(Reason.UNREADABLE_IMAGE, f"{name}: not base64: {error}") from error
    assert len(content) <= MAX_IMAGE_BYTES  # the text was bounded, and this is shorter
    return content
