"""The index of an archive: which member lies where, kept in a file so that it is made once.

An archive of a million images takes minutes to look through, and every worker needs to know where
its images lie. So the index is a SQLite file in the user's cache folder, found by the archive's
place and state; processes of one machine wait for the one that makes it. Only names, offsets and
sizes are in it, and it can be removed at any time.
"""

import fcntl
import hashlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from data_prep.stores.base import StoreError

_VERSION = 1
_TABLE = """CREATE TABLE members (
    name BLOB PRIMARY KEY, offset INTEGER, size INTEGER, packed INTEGER, method INTEGER,
    crc INTEGER, problem TEXT
) WITHOUT ROWID"""


class Member(NamedTuple):
    """One member of an archive.

    Attributes:
        offset: Where its bytes begin (tar) or its local header stands (zip).
        size: Bytes of its content.
        packed: Bytes that it takes in the archive.
        method: 0 when stored as it is, else the zip method of its compression.
        crc: CRC-32 of the content, or -1 where the archive has none.
        problem: Why it cannot be read, such as 'a link'; empty when it can.
    """

    offset: int
    size: int
    packed: int
    method: int = 0
    crc: int = -1
    problem: str = ""


Scan = Callable[[], Iterable[tuple[str, Member]]]
"""Goes through an archive once and yields the names and places of its members."""


def member_name(name: str) -> bytes | None:
    """A member's name as the index has it; None when no address can ever mean it.

    Such are absolute names and those that lead upwards: they are not followed but forgotten.
    """
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or "\0" in name:
        return None
    kept = "/".join(part for part in name.split("/") if part not in ("", "."))
    return kept.encode("utf-8", "surrogateescape") if kept else None


class MemberIndex:
    """Finds members by name."""

    def __init__(self, connection: sqlite3.Connection, place: str) -> None:
        self._connection = connection
        self._place = place
        self._lock = threading.Lock()

    def find(self, name: str) -> Member | None:
        """The member of a checked name; StoreError when the index is damaged."""
        query = "SELECT offset, size, packed, method, crc, problem FROM members WHERE name = ?"
        row = self._first(query, name.encode())
        return None if row is None else Member(*row)

    def has_folder(self, folder: str) -> bool:
        """Whether any member lies in a folder; StoreError when the index is damaged."""
        query = "SELECT 1 FROM members WHERE name >= ? AND name < ? LIMIT 1"
        # '0' is the character after '/'.
        return self._first(query, f"{folder}/".encode(), f"{folder}0".encode()) is not None

    def _first(self, query: str, *values: bytes) -> tuple[Any, ...] | None:
        try:
            with self._lock:
                row: tuple[Any, ...] | None = self._connection.execute(query, values).fetchone()
        except sqlite3.Error as error:
            raise StoreError(f"{self._place} is damaged ({error}): remove it") from error
        return row


def cache_folder() -> Path:
    """Where indexes are kept: $PREFIXWORKS_CACHE, else prefixworks in the user's cache folder."""
    own = os.environ.get("PREFIXWORKS_CACHE")
    if own:
        return Path(own, "archives")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "prefixworks", "archives")


def open_index(name: str, state: str, scan: Scan) -> MemberIndex:
    """Opens the index of an archive, making it first when this machine has none.

    Args:
        name: Where the archive lies.
        state: State of the archive; another state is another index.
        scan: Gives the members in the archive's order, called only when the index is made. Of
            equal names the last one counts, as it would after unpacking.

    Raises:
        StoreError: The archive is damaged, or cannot be read to its end.
    """
    key = hashlib.sha256(f"{_VERSION}\0{name}\0{state}".encode()).hexdigest()
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"{key}.sqlite"
        with _locked(path.with_suffix(".lock")):
            if not _usable(path):
                _write(path, scan)
            return MemberIndex(_opened(path), str(path))
    except (OSError, sqlite3.OperationalError):
        # No cache folder can be written here (read-only home, full disk): each process its own.
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        _fill(connection, scan)
        return MemberIndex(connection, f"the index of {name}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _opened(path: Path) -> sqlite3.Connection:
    uri = f"file:{quote(str(path))}?mode=ro&immutable=1"
    return sqlite3.connect(uri, uri=True, check_same_thread=False)


def _usable(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        connection = _opened(path)
        try:
            connection.execute("SELECT name FROM members LIMIT 1").fetchone()
        finally:
            connection.close()
    except sqlite3.DatabaseError:
        return False
    return True


def _write(path: Path, scan: Scan) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    try:
        connection = sqlite3.connect(temporary)
        try:
            # A crash loses the temporary file and nothing else, so nothing has to be synced.
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            _fill(connection, scan)
        finally:
            connection.close()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _fill(connection: sqlite3.Connection, scan: Scan) -> None:
    connection.execute(_TABLE)
    named = ((member_name(name), member) for name, member in scan())
    connection.executemany(
        "INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?, ?, ?, ?)",
        ((name, *member) for name, member in named if name is not None),
    )
    connection.commit()
