"""Images as files in a folder.

Links are followed as long as they stay inside the folder, which itself may be one. A link that
leads out is refused, since a folder may be unpacked from an archive of a stranger; whoever links
images one by one from elsewhere says so in the location: 'file:///data/images?links=follow'.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from data_prep.files import file_state
from data_prep.quarantine import Reason, Rejected
from data_prep.stores.addresses import Address, AddressedStore, check_range
from data_prep.stores.base import MISSING, Stamp, StoreError, check_size


class FolderStore(AddressedStore):
    """The files under one folder."""

    def __init__(self, folder: Path, *, follow_links: bool = False) -> None:
        """Takes the folder.

        Args:
            folder: Where the files lie.
            follow_links: Links may lead out of the folder.

        Raises:
            StoreError: There is no such folder.
        """
        if not folder.is_dir():
            raise StoreError(f"{folder}: no such folder of images")
        self._folder = str(folder)
        self._real = os.path.realpath(folder)
        self._follow_links = follow_links

    def read_file(self, name: str) -> bytes:
        """See ImageStore.read."""
        return self._read(Address(name))

    def read_range(self, address: Address) -> bytes:
        """See ImageStore.read."""
        return self._read(address)

    def file_stamps(self, names: Sequence[str]) -> list[Stamp]:
        """See ImageStore.stamps."""
        return [self._file_stamp(name) for name in names]

    def _file_stamp(self, name: str) -> Stamp:
        try:
            found = Path(self._path(name)).stat()
        except (OSError, ValueError, Rejected):
            return MISSING
        return Stamp(found.st_size, file_state(found)) if stat.S_ISREG(found.st_mode) else MISSING

    def _path(self, name: str) -> str:
        path = f"{self._folder}/{name}"
        if not self._follow_links and self._has_link(name):
            real = os.path.realpath(path)
            if os.path.commonpath([real, self._real]) != self._real:
                raise Rejected(
                    Reason.BAD_IMAGE_NAME,
                    f"{name}: a link that leads out of the folder; "
                    "to follow it give the folder as file:///...?links=follow",
                )
        return path

    def _has_link(self, name: str) -> bool:
        path = self._folder
        for part in name.split("/"):
            path = f"{path}/{part}"
            if Path(path).is_symlink():
                return True
        return False

    def _read(self, address: Address) -> bytes:
        name = address.name
        try:
            # Without O_NONBLOCK a pipe that nobody writes to would hold the worker for ever.
            descriptor = os.open(self._path(name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise Rejected(Reason.UNREADABLE_IMAGE, f"{name}: not a regular file")
                if address.length is None:
                    length = found.st_size
                    check_size(name, length)
                else:
                    length = check_range(address, found.st_size)
                    file.seek(address.offset)
                return file.read(length)
        except (FileNotFoundError, NotADirectoryError) as error:
            if not Path(self._folder).is_dir():
                raise StoreError(f"{self._folder}: no such folder of images any more") from error
            raise Rejected(Reason.MISSING_IMAGE, f"{name}: no such file") from error
        except (OSError, ValueError) as error:
            words = (isinstance(error, OSError) and error.strerror) or error
            raise Rejected(Reason.UNREADABLE_IMAGE, f"{name}: {words}") from error
