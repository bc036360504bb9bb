"""Images in Ray's workers: other formats, and one that would take for ever."""

from __future__ import annotations

import dataclasses
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.config import ImagePolicy
from data_prep.manifest import QUARANTINE_NAME, read_manifest
from jobs.cli import main
from pipeline.config_reader import to_yaml
from tests.support.odd_images import many_scans
from tests.support.raw_data import jpeg, prepare_config, write_raw

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


def test_an_image_that_takes_too_long_costs_its_samples_and_no_shard(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_raw(raw, images=4)
    png = BytesIO()
    Image.open(BytesIO(jpeg(1))).save(png, "PNG")
    (raw / "images" / f"{1:012d}.jpg").write_bytes(png.getvalue())
    (raw / "images" / f"{2:012d}.jpg").write_bytes(many_scans(4_000, 20_000))
    config = dataclasses.replace(
        prepare_config(raw, tmp_path / "out", shard_size=10),
        max_reject_rate=1.0,
        image=ImagePolicy(time_limit_s=0.3),
    )
    path = tmp_path / "prepare.yaml"
    path.write_text(to_yaml(config))
    assert main(["prepare", f"--config={path}", "--workers=1"]) == 0
    folder = tmp_path / "out" / "mix"
    manifest = read_manifest(folder)
    assert manifest.counts == {"in": 20, "out": 16, "quarantined": 4}
    assert manifest.quarantine["reasons"] == {"timed_out": 4}
    details = set(pq.read_table(folder / QUARANTINE_NAME)["detail"].to_pylist())
    assert details == {f"{2:012d}.jpg: not decoded within 0.3 s"}
