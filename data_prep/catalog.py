"""The records of all sources of a dataset, in their order, on disk.

The catalog is a cache: it appears by rename when it is complete, its state file says what it was
made from and what its bytes are, and anything that does not fit is made again. Reading one needs
no locks, so it may lie on a shared file system.
"""

import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from data_prep.catalog_build import BLOB_NAME, CatalogBuild, CatalogInput, Progress
from data_prep.errors import DataError
from data_prep.fields import canonical_json
from data_prep.files import file_sha256, temporary_path, write_whole
from data_prep.quarantine import Reason, Rejection

CATALOG_NAME: Final = "catalog.sqlite"
STATE_NAME: Final = "catalog.state"


class Row(NamedTuple):
    """A record of a catalog, with what is needed of it without reading it."""

    source: int
    address: str
    content: bytes


class Catalog:
    """A finished catalog, open for reading."""

    def __init__(self, folder: Path, temporary: tempfile.TemporaryDirectory[str] | None) -> None:
        # Held so that the folder of a catalog that nobody keeps lives as long as it is used.
        self._temporary = temporary
        path = (folder / CATALOG_NAME).absolute()
        self._connection = sqlite3.connect(
            # Immutable: it is never changed under its name, hence needs no locks.
            f"{path.as_uri()}?immutable=1", uri=True, check_same_thread=False
        )  # fmt: skip
        facts = dict(self._connection.execute("SELECT name, value FROM facts"))
        self.records: int = json.loads(facts["records"])
        self.rejected: int = json.loads(facts["rejected"])
        self.by_task: dict[str, int] = json.loads(facts["by_task"])

    def rows(self, first: int, count: int) -> list[Row]:
        """The records at positions first, first + 1 and so on, at most count."""
        found = self._connection.execute(
            "SELECT source, address, content FROM records WHERE number > ? AND number <= ? "
            "ORDER BY number",
            (first, first + count),
        )
        return [Row(*row) for row in found]

    def rejections(self) -> Iterator[Rejection]:
        """What never became a record, ordered by uid, position, reason and detail."""
        for uid, position, reason, detail in self._connection.execute(
            "SELECT uid, position, reason, detail FROM rejections ORDER BY number"
        ):
            yield Rejection(uid=uid, position=position, reason=Reason(reason), detail=detail)

    def close(self) -> None:
        """Lets go of the file."""
        self._connection.close()
        if self._temporary is not None:
            self._temporary.cleanup()


def open_catalog(
    folder: Path, wanted: CatalogInput, *, keep: bool, on_progress: Progress | None = None
) -> Catalog:
    """Opens a dataset's catalog, and makes it first where there is none that fits.

    Args:
        folder: The dataset's folder for what only preparation reads.
        wanted: What the catalog has to be made from.
        keep: Whether a catalog that has to be made is left there for the next run; if not, nothing
            is written to the folder, and images that would be copied are only counted.
        on_progress: Is told how far reading is.

    Raises:
        DataError: An annotation file is unusable, a source has no samples at all, or the catalog
            cannot be written.
    """
    if _fits(folder, wanted):
        return Catalog(folder, None)
    if keep:
        _make(folder, folder, wanted, on_progress)
        return Catalog(folder, None)
    temporary = tempfile.TemporaryDirectory(prefix="prefixworks-catalog-")
    _make(Path(temporary.name), None, wanted, on_progress)
    return Catalog(Path(temporary.name), temporary)


def _fits(folder: Path, wanted: CatalogInput) -> bool:
    try:
        state = json.loads((folder / STATE_NAME).read_bytes())
        return bool(
            state["key"] == wanted.key
            and all((folder / name).stat().st_size == size for name, size in state["blobs"].items())
            and file_sha256(folder / CATALOG_NAME) == state["sha256"]
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, DataError):
        # Missing or damaged in any way: the remedy is the same, make the catalog again.
        return False


def _make(
    folder: Path, blobs: Path | None, wanted: CatalogInput, on_progress: Progress | None
) -> None:
    """Makes a catalog in a folder, and the files of copied images where there is a place."""
    final = folder / CATALOG_NAME
    temporary = temporary_path(final)
    (folder / STATE_NAME).unlink(missing_ok=True)
    try:
        CatalogBuild(temporary, wanted, blobs, on_progress).run()
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        digest = file_sha256(temporary)
        temporary.replace(final)
    except sqlite3.Error as error:
        raise DataError(
            f"{final} cannot be written: {error}; it needs room for the annotations twice, there "
            "and in SQLITE_TMPDIR or TMPDIR"
        ) from error
    except OSError as error:
        raise DataError(f"{final} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    made = {wanted.blob_name(number) for number in range(len(wanted.sources))}
    sizes = {}
    for path in folder.glob(BLOB_NAME.format(key="*")):
        if path.name in made:
            sizes[path.name] = path.stat().st_size
        else:
            path.unlink()
    state = {"key": wanted.key, "sha256": digest, "blobs": dict(sorted(sizes.items()))}
    write_whole(folder / STATE_NAME, canonical_json(state))
