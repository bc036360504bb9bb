"""The loader benchmark runs, and loading starts soon on a data set of many shards."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from benchmarks.loader import ARMS
from benchmarks.loader_arms import ARMS as KNOWN
from benchmarks.written_shards import write_shards
from model.checkpoint import TOKENIZER_FILE, load_config, resolve_base
from model.tokenizer import OFATokenizer
from pipeline.training.data import Collator, ShardReader
from pipeline.training.data_config import DataConfig
from pipeline.training.loader import BatchMaker, Loader, build_order

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.integration


def picture() -> bytes:
    sink = BytesIO()
    pixels = np.arange(48 * 64 * 3, dtype=np.uint32).reshape(48, 64, 3) % 251
    Image.fromarray(pixels.astype(np.uint8)).save(sink, "JPEG")
    return sink.getvalue()


@pytest.mark.slow
def test_a_benchmark_prints_a_table_and_writes_rows(tmp_path: Path) -> None:
    assert set(ARMS) == set(KNOWN)
    sizes = {"images": 48, "shards": 4, "batches": 2, "batch": 4, "image-size": 32}
    flags = {**sizes, "workers": 1, "rounds": 1, "small-shards": 30, "work-dir": tmp_path}
    file = tmp_path / "rows.json"
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "loader.py"), f"--json={file}"),
            *(f"--{name}={value}" for name, value in flags.items()),
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())
    assert [row["arm"] for row in rows] == list(ARMS)
    for row in rows:
        assert row["arm"] in done.stdout
        assert min(value for name, value in row.items() if name != "arm") > 0
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def test_ten_thousand_shards_start_and_resume_soon(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    write_shards(folder, [picture()], 10_000, 2)
    tokenizer = OFATokenizer.from_file(resolve_base("ofa-micro") / TOKENIZER_FILE)
    collate = Collator(tokenizer, load_config("ofa-micro"), 32)
    for step in (0, 20_000 // 16 // 2):
        # CPU time: what else the machine does would decide the other.
        began = time.process_time()
        with ShardReader(folder) as reader:
            order = build_order([reader], DataConfig(), 0)
            with Loader(
                order,
                BatchMaker([reader], collate, 0),
                rank=0,
                ranks=1,
                batch_size=16,
                accumulation=1,
                workers=0,
            ) as loader:
                (batch,) = next(loader.steps(step, step + 1))
        assert time.process_time() - began < 3
        assert len(batch.uids) == 16


def test_samples_cost_little_memory_and_workers_none(tmp_path: Path) -> None:
    sizes = {}
    for per_shard in (10, 1000):
        folder = tmp_path / f"{per_shard}"
        write_shards(folder, [picture()], 10, per_shard)
        before = pa.total_allocated_bytes()
        with ShardReader(folder) as reader:
            sizes[per_shard] = pa.total_allocated_bytes() - before
            tokenizer = OFATokenizer.from_file(resolve_base("ofa-micro") / TOKENIZER_FILE)
            collate = Collator(tokenizer, load_config("ofa-micro"), 32)
            sent = len(pickle.dumps(BatchMaker([reader], collate, 0).assemble))
            sizes[-per_shard] = sent
    assert sizes[1000] / 10_000 < 100
    assert abs(sizes[-1000] - sizes[-10]) < 1000
