"""One shard against the manifest and the index: hash, members, records and images."""

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO
from pathlib import Path

from PIL import Image

from data_prep.config import MAX_DECODED_PIXELS
from data_prep.errors import DataError
from data_prep.manifest import ShardInfo
from data_prep.schema import IMAGE_EXTENSIONS, ImageFacts, Sample, sample_key
from data_prep.shards import IndexRow
from data_prep.verification.members import DamagedTar, Member, member_at, read_at, walk_members
from data_prep.verification.problems import Problems

_MEMBER_NAME = re.compile(rf"([0-9]{{9,18}})\.(json|{'|'.join(IMAGE_EXTENSIONS.values())})")


@dataclass(frozen=True, kw_only=True)
class ShardCheck:
    """What one shard is compared with.

    Attributes:
        folder: Folder of the dataset.
        number: Place of the shard in the manifest's list.
        info: What the manifest says of it.
        rows: What the index says of it, in order; None where there is no index to compare with.
        shard_size: Positions that a shard covers.
        shared: Whether samples may share the bytes of an image.
        decode: Whether every pixel is decoded, and not headers alone.
    """

    folder: str
    number: int
    info: ShardInfo
    rows: Sequence[IndexRow] | None
    shard_size: int
    shared: bool
    decode: bool


@dataclass
class ShardFindings:
    """What came of a check: the problems, and how much was looked at."""

    bytes: int
    samples: int = 0
    images: int = 0
    problems: Problems = field(default_factory=Problems)


def check_shard(check: ShardCheck) -> ShardFindings:
    """Reads a shard and notes everything that is wrong with it; raises nothing."""
    findings = ShardFindings(bytes=check.info.bytes)
    path = Path(check.folder, check.info.name)
    try:
        # Asked first, since opening a pipe would wait forever.
        if not path.is_file():
            findings.problems.add(check.info.name, "the file is missing")
            return findings
        with path.open("rb") as file:
            _ShardReading(check, file, path.stat().st_size, findings).run()
    except OSError as error:
        findings.problems.add(check.info.name, f"cannot be read: {error.strerror or error}")
    except Exception as error:
        # The boundary to damage that nobody foresaw: it is one more problem of this shard.
        what = f"checking it failed with {type(error).__name__}: {error}"
        findings.problems.add(check.info.name, what)
    return findings


