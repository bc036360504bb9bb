"""What `prefixworks prepare` is told: which sources make up which datasets, and how."""

from dataclasses import dataclass, field
from typing import Literal

from data_prep.roles import roles_of

ReaderName = Literal[
    "coco_captions",
    "vqav2",
    "refer",
    "snli_ve",
    "coco_instances",
    "karpathy",
    "ofa_tsv",
    "table",
    "webdataset",
]
TaskName = Literal["caption", "vqa", "grounding", "entailment", "detection"]

_KARPATHY_SPLITS = ("train", "restval", "val", "test")
_IMAGES_WITHIN = ("ofa_tsv", "table", "webdataset")
"""Readers of files that hold the images, too."""

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
    """One set of annotations with its images."""

    reader: ReaderName
    """Format of the annotations."""
    images: str | None = None
    """Where image names are looked up: a folder, a .tar or .zip (not unpacked), a folder in one
    ('train2014.zip/train2014'), or any of these at s3://, gs:// or hf://. Left out where the images
    lie in the annotation files: ofa_tsv, webdataset, and table with a column of bytes."""
    annotations: str | None = None
    """Annotation file, here or at s3://, gs:// or hf://: COCO JSON, VQAv2 annotations (omit for a
    test split), REFER's refs(*).p, SNLI-VE JSON lines, Karpathy's dataset_coco.json. JSON may be
    packed with gzip (.gz). ofa_tsv, table and webdataset read several files of one folder:
    'part-{000..003}.tar', or on this machine 'part-*.tar'."""
    questions: str | None = None
    """vqav2 only: the questions file."""
    instances: str | None = None
    """refer only: instances.json with the boxes."""
    split: str = "train"
    """Split that the samples belong to; refer and karpathy read only what is of this split."""
    name: str | None = None
    """First part of the samples' uids; the reader's name unless two sources share reader and
    split."""
    image_name: str | None = None
    """vqav2, snli_ve: image file name from an image's id, such as
    'COCO_train2014_{id:012d}.jpg'; by default '{id:012d}.jpg' and '{id}.jpg'."""
    use_premise: bool = False
    """entailment only: put the premise caption into the instruction, too."""
    restval: bool = False
    """karpathy only: let the split 'train' include 'restval', as is usual."""
    task: TaskName | None = None
    """ofa_tsv, table, webdataset: what the rows are for; left out, webdataset reads shards that
    prepare wrote."""
    columns: dict[str, str | int] | None = None
    """ofa_tsv, table, webdataset: where each role of the task is, such as {text: question}: a
    column number from 0, a column's name, or a field or member ('.txt') of a sample. Roles are uid,
    image and image_id, and references (caption), text and answers (vqa), text and box (grounding),
    text, premise and label (entailment), boxes and labels (detection)."""

    def __post_init__(self) -> None:
        needed = {
            "vqav2": ("questions", "images"),
            "refer": ("annotations", "instances", "images"),
            "ofa_tsv": ("annotations", "task"),
            "table": ("annotations", "task"),
            "webdataset": ("annotations",),
        }
        for name in needed.get(self.reader, ("annotations", "images")):
            if getattr(self, name) is None:
                raise ValueError(f"a source with reader {self.reader!r} needs {name!r}")
        used = {
            "questions": ("vqav2",),
            "instances": ("refer",),
            "image_name": ("vqav2", "snli_ve"),
            "use_premise": ("snli_ve", *_IMAGES_WITHIN),
            "restval": ("karpathy",),
            "task": _IMAGES_WITHIN,
            "columns": _IMAGES_WITHIN,
        }
        for name, readers in used.items():
            if getattr(self, name) and self.reader not in readers:
                raise ValueError(f"{name!r} has no meaning for reader {self.reader!r}")
        if self.images is not None and self.reader in ("ofa_tsv", "webdataset"):
            raise ValueError(f"'images' has no meaning for reader {self.reader!r}")
        if self.use_premise and self.task not in (None, "entailment"):
            raise ValueError(f"'use_premise' has no meaning for task {self.task!r}")
        self._check_split()
        self._check_columns()

    def _check_split(self) -> None:
        if self.reader == "karpathy" and self.split not in _KARPATHY_SPLITS:
            raise ValueError(
                f"split must be one of {', '.join(_KARPATHY_SPLITS)} for reader 'karpathy', "
                f"found {self.split!r}"
            )
        if self.restval and self.split != "train":
            raise ValueError("restval belongs to the split 'train'")

    def _check_columns(self) -> None:
        if self.reader == "ofa_tsv" and self.task == "detection":
            raise ValueError("task 'detection' has no layout for reader 'ofa_tsv'")
        if self.columns is None:
            return
        if self.task is None:
            raise ValueError("columns need a 'task' that says what they are for")
        numbered = self.reader == "ofa_tsv"
        for role, column in self.columns.items():
            if role not in roles_of(self.task):
                raise ValueError(
                    f"columns: {role!r} is no role of task {self.task!r}; "
                    f"its roles are {', '.join(roles_of(self.task))}"
                )
            if numbered and (not isinstance(column, int) or column < 0):
                raise ValueError(f"columns: {role!r} must be a column number, found {column!r}")
            if not numbered and (not isinstance(column, str) or not column):
                raise ValueError(f"columns: {role!r} must be a name, found {column!r}")

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
    store_images: Literal["repeated", "once_per_shard"] = "repeated"
    """'repeated' mixes samples freely and stores an image with each of them, which any WebDataset
    reader takes; 'once_per_shard' keeps the samples of an image together and stores equal images
    of a shard once: less disk, less mixing, and reading goes by the index."""
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
