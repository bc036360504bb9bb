"""Samples as Arrow tables, for people who query a dataset with pyarrow, DuckDB or pandas.

The schema is the dataclass Sample in Arrow's words, under the same version; a test holds the two
together.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Final

import pyarrow as pa

from data_prep.prepared import PreparedDataset
from data_prep.schema import SCHEMA_VERSION

_TEXT = pa.string()
SAMPLE_SCHEMA: Final = pa.schema(
    [
        pa.field("uid", _TEXT, nullable=False),
        pa.field("task", _TEXT, nullable=False),
        pa.field("source", _TEXT, nullable=False),
        pa.field("split", _TEXT, nullable=False),
        pa.field(
            "image",
            pa.struct(
                [
                    pa.field("width", pa.int64(), nullable=False),
                    pa.field("height", pa.int64(), nullable=False),
                    pa.field("format", _TEXT, nullable=False),
                    pa.field("sha256", _TEXT, nullable=False),
                    pa.field("original_width", pa.int64(), nullable=False),
                    pa.field("original_height", pa.int64(), nullable=False),
                    pa.field("name", _TEXT, nullable=False),
                ]
            ),
            nullable=False,
        ),
        pa.field("text", _TEXT),
        pa.field("premise", _TEXT),
        pa.field("references", pa.list_(pa.field("item", _TEXT, nullable=False)), nullable=False),
        pa.field(
            "answers",
            pa.list_(
                pa.field(
                    "item",
                    pa.struct(
                        [
                            pa.field("text", _TEXT, nullable=False),
                            pa.field("count", pa.int64(), nullable=False),
                            pa.field("confidence", pa.float64(), nullable=False),
                        ]
                    ),
                    nullable=False,
                )
            ),
            nullable=False,
        ),
        pa.field(
            "boxes",
            pa.list_(
                pa.field(
                    "item",
                    pa.struct(
                        [
                            pa.field(
                                "box",
                                pa.list_(pa.field("item", pa.float64(), nullable=False), 4),
                                nullable=False,
                            ),
                            pa.field("label", _TEXT),
                        ]
                    ),
                    nullable=False,
                )
            ),
            nullable=False,
        ),
        pa.field("label", _TEXT),
        pa.field("instruction", _TEXT, nullable=False),
    ],
    metadata={"prefixworks.schema_version": str(SCHEMA_VERSION)},
)
"""One sample; boxes are (x0, y0, x1, y1) in pixels of the stored image."""

TABLE_SCHEMA: Final = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        *SAMPLE_SCHEMA,
    ],
    metadata=SAMPLE_SCHEMA.metadata,
)
"""A sample and where it lies: (shard, position) is its row of the index."""


def sample_batches(folder: str | Path) -> pa.RecordBatchReader:
    """Streams a dataset's samples, one record batch a shard.

    Args:
        folder: Folder of the dataset.

    Returns:
        A reader of TABLE_SCHEMA, which pyarrow.dataset and DuckDB take as it is; memory stays with
        one shard's records. Reading raises DataError where a record is damaged.

    Raises:
        DataError: Manifest or index are missing or damaged.
    """
    return pa.RecordBatchReader.from_batches(TABLE_SCHEMA, _batches(PreparedDataset(folder)))


def samples_table(folder: str | Path) -> pa.Table:
    """All samples of a dataset as one table of TABLE_SCHEMA, without their images.

    Raises:
        DataError: The dataset is unfinished or damaged.
    """
    batches = list(_batches(PreparedDataset(folder)))
    return pa.Table.from_batches(batches, TABLE_SCHEMA)


def _batches(dataset: PreparedDataset) -> Iterator[pa.RecordBatch]:
    for _, samples in groupby(dataset.samples(), key=lambda pair: pair[0].shard):
        rows = [
            {"shard": row.shard, "position": row.position, **sample.to_json()}
            for row, sample in samples
        ]
        yield pa.RecordBatch.from_pylist(rows, schema=TABLE_SCHEMA)
