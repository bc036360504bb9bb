"""Images as objects of an object store, and any object as a file of which ranges can be read."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.fs

from data_prep.quarantine import Reason, Rejected
from data_prep.stores.addresses import Address, AddressedStore, check_range
from data_prep.stores.base import MISSING, Stamp, StoreError, check_size
from data_prep.stores.filesystems import IO_THREADS
from data_prep.stores.retries import Retries

OPEN_FILES = 64
"""Files that stay open for further ranges: each open costs a request."""


class RemoteFile:
    """An object of which ranges are read; see RangedFile."""

    window = 4 * 2**20

    def __init__(self, filesystem: Any, path: str, name: str, retries: Retries) -> None:
        """Opens it.

        Args:
            filesystem: An Arrow filesystem.
            path: 'bucket/key'.
            name: The object as error messages call it.
            retries: How failures are repeated.

        Raises:
            FileNotFoundError: There is no such object.
            StoreError: The store cannot be used.
        """
        self.name = name
        self._retries = retries
        info = retries.run(name, lambda: filesystem.get_file_info(path))
        if info.type != pa.fs.FileType.File:
            raise FileNotFoundError(name)
        self.size: int = info.size
        self._file = retries.run(name, lambda: filesystem.open_input_file(path))
        # A tag of the content where the store has one: times there are whole seconds.
        tag = (self._file.metadata() or {}).get(b"ETag", b"")
        self.state = f"{object_state(info)}:{tag.decode()}"

    def read_at(self, offset: int, length: int) -> bytes:
        """See RangedFile."""
        try:
            content: bytes = self._retries.run(
                self.name, lambda: self._whole(self._file.read_at(length, offset), length)
            )
        except FileNotFoundError as error:
            raise StoreError(f"{self.name} was removed while it was read") from error
        return content

    def _whole(self, content: bytes, length: int) -> bytes:
        if len(content) != length:
            # A connection that ends early looks like this; it is worth another attempt.
            raise OSError(f"{len(content)} of {length} bytes came")
        return content


def object_state(info: Any) -> str:
    """What stands for the content of an object: its time of change and its size."""
    return f"{info.mtime_ns}:{info.size}"


class ObjectStore(AddressedStore):
    """The objects under one prefix of a bucket."""

    def __init__(self, filesystem: Any, path: str, name: str, retries: Retries) -> None:
        """Checks that the prefix is there.

        Args:
            filesystem: An Arrow filesystem.
            path: 'bucket/prefix'.
            name: The store as error messages call it.
            retries: How failures are repeated.

        Raises:
            StoreError: The store cannot be used, or has nothing under the prefix: then every
                image would be missing.
        """
        self._filesystem = filesystem
        self._path = path
        self._name = name
        self._retries = retries
        self._open: OrderedDict[str, RemoteFile] = OrderedDict()
        self._lock = threading.Lock()
        try:
            kind = retries.run(name, lambda: filesystem.get_file_info(path)).type
        except FileNotFoundError:
            kind = pa.fs.FileType.NotFound
        if kind == pa.fs.FileType.NotFound:
            raise StoreError(f"{name}: there is nothing; check the bucket and the path")
        if kind == pa.fs.FileType.File:
            raise StoreError(f"{name} is an object; expected a folder of images, a .tar or a .zip")

    def read_file(self, name: str) -> bytes:
        """See ImageStore.read."""

        def fetch() -> bytes:
            with self._filesystem.open_input_file(f"{self._path}/{name}") as file:
                size = file.size()
                check_size(name, size)
                content: bytes = file.read_at(size, 0)
            if len(content) != size:
                raise OSError(f"{len(content)} of {size} bytes came")
            return content

        try:
            return self._retries.run(self._name, fetch)
        except FileNotFoundError as error:
            raise Rejected(Reason.MISSING_IMAGE, f"{name}: no such object") from error

    def read_range(self, address: Address) -> bytes:
        """See ImageStore.read."""
        file = self._ranged(address.name)
        return file.read_at(address.offset, check_range(address, file.size))

    def _ranged(self, name: str) -> RemoteFile:
        with self._lock:
            if name in self._open:
                self._open.move_to_end(name)
                return self._open[name]
        path = f"{self._path}/{name}"
        try:
            file = RemoteFile(self._filesystem, path, f"{self._name}: {name}", self._retries)
        except FileNotFoundError as error:
            raise Rejected(Reason.MISSING_IMAGE, f"{name}: no such object") from error
        with self._lock:
            self._open[name] = file
            while len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        return file

    def file_stamps(self, names: Sequence[str]) -> list[Stamp]:
        """See ImageStore.stamps; many objects are asked for at once."""
        if not names:
            return []
        with ThreadPoolExecutor(min(IO_THREADS, len(names))) as pool:
            return list(pool.map(self._file_stamp, names))

    def _file_stamp(self, name: str) -> Stamp:
        path = f"{self._path}/{name}"
        try:
            info = self._retries.run(self._name, lambda: self._filesystem.get_file_info(path))
        except FileNotFoundError:
            return MISSING
        if info.type != pa.fs.FileType.File:
            return MISSING
        return Stamp(info.size, object_state(info))
