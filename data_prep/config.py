"""What `prefixworks prepare` is told: which sources make up which datasets, and how."""

from dataclasses import dataclass, field
from typing import Literal

ReaderName = Literal["coco_captions", "vqav2", "refer", "snli_ve", "coco_instances"]

MAX_DECODED_PIXELS = 89_478_485
"""Pillow warns of a decompression bomb above this; ImagePolicy may not go higher."""

MAX_UPSCALED_SIDE = 8192
"""Images are not enlarged to more than what MAX_DECODED_PIXELS lets in."""


@dataclass(frozen=True, kw_only=True)
class ImagePolicy:
    """How images are stored."""

    store: Literal["fit", "keep"] = "fit"
    """fit: JPEGs of at most max_side; a JPEG that fits already keeps its bytes. keep: the files'
    own size, and their bytes where training would see the same pixels (upright, 8-bit, opaque JPEG,
    PNG and WebP); everything else becomes a JPEG."""
    max_side: int = 512
    """fit only: longer side of a stored image in pixels; larger images are fitted, smaller ones
    kept."""
    upscale: bool = False
    """fit only: enlarge smaller images to max_side, too."""
    resample: Literal["bicubic", "lanczos"] = "bicubic"
    """Filter of resized images, both antialiasing; lanczos is a little sharper and slower."""
    quality: int = 95
    """JPEG quality of images that have to be encoded again."""
    max_pixels: int = 64_000_000
    """An image whose header promises more pixels is rejected before it is decoded."""
    time_limit_s: float = 20.0
    """CPU seconds that decoding one image may take before the image is rejected."""

    def __post_init__(self) -> None:
        if self.max_side < 1:
            raise ValueError(f"image.max_side must be at least 1, found {self.max_side}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"image.quality must be between 1 and 100, found {self.quality}")
        if not 0.05 <= self.time_limit_s <= 3600:
            raise ValueError(
                f"image.time_limit_s must be between 0.05 and 3600, found {self.time_limit_s}"
            )
        if self.upscale and self.max_side > MAX_UPSCALED_SIDE:
            raise ValueError(
                f"image.upscale enlarges to at most {MAX_UPSCALED_SIDE} pixels, "
                f"image.max_side is {self.max_side}"
            )
        if self.store == "keep" and self.upscale:
            raise ValueError("image.upscale has no meaning when image.store is 'keep'")
        if not 1 <= self.max_pixels <= MAX_DECODED_PIXELS:
            raise ValueError(
                f"image.max_pixels must be between 1 and {MAX_DECODED_PIXELS}, "
                f"found {self.max_pixels}"
            )


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One set of annotations with its folder of images."""

    reader: ReaderName
    """Format of the annotations."""
    images: str
    """Folder that image names are relative to."""
    annotations: str | None = None
    """Annotation file: COCO JSON, VQAv2 annotations (omit for a test split), REFER's refs(*).p,
    SNLI-VE JSON lines."""
    questions: str | None = None
    """vqav2 only: the questions file."""
    instances: str | None = None
    """refer only: instances.json with the boxes."""
    split: str = "train"
    """Split that the samples belong to; refer reads only references of this split."""
    name: str | None = None
    """First part of the samples' uids; the reader's name unless two sources share reader and
    split."""
    image_name: str | None = None
    """vqav2, snli_ve: image file name from an image's id, such as
    'COCO_train2014_{id:012d}.jpg'; by default '{id:012d}.jpg' and '{id}.jpg'."""
    use_premise: bool = False
    """snli_ve only: put the premise caption into the instruction, too."""

    def __post_init__(self) -> None:
        needed = {"vqav2": ("questions",), "refer": ("annotations", "instances")}
        for name in needed.get(self.reader, ("annotations",)):
            if getattr(self, name) is None:
                raise ValueError(f"a source with reader {self.reader!r} needs {name!r}")
        used = {
            "questions": ("vqav2",),
            "instances": ("refer",),
            "image_name": ("vqav2", "snli_ve"),
            "use_premise": ("snli_ve",),
        }
        for name, readers in used.items():
            if getattr(self, name) and self.reader not in readers:
                raise ValueError(f"{name!r} has no meaning for reader {self.reader!r}")

    @property
    def source_name(self) -> str:
        """The name that samples carry as their source."""
        return self.name or self.reader

    def files(self) -> dict[str, str]:
        """The annotation files by their role."""
        roles = {
            "annotations": self.annotations,
            "questions": self.questions,
            "instances": self.instances,
        }
        return {role: path for role, path in roles.items() if path is not None}


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One prepared dataset: the samples of its sources, mixed."""

    sources: list[SourceConfig]
    """Where its samples come from."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("a dataset needs at least one source")
        names = [(source.source_name, source.split) for source in self.sources]
        for pair in names:
            if names.count(pair) > 1:
                raise ValueError(
                    f"two sources are both called {pair[0]!r} in split {pair[1]!r}: "
                    "give one of them a 'name'"
                )


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Everything that `prefixworks prepare` needs to know."""

    output_dir: str
    """Each dataset becomes a folder of its name in here."""
    datasets: dict[str, DatasetConfig]
    """Datasets by name."""
    shard_size: int = 1000
    """Input samples of a shard; rejected ones leave it smaller."""
    seed: int = 0
    """Decides the order of the samples."""
    image: ImagePolicy = field(default_factory=ImagePolicy)
    """How images are stored."""
    workers: int | None = None
    """Shards that are built at once; by default every CPU of the cluster."""
    max_reject_rate: float = 0.01
    """Share of rejected samples above which a dataset fails."""
    address: str | None = None
    """Address of a running Ray cluster; a local one is started when omitted."""

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ValueError("datasets is empty: nothing to prepare")
        for name in self.datasets:
            if not name or name.startswith(".") or "/" in name or "\\" in name:
                raise ValueError(f"datasets: {name!r} cannot be the name of a folder")
        if self.shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, found {self.shard_size}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, found {self.workers}")
        if not 0 <= self.max_reject_rate <= 1:
            raise ValueError(
                f"max_reject_rate must be between 0 and 1, found {self.max_reject_rate}"
            )
