"""One arm of the loader benchmark, in a process of its own.

    python benchmarks/loader_arms.py ARM TASK DATASET WORKERS BATCH IMAGE_SIZE BATCHES RESULT

TASK is `rate` (batches one after another), `start` (the first batch of a run) or `resume` (the
first after half an epoch). Python's imports are done before the clock starts, the workers' are not.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
import torch
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from model.checkpoint import TOKENIZER_FILE, load_config, resolve_base
from model.images import to_pixels
from model.tokenizer import OFATokenizer
from pipeline.training.data import Collator
from pipeline.training.data_config import DataConfig
from pipeline.training.loader import BatchMaker, Loader, build_order, open_data_sets
from pipeline.training.workers import Kind

_BASE = "ofa-micro"
_SHUFFLE = 1000
"""Samples that webdataset shuffles at once, beside its shards."""


class Arm:
    """What to load, and how."""

    def __init__(self, dataset: Path, workers: int, batch: int, image_size: int) -> None:
        self.dataset, self.workers = dataset, workers
        self.batch, self.image_size = batch, image_size

    def ours(self, kind: Kind, half: bool) -> Iterator[int]:
        """Batches of our loader, as their sizes; they are whole training batches."""
        data = DataConfig(loader=kind, loader_workers=self.workers)
        (reader,) = open_data_sets([str(self.dataset)], data)
        order = build_order([reader], data, 0)
        tokenizer = OFATokenizer.from_file(resolve_base(_BASE) / TOKENIZER_FILE)
        collate = Collator(tokenizer, load_config(_BASE), self.image_size)
        first = order.epoch_length // self.batch // 2 if half else 0
        with (
            reader,
            Loader(
                order,
                BatchMaker([reader], collate, 0),
                rank=0,
                ranks=1,
                batch_size=self.batch,
                accumulation=1,
                workers=self.workers,
                kind=kind,
            ) as loader,
        ):
            for (batch,) in loader.steps(first, 10**9):
                yield len(batch.uids)

    def webdataset(self, half: bool) -> Iterator[int]:
        """Batches of webdataset's own pipeline; a stop in an epoch is reached by reading on."""
        shards = sorted(map(str, self.dataset.glob("shard-*.tar")))
        samples = len(_names(self.dataset))
        skipped = samples // 2 // max(1, self.workers) if half else 0
        stages = [
            webdataset.SimpleShardList(shards),
            webdataset.shuffle(len(shards)),
            webdataset.split_by_worker,
            webdataset.tarfile_to_samples(),
            webdataset.shuffle(_SHUFFLE),
            functools.partial(_skip, skipped),
            webdataset.map(functools.partial(_decode, size=self.image_size)),
            webdataset.batched(self.batch, collation_fn=_stack),
        ]
        pipeline = webdataset.DataPipeline(*stages).repeat()
        return self._loaded(DataLoader(pipeline, batch_size=None, **self._workers()))

    def files(self, half: bool) -> Iterator[int]:
        """Batches of a map-style data set of image files, as torchvision's ImageFolder is."""
        folder = Files(self.dataset, self.image_size)
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(folder), generator=generator).tolist()
        order = order[len(order) // 2 :] if half else order * 1000
        loader = DataLoader(
            folder, self.batch, sampler=order, collate_fn=torch.stack, **self._workers()
        )
        return self._loaded(loader)

    def _workers(self) -> dict[str, Any]:
        context = "forkserver" if self.workers else None
        return {"num_workers": self.workers, "multiprocessing_context": context}

    def _loaded(self, loader: DataLoader[Any]) -> Iterator[int]:
        for images in loader:
            yield len(images)


class Files(Dataset[Tensor]):
    """Image files of a folder, as pixels."""

    def __init__(self, folder: Path, size: int) -> None:
        self._paths = _names(folder)
        self._size = size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, at: int) -> Tensor:
        return _pixels(self._paths[at].read_bytes(), self._size)


def _names(folder: Path) -> list[Path]:
    return sorted((folder / "files").iterdir())


def _pixels(content: bytes, size: int) -> Tensor:
    return to_pixels(Image.open(io.BytesIO(content)), size)


def _decode(sample: dict[str, Any], size: int) -> Tensor:
    json.loads(sample["json"])
    return _pixels(sample["jpg"], size)


def _stack(samples: list[Tensor]) -> Tensor:
    return torch.stack(samples)


def _skip(count: int, samples: Iterator[Any]) -> Iterator[Any]:
    return islice(samples, count, None)


ARMS: dict[str, Callable[[Arm, bool], Iterator[int]]] = {
    "threads": lambda arm, half: arm.ours("threads", half),
    "processes": lambda arm, half: arm.ours("processes", half),
    "webdataset": Arm.webdataset,
    "image files": Arm.files,
}
"""Every arm by its name: batches from the start of an epoch, or from its middle."""


def main(argv: list[str]) -> None:
    """Run one arm and write what it took."""
    arm, task, dataset, *numbers, result = argv
    workers, batch, image_size, batches = map(int, numbers)
    torch.set_num_threads(1)
    began = time.perf_counter()
    loaded = ARMS[arm](Arm(Path(dataset), workers, batch, image_size), task == "resume")
    next(loaded)
    found = {"first_s": time.perf_counter() - began}
    if task == "rate":
        for _ in islice(loaded, max(3, workers)):  # every worker has begun
            pass
        began, cpu_began, samples = time.perf_counter(), _cpu_s(), 0
        for count in islice(loaded, batches):
            samples += count
        found["samples_per_s"] = samples / (time.perf_counter() - began)
        found["cpu_s_per_1000"] = 1000 * (_cpu_s() - cpu_began) / samples
    Path(result).write_text(json.dumps(found))
    _end_children()


def _cpu_s() -> float:
    """CPU time of this process and of all that it has started."""
    own = psutil.Process()
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system
    return total


def _end_children() -> None:
    # An endless pipeline's workers end when it is asked for nothing more, which can take long.
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            # Python's own tracker takes away what the others have left.
            if "resource_tracker" not in " ".join(process.cmdline()):
                process.kill()


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)