class _ShardReading:
    def __init__(
        self, check: ShardCheck, file: BufferedReader, size: int, findings: ShardFindings
    ) -> None:
        self._check, self._file, self._size, self._findings = check, file, size, findings
        self._name = check.info.name
        self._images: dict[int, tuple[str, str | None]] = {}
        self._used: set[int] = set()

    def _problem(self, what: str, row: IndexRow | None = None) -> None:
        where = self._name if row is None else f"{self._name}, {row.uid!r:.120}"
        self._findings.problems.add(where, what)

    def run(self) -> None:
        """Makes all checks, each independent of what the others found."""
        info = self._check.info
        if self._size != info.bytes:
            self._problem(f"{self._size} bytes, the manifest says {info.bytes}")
        digest = hashlib.file_digest(self._file, "sha256").hexdigest()
        if digest != info.sha256:
            self._problem("its SHA-256 is not the manifest's")
        if self._check.rows is not None:
            self._check_rows(self._check.rows)
        self._check_members()

    def _check_rows(self, rows: Sequence[IndexRow]) -> None:
        info = self._check.info
        if len(rows) != info.samples:
            self._problem(f"the index has {len(rows)} samples, the manifest says {info.samples}")
        tasks = dict(sorted(Counter(row.task for row in rows).items()))
        if info.tasks is not None and tasks != info.tasks:
            self._problem(f"the index has the tasks {tasks}, the manifest {info.tasks}")
        first = self._check.number * self._check.shard_size
        for row in rows:
            if not first <= row.position < first + self._check.shard_size:
                self._problem(f"position {row.position} does not belong into this shard", row)
            self._check_row(row)
            self._findings.samples += 1

    def _check_row(self, row: IndexRow) -> None:
        record = self._member(row, "record", row.json_offset, row.json_size)
        if record is None:
            return
        if record.name != f"{sample_key(row.position)}.json":
            self._problem(f"its record is called {record.name!r:.80}", row)
        try:
            sample = Sample.from_json(self._content(record))
        except DataError as error:
            self._problem(str(error), row)
            return
        if sample.uid != row.uid:
            self._problem(f"its record is of {sample.uid!r:.120}", row)
        if sample.task != row.task:
            self._problem(f"a {sample.task} sample, the index says {row.task!r:.80}", row)
        image = self._member(row, "image", row.image_offset, row.image_size)
        if image is not None:
            self._check_image(row, image, sample.image)

    def _member(self, row: IndexRow, what: str, offset: int, size: int) -> Member | None:
        """The member that a row points at, when it lies in the file and is of the right size."""
        if offset < 0 or size < 0 or offset + size > self._size:
            self._problem(f"its {what} lies beyond the end, at {offset} + {size} bytes", row)
            return None
        member = member_at(self._file, offset)
        if member is None:
            self._problem(f"there is no {what} at byte {offset}", row)
            return None
        self._used.add(offset)
        if member.size != size:
            self._problem(f"its {what} has {member.size} bytes, the index says {size}", row)
            return None
        return member

    def _content(self, member: Member) -> bytes:
        return read_at(self._file, member.offset, member.size)

    def _check_image(self, row: IndexRow, image: Member, facts: ImageFacts) -> None:
        key = sample_key(row.position)
        found, _, extension = image.name.partition(".")
        if extension != IMAGE_EXTENSIONS[facts.format]:
            self._problem(f"a {facts.format} image is called {image.name!r:.80}", row)
        if found != key and not (self._check.shared and found < key):
            self._problem(f"its image is called {image.name!r:.80}", row)
        if image.offset not in self._images:
            self._images[image.offset] = self._examine(image, facts)
            self._findings.images += 1
        digest, damage = self._images[image.offset]
        if digest != facts.sha256:
            self._problem("its image has another SHA-256 than its record says", row)
        if damage is not None:
            self._problem(damage, row)

    def _examine(self, image: Member, facts: ImageFacts) -> tuple[str, str | None]:
        content = self._content(image)
        return hashlib.sha256(content).hexdigest(), image_damage(content, facts, self._check.decode)

    def _check_members(self) -> None:
        seen: Counter[str] = Counter()
        try:
            for member in walk_members(self._file, self._size):
                seen[member.name] += 1
                if not _MEMBER_NAME.fullmatch(member.name):
                    self._problem(f"{member.name!r:.120} cannot be the name of a member")
                elif self._check.rows is not None and member.offset not in self._used:
                    self._problem(f"{member.name} is not in the index")
                if seen[member.name] == 2:
                    self._problem(f"{member.name!r:.120} is there twice")
        except DamagedTar as damage:
            self._problem(str(damage))


def image_damage(content: bytes, facts: ImageFacts, decode: bool) -> str | None:
    """Compares an image with its facts.

    Args:
        content: Its bytes.
        facts: What its record says.
        decode: Whether all pixels are decoded; the header is always read.

    Returns:
        What is wrong, or None.
    """
    try:
        with warnings.catch_warnings():
            # Of size, Pillow warns; here it is judged below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(content), formats=tuple(IMAGE_EXTENSIONS))
        # A JPEG that holds further pictures behind the first is a JPEG.
        found = "JPEG" if image.format == "MPO" else image.format
        if (found, *image.size) != (facts.format, facts.width, facts.height):
            return (
                f"its image is a {found} of {image.width} x {image.height} pixels, its record "
                f"says {facts.format} of {facts.width} x {facts.height}"
            )
        if decode:
            if image.width * image.height > MAX_DECODED_PIXELS:
                return f"its image of {image.width} x {image.height} pixels is too large to decode"
            image.load()
    except Exception as error:
        # Parsers of damaged images raise nearly anything; every case is a problem of the image.
        return f"its image cannot be read, {type(error).__name__}: {error}"
    return None
