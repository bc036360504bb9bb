"""Tables of Parquet and Arrow (IPC files and streams, Feather): one sample a row.

The image column holds names of files below `images`, or the bytes themselves, plain or as the
struct of `bytes` and `path` that the `datasets` library writes. Bytes in a table cannot be reached
at random: a row group has to be read and unpacked for one of its images. So they are copied, once
and in order, into a file beside the catalog, where each distinct image is a range of bytes. That
costs the disk space of the images once more until the dataset folder's `.ledger` is removed.

Parquet is read in small batches. Arrow's formats are read a record batch at a time, so a file that
was written as one batch needs memory for all of it.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from data_prep.config import SourceConfig
from data_prep.errors import DataError
from data_prep.quarantine import Reason, Rejected
from data_prep.readers.base import (
    ReadItem,
    SourceRecord,
    Workspace,
    guarded,
    identity_of,
    place,
    shown,
)
from data_prep.readers.blob import Blob
from data_prep.readers.inputs import input_files, opened
from data_prep.readers.rows import RowImage, row_record
from data_prep.readers.scratch import Scratch
from data_prep.roles import OPTIONAL_ROLES, roles_of

BATCH_ROWS = 64
_BUFFER_BYTES = 1 << 20
_PARQUET_MAGIC, _FILE_MAGIC = b"PAR1", b"ARROW1"


def read(config: SourceConfig, work: Workspace) -> Iterator[ReadItem]:
    """Yields a sample for every row of every table."""
    task = str(config.task)
    with ExitStack() as stack:
        blob = None
        if config.images is None:
            scratch = stack.enter_context(Scratch(work.folder))
            blob = stack.enter_context(Blob(work, scratch))
        for path in input_files(str(config.annotations)):
            for number, row in _rows(path, config):
                where = place(path, f"row {number}")
                identity = identity_of(row.get("uid")) or f"row {number}"
                uid = f"{config.source_name}/{config.split}/{identity}"
                yield guarded(uid, where, partial(_record, task, uid, where, row, blob))


def _rows(path: str, config: SourceConfig) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and values by role of every row."""
    number = 0
    with opened(path) as file:
        try:
            schema, batches = _open(file, path)
            columns = _columns(schema, config, path)
            for batch in batches(list(columns.values())):
                taken = [_sound(batch.column(name)) for name in columns.values()]
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    lists = [_plain(column.slice(start, BATCH_ROWS)) for column in taken]
                    for values in zip(*lists, strict=True):
                        yield number, dict(zip(columns, values, strict=True))
                        number += 1
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            # A damaged length asks for more memory than there is.
            words = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{path} is not a usable table: {words:.200}") from error


def _sound(column: pa.Array) -> pa.Array:
    """A column whose offsets stay inside it: Arrow's formats are mapped, not decoded."""
    # Bytes that are no UTF-8 spoil their own row only, hence are not looked for here.
    (column.view(pa.binary()) if column.type == pa.string() else column).validate(full=True)
    return column


def _plain(column: pa.Array) -> list[Any]:
    """Values of a column; a text that is none stays bytes, so that only its row is rejected."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_plain_value(value) for value in column]


def _plain_value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return error.object


def _open(file: Any, path: str) -> tuple[pa.Schema, Any]:
    """A table's schema, and a function from column names to its batches."""
    magic = file.read(8)
    file.seek(0)
    if magic.startswith(_PARQUET_MAGIC):
        table = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        return table.schema_arrow, partial(_parquet_batches, table)
    if magic.startswith(_FILE_MAGIC):
        ipc = pyarrow.ipc.open_file(file)
        numbered = (ipc.get_batch(i) for i in range(ipc.num_record_batches))
        return ipc.schema, lambda _: numbered
    stream = pyarrow.ipc.open_stream(file)
    return stream.schema, lambda _: iter(stream)


def _parquet_batches(table: pq.ParquetFile, names: list[str]) -> Iterator[pa.RecordBatch]:
    yield from table.iter_batches(batch_size=BATCH_ROWS, columns=names, use_threads=False)


def _columns(schema: pa.Schema, config: SourceConfig, path: str) -> dict[str, str]:
    """Column by role; DataError when one is missing or the images are of the other kind."""
    asked = {role: str(name) for role, name in (config.columns or {}).items()}
    optional = ("image_id", *OPTIONAL_ROLES[str(config.task)])
    columns = {}
    for role in roles_of(str(config.task)):
        name = asked.get(role, role)
        if name in schema.names:
            columns[role] = name
            if schema.names.count(name) > 1:
                raise DataError(f"{path}: two columns are called {name!r}")
        elif role in asked or role not in optional:
            raise DataError(
                f"{path}: no column {name!r} for {role!r}; it has {', '.join(schema.names)}; "
                "say in 'columns' which it is"
            )
    holds_names = _is_text(schema.field(columns["image"]).type)
    if holds_names and config.images is None:
        raise DataError(f"{path}: {columns['image']!r} holds names; give the folder 'images'")
    if not holds_names and config.images is not None:
        raise DataError(f"{path}: {columns['image']!r} holds image bytes; leave 'images' out")
    return columns


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _record(
    task: str, uid: str, where: str, row: Mapping[str, Any], blob: Blob | None
) -> SourceRecord:
    for role, value in row.items():
        if role != "image" and isinstance(value, bytes):
            raise Rejected(Reason.BAD_TEXT, f"{role!r} is {shown(value)}")
    if identity_of(row["uid"]) is None:
        raise Rejected(Reason.MALFORMED_ANNOTATION, f"'uid' is {shown(row['uid'])}")
    name = identity_of(row.get("image_id"))
    return row_record(task, uid, where, _image(row["image"], name, blob), row)


def _image(value: Any, name: str | None, blob: Blob | None) -> RowImage:
    if blob is None:
        if not isinstance(value, str) or not value:
            raise Rejected(Reason.MISSING_IMAGE, f"'image' is {shown(value)}")
        return RowImage(name=name or value, address=value if name else None)
    content, path = value, None
    if isinstance(value, Mapping):
        content, path = value.get("bytes"), value.get("path")
    if not isinstance(content, bytes) or not content:
        raise Rejected(Reason.MISSING_IMAGE, f"'image' is {shown(value)}, expected bytes")
    address, digest = blob.add(content)
    return RowImage(name=name or identity_of(path) or digest, address=address)
