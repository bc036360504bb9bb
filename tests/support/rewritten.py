"""Prepared datasets written anew: with shared images, with other formats, or with forged files."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_prep.fields import canonical_json
from data_prep.files import whole_file
from data_prep.manifest import Manifest, read_manifest
from data_prep.quarantine import QUARANTINE_SCHEMA
from data_prep.schema import Sample
from data_prep.shards import INDEX_SCHEMA, ShardWriter, shard_name

Change = Callable[[Sample, bytes], tuple[Sample, bytes]]


def read_samples(folder: Path) -> list[tuple[Sample, bytes]]:
    """Every sample of a dataset with its image, in order."""
    manifest = read_manifest(folder)
    found = []
    for row in pq.read_table(folder / "index.parquet").to_pylist():
        content = (folder / manifest.shards[row["shard"]].name).read_bytes()
        record = content[row["json_offset"] :][: row["json_size"]]
        image = content[row["image_offset"] :][: row["image_size"]]
        found.append((Sample.from_json(record), image))
    return found


def rewrite(
    source: Path, target: Path, *, change: Change = lambda *pair: pair, share: bool = False
) -> Path:
    """Writes a dataset's samples again, equal images side by side, with the real writer."""
    target.mkdir(parents=True)
    samples = [change(*pair) for pair in read_samples(source)]
    samples.sort(key=lambda pair: (pair[0].image.sha256, pair[0].uid))
    size = -(-len(samples) // 2)
    shards, rows = [], []
    for number in range(2):
        with whole_file(target / shard_name(number)) as file:
            writer = ShardWriter(file, number, share)
            first = number * size
            for position, (sample, image) in enumerate(samples[first : first + size], first):
                writer.add(position, sample, image)
            shards.append(writer.finish())
        rows += writer.rows
    files = {
        "index.parquet": parquet([vars(row) for row in rows], INDEX_SCHEMA),
        "quarantine.parquet": parquet([], QUARANTINE_SCHEMA),
    }
    for name, content in files.items():
        (target / name).write_bytes(content)
    named = {
        name: {"name": name, "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }
    manifest = dataclasses.replace(
        read_manifest(source),
        shard_size=size,
        samples=len(rows),
        shards=tuple(shards),
        tasks=dict(sorted(Counter(row.task for row in rows).items())),
        counts={"in": len(rows), "out": len(rows), "quarantined": 0},
        store_images="once_per_shard" if share else "repeated",
        index=named["index.parquet"],
        quarantine={**named["quarantine.parquet"], "reasons": {}},
    )
    write_manifest(target, manifest)
    return target


def parquet(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    """Rows as a parquet file."""
    sink = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return sink.getvalue()


def in_format(image_format: str) -> Change:
    """Stores images in another format."""

    def change(sample: Sample, image: bytes) -> tuple[Sample, bytes]:
        sink = BytesIO()
        Image.open(BytesIO(image)).save(sink, image_format)
        return with_bytes(sample, sink.getvalue(), image_format)

    return change


def with_bytes(sample: Sample, image: bytes, image_format: str) -> tuple[Sample, bytes]:
    """A sample whose facts name these bytes."""
    digest = hashlib.sha256(image).hexdigest()
    facts = dataclasses.replace(sample.image, format=image_format, sha256=digest)
    return dataclasses.replace(sample, image=facts), image


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / "manifest.json").write_bytes(canonical_json(manifest.to_json()) + b"\n")


def forge_index(folder: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Changes rows of the index, and the manifest so that its SHA-256 fits again."""
    table = pq.read_table(folder / "index.parquet")
    rows = table.to_pylist()
    change(rows)
    (folder / "index.parquet").write_bytes(parquet(rows, table.schema))
    sign_again(folder)


def sign_again(folder: Path) -> None:
    """Gives the manifest the present sizes and hashes, as somebody who forges files would."""
    manifest = read_manifest(folder)
    content = {name: (folder / name).read_bytes() for name in _names(manifest)}
    digests = {name: hashlib.sha256(each).hexdigest() for name, each in content.items()}
    shards = tuple(
        dataclasses.replace(each, bytes=len(content[each.name]), sha256=digests[each.name])
        for each in manifest.shards
    )
    index = {**manifest.index, "sha256": digests["index.parquet"]}
    quarantine = {**manifest.quarantine, "sha256": digests["quarantine.parquet"]}
    write_manifest(
        folder, dataclasses.replace(manifest, shards=shards, index=index, quarantine=quarantine)
    )


def _names(manifest: Manifest) -> list[str]:
    return ["index.parquet", "quarantine.parquet", *(shard.name for shard in manifest.shards)]
