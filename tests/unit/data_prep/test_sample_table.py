"""Samples as Arrow tables: the schema is the dataclass, and nothing is lost on the way."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import webdataset

from data_prep.errors import DataError
from data_prep.manifest import read_manifest
from data_prep.prepared import PreparedDataset
from data_prep.sample_table import SAMPLE_SCHEMA, TABLE_SCHEMA, sample_batches, samples_table
from data_prep.schema import SCHEMA_VERSION, Sample
from tests.support.rewritten import in_format, read_samples, rewrite
from tests.support.small_world import prepared_world

_PLAIN = {str: pa.string(), int: pa.int64(), float: pa.float64()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_world(tmp_path_factory.mktemp("table"), scenes=3, shard_size=12)


def arrow_fields(cls: Any) -> list[pa.Field]:
    return [arrow_field(name, hint) for name, hint in typing.get_type_hints(cls).items()]


def arrow_field(name: str, hint: Any) -> pa.Field:
    """What a field of a dataclass is in Arrow, by its type alone."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (kind,) = (each for each in arguments if each is not type(None))
        return pa.field(name, arrow_field(name, kind).type, nullable=True)
    if typing.get_origin(hint) is tuple:
        item = arrow_field("item", arguments[0])
        size = -1 if arguments[-1] is ... else len(arguments)
        return pa.field(name, pa.list_(item, size), nullable=False)
    if dataclasses.is_dataclass(hint):
        return pa.field(name, pa.struct(arrow_fields(hint)), nullable=False)
    return pa.field(name, _PLAIN[hint], nullable=False)


def test_the_schema_is_the_dataclass() -> None:
    assert SAMPLE_SCHEMA.equals(pa.schema(arrow_fields(Sample)))
    assert SAMPLE_SCHEMA.metadata == {b"prefixworks.schema_version": str(SCHEMA_VERSION).encode()}


def test_a_table_holds_every_sample(folder: Path) -> None:
    table = samples_table(folder)
    assert table.schema.equals(TABLE_SCHEMA, check_metadata=True)
    table.validate(full=True)
    samples = [sample for sample, _ in read_samples(folder)]
    for row, sample in zip(table.to_pylist(), samples, strict=True):
        del row["shard"], row["position"]
        assert Sample.from_json({"schema_version": SCHEMA_VERSION, **row}) == sample
    index = pq.read_table(folder / "index.parquet")
    assert table["position"].equals(index["position"].cast(pa.int64()))
    assert table["shard"].equals(index["shard"])


def test_a_table_can_be_queried(folder: Path) -> None:
    table = samples_table(folder)
    counts = dict(zip(*table["task"].value_counts().flatten(), strict=True))
    assert {str(k): v.as_py() for k, v in counts.items()} == read_manifest(folder).tasks
    wide = table.filter(pc.greater(pc.struct_field(table["image"], "width"), 100))
    assert 0 < wide.num_rows < table.num_rows


def test_batches_come_shard_by_shard(folder: Path) -> None:
    batches = list(sample_batches(folder))
    assert [batch.num_rows for batch in batches] == [
        shard.samples for shard in read_manifest(folder).shards
    ]
    assert pa.Table.from_batches(batches).equals(samples_table(folder))


def test_shared_images_and_other_formats_make_the_same_table(folder: Path, tmp_path: Path) -> None:
    shared = rewrite(folder, tmp_path / "shared", change=in_format("PNG"), share=True)
    table = samples_table(shared)
    assert set(table["uid"].to_pylist()) == set(samples_table(folder)["uid"].to_pylist())
    assert {image["format"] for image in table["image"].to_pylist()} == {"PNG"}


def test_chosen_samples_and_their_images(folder: Path, tmp_path: Path) -> None:
    shared = rewrite(folder, tmp_path / "shared", share=True)
    dataset = PreparedDataset(shared)
    wanted = read_samples(shared)
    places = [0, 5, len(dataset) - 1]
    found = [(s, dataset.image(row, s)) for row, s in dataset.samples(places)]
    assert found == [wanted[place] for place in places]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "shard-000001.tar").unlink(), "shard-000001.tar cannot be opened"),
        (lambda f: (f / "shard-000001.tar").write_bytes(b""), "shard-000001.tar is corrupt at"),
        (lambda f: (f / "index.parquet").write_bytes(b""), "index.parquet is corrupt"),
        (lambda f: (f / "index.parquet").unlink(), "index.parquet cannot be read"),
        (lambda f: (f / "manifest.json").unlink(), "did not end"),
    ],
)
def test_damage_is_one_error(folder: Path, tmp_path: Path, damage: Any, message: str) -> None:
    broken = rewrite(folder, tmp_path / "broken")
    damage(broken)
    with pytest.raises(DataError, match=message):
        samples_table(broken)


def test_the_page_tells_how_to_read_shared_images_with_webdataset(
    folder: Path, tmp_path: Path
) -> None:
    page = Path(__file__).parents[3] / "docs" / "reference" / "sample-schema.md"
    (snippet,) = (
        each
        for each in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        if "def with_images" in each
    )
    names: dict[str, Any] = {"json": json}
    exec(snippet, names)
    shared = rewrite(folder, tmp_path / "shared", share=True)
    shards = sorted(map(str, shared.glob("*.tar")))
    items = list(names["with_images"](webdataset.WebDataset(shards, shardshuffle=False)))
    found = [(Sample.from_json(item["json"]), item["image"]) for item in items]
    assert found == read_samples(shared)
    assert any("jpg" not in item for item in items)
