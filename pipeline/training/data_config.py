"""Settings of the data of a training run: which samples are read, how, and what is made of them.

Importing this module is cheap: no torch, no DeepSpeed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipeline.training.augmentation import AugmentationConfig
from pipeline.training.bounds import at_least

DEFAULT_CACHE_GB = 50.0
"""Of data.cache_gb; it also bounds the cache where no DataConfig is at hand."""


@dataclass(frozen=True, kw_only=True)
class AnswerListConfig:
    """Which answers to questions there are."""

    answers: Literal["open", "closed"] = "open"
    """Whether any text may answer, or one of a list only. The list goes with the run and its
    prompt."""
    file: str | None = None
    """The list, one answer a line; null takes the most frequent favourites of the training
    questions."""
    most: int = 3129
    """Answers that such a count keeps at most; as many as the published list for VQAv2 has."""
    min_questions: int = 1
    """Training questions whose favourite an answer must be to be kept."""

    def __post_init__(self) -> None:
        at_least(self, 1, "most", "min_questions")
        if self.file is not None and self.answers == "open":
            raise ValueError(f"file = {self.file!r} needs answers = closed")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Prepared data sets, and how samples are drawn from them."""

    train: list[str] = field(default_factory=list)
    """Prepared data sets to learn from: folders, or locations such as s3://bucket/path."""
    validation: list[str] = field(default_factory=list)
    """Prepared data sets to validate on; none switches validation off."""
    tasks: list[str] | None = None
    """Tasks to learn; None learns every task of the data."""
    task_weights: dict[str, float] | None = None
    """Share of each task among the samples drawn, up to a factor; a task that is not named has
    none. None draws every sample of the data once an epoch."""
    image_size: int | None = None
    """Side in pixels of the square that images are resized to; None takes the base's."""
    vqa: AnswerListConfig = field(default_factory=AnswerListConfig)
    """Open or closed answers to questions."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Views of the training images by task; by default images are only resized, as in the published
    recipes."""
    features: list[str] = field(default_factory=list)
    """What `prefixworks features` made of every data set in train: images are then neither decoded
    nor run through the trunk. Made with this image size, engine.precision and base, or refused; and
    never with augmentation, since they are of the images as they are."""
    max_source_length: int = 80
    """Tokens of an instruction that are kept, bos and eos included; cut ones are counted."""
    max_target_length: int = 160
    """Tokens of a target that are kept, eos included; cut ones are counted. No box is ever cut, and
    detection's objects are only left out whole."""
    streams: int = 64
    """Canonical streams that the order of samples is dealt to; a multiple of the number of ranks.
    It is part of the order: another number gives another run."""
    loader_workers: int = 1
    """Background workers a rank that read, decode and tokenize; 0 does it between the steps."""
    loader: Literal["threads", "processes"] = "threads"
    """What the workers are. Threads start at once and are enough while a batch takes less than a
    step; processes scale with the cores, take seconds to start and need room in /dev/shm."""
    loader_timeout_s: float = 300.0
    """Longest a step waits for its batch before the run breaks, as when a network folder hangs."""
    prefetch_steps: int = 3
    """Steps whose batches the workers make ahead, at least enough for each worker to have one; each
    takes the memory of its batches."""
    pin_memory: bool | None = None
    """Whether the workers put batches into pinned memory, from which a GPU is fed while the CPU
    goes on; null does so where the ranks compute on CUDA."""
    cache_dir: str | None = None
    """Folder on this machine for shards of data sets in object stores; null takes
    $PREFIXWORKS_CACHE/shards, else ~/.cache/prefixworks/shards."""
    cache_gb: float = DEFAULT_CACHE_GB
    """Most that this folder holds, in GB of 10^9 bytes; what was used longest ago goes first."""
    uneven: Literal["wrap", "drop"] = "wrap"
    """What happens to the last samples of an epoch that are too few to give every stream one: wrap
    repeats some to fill up, drop leaves them out."""

    def __post_init__(self) -> None:
        at_least(self, 1, "max_source_length", "max_target_length", "streams")
        at_least(self, 0, "loader_workers")
        at_least(self, 1, "loader_timeout_s", "prefetch_steps")
        if self.cache_gb <= 0:
            raise ValueError(f"cache_gb must be above 0, not {self.cache_gb}")
        if self.image_size is not None and self.image_size < 16:
            raise ValueError(f"image_size must be at least 16, not {self.image_size}")
        if self.max_source_length < 3:
            raise ValueError(f"max_source_length must be at least 3, not {self.max_source_length}")
        if self.features and self.augmentation.changes:
            raise ValueError(
                f"features = {self.features} are of the images as they are: leave augmentation out,"
                " or features"
            )
        weights = self.task_weights
        if weights is not None and (
            min(weights.values(), default=0) < 0 or sum(weights.values()) <= 0
        ):
            raise ValueError(f"task_weights must be 0 or more and not all 0, not {weights}")
        for name in ("tasks", "task_weights"):
            if getattr(self, name) is not None and not getattr(self, name):
                raise ValueError(f"{name} names no task; leave it out to take all")
