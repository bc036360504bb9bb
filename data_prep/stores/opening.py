"""From a location to its store, which a process opens once."""

import threading
from pathlib import Path

from data_prep.files import file_state
from data_prep.stores.archive import ArchiveStore
from data_prep.stores.base import ImageStore
from data_prep.stores.filesystems import open_filesystem
from data_prep.stores.folder import FolderStore
from data_prep.stores.inputs import open_ranged
from data_prep.stores.locations import Location, parse_location, split_archive
from data_prep.stores.ranged import LocalFile
from data_prep.stores.remote import ObjectStore
from data_prep.stores.retries import Retries

_opened: dict[tuple[str, str], ImageStore] = {}
_lock = threading.Lock()


def open_store(location: str) -> ImageStore:
    """Opens the store at a location, or gives the one that this process has open.

    Args:
        location: A folder, a .tar, a .zip (also with a folder inside it behind the name), or the
            same in an object store: s3://bucket/path, gs://bucket/path, hf://datasets/owner/name.

    Raises:
        DataError: The location makes no sense.
        StoreError: The store is missing, damaged, or cannot be reached.
    """
    parsed = parse_location(location)
    archive = split_archive(parsed)
    key = (location, "" if archive is None else _archive_state(parsed, archive[0]))
    with _lock:
        if key not in _opened:
            _opened[key] = _open(location, parsed, archive)
        return _opened[key]


def close_stores() -> None:
    """Forgets the open stores, so that the next use looks at everything anew."""
    with _lock:
        _opened.clear()


def _archive_state(location: Location, path: str) -> str:
    """An archive on disk may be replaced between two uses; asking costs next to nothing there."""
    if location.remote:
        return ""
    try:
        return file_state(Path(path).stat())
    except OSError:
        return ""


def _open(location: str, parsed: Location, archive: tuple[str, str] | None) -> ImageStore:
    if archive is not None:
        path, folder = archive
        if not parsed.remote:
            return ArchiveStore(LocalFile(Path(path).absolute()), folder)
        query = location.partition("?")[2]
        uri = f"{parsed.scheme}://{path}" + (f"?{query}" if query else "")
        return ArchiveStore(open_ranged(uri, Retries()), folder)
    if not parsed.remote:
        links = parsed.options.get("links") == "follow"
        return FolderStore(Path(parsed.path), follow_links=links)
    retries = Retries()
    name = f"{parsed.scheme}://{parsed.path}"
    return ObjectStore(open_filesystem(parsed, retries), parsed.path, name, retries)
