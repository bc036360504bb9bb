"""Parquet files written row by row: row groups depend on the number of rows and nothing else."""

from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.files import HashedSink

ROW_GROUP = 32_768
"""Rows of a row group; so many wait in memory."""


class RowWriter:
    """Writes rows into one Parquet file and keeps a row group of them at most."""

    def __init__(self, sink: HashedSink, schema: pa.Schema) -> None:
        self._sink = sink
        self._schema = schema
        self._writer = pq.ParquetWriter(sink, schema, compression="zstd")
        self._columns: dict[str, list[Any]] = {name: [] for name in schema.names}
        self._waiting = 0
        self.rows = 0
        """Rows so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
            return
        # pyarrow would end the file when the writer is collected, and fail again on a full disk.
        self._sink.discard()
        with suppress(OSError, pa.ArrowException):
            self._writer.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends a row, which has a value for each column."""
        for name, values in self._columns.items():
            values.append(row[name])
        self.rows += 1
        self._waiting += 1
        if self._waiting == ROW_GROUP:
            self._write()

    def close(self) -> None:
        """Writes what is left and the end of the file."""
        try:
            if self._waiting or not self.rows:
                self._write()
            self._writer.close()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def _write(self) -> None:
        self._writer.write_table(pa.table(self._columns, schema=self._schema), ROW_GROUP)
        self._columns = {name: [] for name in self._schema.names}
        self._waiting = 0
