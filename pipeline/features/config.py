"""Settings of `prefixworks features`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Which images, which trunk, and where its features go."""

    dataset: str
    """Prepared data set: a folder, or a location such as s3://bucket/path."""
    base: str = "ofa-micro"
    """Name or folder of the base whose image trunk is used."""
    image_size: int | None = None
    """Side in pixels of the square that images are resized to, as in data.image_size; None takes
    the base's."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """What the trunk computes in and features are kept in; equal to engine.precision of the
    training."""
    batch_size: int = 16
    """Images that a worker computes at once. In fp32 the last bits depend on it; features are
    those of training where this equals training.batch_size_per_rank."""
    output: str | None = None
    """Folder for the features, seen by all nodes; None takes one beside the data set, named after
    it, the size and the precision. What is finished there is checked and kept."""
    workers: int | None = None
    """Shards that are computed at once; by default every CPU of the cluster."""
    address: str | None = None
    """Address of a running Ray cluster; a local one is started when omitted."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers}")
        if self.image_size is not None and self.image_size < 16:
            raise ValueError(f"image_size must be at least 16, not {self.image_size}")
        if self.output is None and "://" in self.dataset:
            raise ValueError(f"output is needed: a folder for the features of {self.dataset}")

    def folder(self, image_size: int) -> Path:
        """Where the features go."""
        if self.output is not None:
            return Path(self.output)
        place = Path(self.dataset).absolute()
        return place.with_name(f"{place.name}_features_{image_size}_{self.precision}")
