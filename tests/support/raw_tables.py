"""Small raw data in the formats that hold their images: TSV, Parquet, Arrow and WebDataset."""

from __future__ import annotations

import base64
import json
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.config import SourceConfig
from data_prep.quarantine import Rejection
from data_prep.readers import READERS, SourceRecord, Workspace
from tests.support.raw_data import jpeg

TSV_ROWS: dict[str, list[Any]] = {
    "caption": ["162", "12", "the sun sets&&a dock", "sky&&water", jpeg(1)],
    "vqa": ["79", "12", "is it wet?", "0.6|!+no&&1.0|!+yes&&0.3|!+maybe", "house", jpeg(1)],
    "grounding": ["79_1", "23", "A woman", "2.5,1,30.25,20", jpeg(2)],
    "entailment": ["25.jpg#1r1n", "25", jpeg(3), "a man sits.", "a man rests.", "neutral"],
}
"""One row of each of OFA's layouts."""


def tsv_line(fields: list[Any]) -> bytes:
    """Fields as a line; bytes become base64."""
    cells = [base64.b64encode(f) if isinstance(f, bytes) else f.encode() for f in fields]
    return b"\t".join(cells) + b"\n"


def tsv_source(path: Path, task: str, **changes: Any) -> SourceConfig:
    return SourceConfig(**{"reader": "ofa_tsv", "annotations": str(path), "task": task, **changes})


def write_tar(path: Path, members: list[tuple[str, bytes] | tarfile.TarInfo]) -> None:
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, BytesIO(member[1]))


def tar_source(path: Path, task: str | None = None, **changes: Any) -> SourceConfig:
    settings = {"reader": "webdataset", "annotations": str(path), "task": task, **changes}
    return SourceConfig(**settings)


def vqa_members(key: str, **changes: Any) -> list[tuple[str, bytes]]:
    """A question as two members, image first."""
    record = {"uid": f"q{key}", "text": "is it wet?", "answers": ["yes", "no", "yes"], **changes}
    return [(f"{key}.jpg", jpeg(int(key))), (f"{key}.json", json.dumps(record).encode())]


def write_table(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> None:
    """Writes rows in the format that the file's name asks for."""
    table = pa.Table.from_pylist(rows, schema=schema)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    elif path.suffix == ".arrow":
        with pa.ipc.new_stream(path, table.schema) as sink:
            sink.write_table(table, max_chunksize=2)
    else:
        with pa.ipc.new_file(path, table.schema) as sink:
            sink.write_table(table, max_chunksize=2)


def table_source(path: Path, task: str, **changes: Any) -> SourceConfig:
    return SourceConfig(**{"reader": "table", "annotations": str(path), "task": task, **changes})


def read(
    config: SourceConfig, blob: Path | None = None
) -> tuple[dict[str, SourceRecord], list[Rejection]]:
    """All records by uid, and all rejections; nothing temporary may be left behind."""
    with tempfile.TemporaryDirectory() as folder:
        name = blob.name if blob else "images.blob"
        work = Workspace(folder=Path(folder), blob=blob, blob_name=name)
        items = list(READERS[config.reader](config, work))
        assert not list(Path(folder).iterdir())
    records = {item.uid: item for item in items if isinstance(item, SourceRecord)}
    assert len(records) == sum(isinstance(item, SourceRecord) for item in items)
    return records, [item for item in items if isinstance(item, Rejection)]
