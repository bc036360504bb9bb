"""Prepared data sets of any number of shards and samples, written without preparing anything."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_prep.fields import canonical_json
from data_prep.manifest import INDEX_NAME, MANIFEST_NAME, QUARANTINE_NAME, Manifest
from data_prep.quarantine import QUARANTINE_SCHEMA
from data_prep.schema import ImageFacts, Sample
from data_prep.shards import INDEX_SCHEMA, IndexRow, ShardWriter, shard_name


def write_shards(folder: Path, images: Sequence[bytes], shards: int, per_shard: int) -> None:
    """Writes a data set of captions.

    Args:
        folder: Does not exist yet.
        images: JPEGs, which the samples take in turn.
        shards: Number of shards.
        per_shard: Samples of each.
    """
    folder.mkdir(parents=True)
    facts = [_facts(image) for image in images]
    rows: list[IndexRow] = []
    infos = []
    for shard in range(shards):
        with (folder / shard_name(shard)).open("wb") as file:
            writer = ShardWriter(file, shard)
            for position in range(shard * per_shard, (shard + 1) * per_shard):
                at = position % len(images)
                writer.add(position, _sample(position, facts[at]), images[at])
            infos.append(writer.finish())
        rows += writer.rows
    index = _write_table(folder / INDEX_NAME, rows, INDEX_SCHEMA)
    quarantine = _write_table(folder / QUARANTINE_NAME, [], QUARANTINE_SCHEMA)
    manifest = Manifest(
        name=folder.name,
        seed=0,
        shard_size=per_shard,
        samples=len(rows),
        shards=tuple(infos),
        tasks=dict(Counter(row.task for row in rows)),
        counts={"in": len(rows), "out": len(rows), "quarantined": 0},
        sources=(),
        image={},
        store_images="repeated",
        index={"name": INDEX_NAME, "sha256": index},
        quarantine={"name": QUARANTINE_NAME, "sha256": quarantine, "reasons": {}},
    )
    (folder / MANIFEST_NAME).write_bytes(canonical_json(manifest.to_json()))


def _facts(content: bytes) -> ImageFacts:
    width, height = Image.open(BytesIO(content)).size
    return ImageFacts(
        width=width,
        height=height,
        format="JPEG",
        sha256=hashlib.sha256(content).hexdigest(),
        original_width=width,
        original_height=height,
        name="picture.jpg",
    )


def _sample(position: int, facts: ImageFacts) -> Sample:
    return Sample(
        uid=f"coco_captions:train:{position:09d}",
        task="caption",
        source="coco_captions",
        split="train",
        image=facts,
        references=(f"picture {position} of a benchmark",),
        instruction=" what does the image describe?",
    )


def _write_table(path: Path, rows: Sequence[IndexRow], schema: pa.Schema) -> str:
    pq.write_table(pa.Table.from_pylist([vars(row) for row in rows], schema=schema), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()
