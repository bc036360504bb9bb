"""Images as members of a tar or a zip, on disk or in an object store; nothing is unpacked."""

from collections.abc import Sequence
from functools import partial

from data_prep.quarantine import Reason, Rejected
from data_prep.stores.addresses import Address, AddressedStore, check_range
from data_prep.stores.base import MISSING, Stamp, StoreError, check_size
from data_prep.stores.members import Member, open_index
from data_prep.stores.ranged import RangedFile
from data_prep.stores.tar import scan_tar
from data_prep.stores.zip import read_member, scan_zip


class ArchiveStore(AddressedStore):
    """The regular files of one archive, or of one folder in it."""

    def __init__(self, file: RangedFile, folder: str = "") -> None:
        """Opens the archive's index, making it when there is none yet.

        Args:
            file: The archive; its name ends in .tar or .zip.
            folder: Folder inside it that names are relative to.

        Raises:
            StoreError: The archive is damaged or cannot be read.
        """
        self._file = file
        self._prefix = f"{folder}/" if folder else ""
        self._zip = file.name.lower().endswith(".zip")
        scan = scan_zip if self._zip else scan_tar
        self._index = open_index(file.name, file.state, partial(scan, file))
        if folder and not self._index.has_folder(folder):
            raise StoreError(f"{file.name} has nothing in a folder {folder!r}")

    def read_file(self, name: str) -> bytes:
        """See ImageStore.read."""
        member = self._member(name)
        check_size(name, member.size)
        if self._zip:
            return read_member(self._file, self._prefix + name, member)
        return self._file.read_at(member.offset, member.size)

    def read_range(self, address: Address) -> bytes:
        """See ImageStore.read; of a zip, the whole member is read."""
        member = self._member(address.name)
        length = check_range(address, member.size)
        if self._zip:
            content = self.read_file(address.name)
            return content[address.offset : address.offset + length]
        return self._file.read_at(member.offset + address.offset, length)

    def file_stamps(self, names: Sequence[str]) -> list[Stamp]:
        """See ImageStore.stamps; a changed archive changes the stamps of all that is in it."""
        return [self._file_stamp(name) for name in names]

    def _file_stamp(self, name: str) -> Stamp:
        member = self._index.find(self._prefix + name)
        if member is None or member.problem:
            return MISSING
        return Stamp(member.size, f"{self._file.state}:{member.offset}")

    def _member(self, name: str) -> Member:
        member = self._index.find(self._prefix + name)
        if member is None:
            raise Rejected(Reason.MISSING_IMAGE, f"{name}: not in the archive")
        if member.problem:
            raise Rejected(Reason.UNREADABLE_IMAGE, f"{name}: {member.problem}")
        return member
