"""A prepared dataset as far as lineage looks at it: its manifest."""

from __future__ import annotations

import json
from pathlib import Path

from data_prep.manifest import Manifest, ShardInfo

_SHA = "0" * 64


def manifest_folder(folder: Path, name: str = "shapes") -> Path:
    """Writes a dataset folder that holds a manifest and nothing else."""
    tasks = {"vqa": 4, "grounding": 3}
    shard = ShardInfo(name="shard-000000.tar", samples=7, bytes=100, sha256=_SHA, tasks=tasks)
    manifest = Manifest(
        name=name,
        seed=1,
        shard_size=10,
        samples=7,
        shards=(shard,),
        tasks=tasks,
        counts={"in": 8, "out": 7, "quarantined": 1},
        sources=(),
        image={"max_side": 512},
        store_images="repeated",
        index={"name": "index.parquet", "sha256": _SHA},
        quarantine={"name": "quarantine.parquet", "sha256": _SHA, "reasons": {"missing_image": 1}},
    )
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest.to_json()))
    return folder
