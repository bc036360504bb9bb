"""What to do about what a source showed: the mistakes that people make most, by their traces."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from data_prep.config import PrepareConfig, SourceConfig
from data_prep.errors import DataError
from data_prep.linting.source import SourceLint
from data_prep.quarantine import Reason
from data_prep.readers.refer import load_plain_pickle

_LISTED = 200
_MANY = 0.5
_WORDS = {
    Reason.SIZE_MISMATCH: "boxes are in pixels of other files: are these resized copies of the "
    "images, or those of another dataset?",
    Reason.TOO_MANY_PIXELS: "raise image.max_pixels if such large images are meant to be used",
    Reason.UNKNOWN_IMAGE: "the annotations name images that their own list lacks: is it a cut or "
    "merged file?",
    Reason.UNKNOWN_ANNOTATION: "refs(*).p and instances.json do not belong together: take both "
    "from one folder of REFER",
    Reason.UNKNOWN_QUESTION: "questions and annotations are of different splits",
    Reason.NO_ANSWERS: "questions and annotations are of different splits; for a test split, "
    "leave 'annotations' out",
    Reason.BAD_LABEL: "labels without a meaning are dropped, such as SNLI-VE's '-'; a share like "
    "the source's is harmless",
    Reason.DUPLICATE_UID: "the source names a sample twice; one of them is kept",
}


def advise(source: SourceConfig, found: SourceLint, config: PrepareConfig) -> None:
    """Adds to a source's errors and advice what its numbers and examples mean."""
    if found.errors:
        return
    if found.seen == 0:
        found.errors.append(_nothing(source))
        return
    if found.rejected.total() == found.seen:
        found.errors.append(f"all of the {found.seen} annotations looked at would be rejected")
    share = found.rejected.total() / found.seen
    if config.max_reject_rate < share < 1:
        found.advice.append(
            f"{share:.1%} of {found.name} would be rejected, max_reject_rate is "
            f"{config.max_reject_rate:.1%}: repair the source, or raise the limit"
        )
    missing = found.rejected[Reason.MISSING_IMAGE]
    if missing >= _MANY * found.seen:
        found.advice.extend(_missing_images(source, found))
    elif missing:
        found.advice.append("some images are missing: was the download or the unpacking cut short?")
    found.advice.extend(words for reason, words in _WORDS.items() if found.rejected[reason])


def splits_of(source: SourceConfig) -> Counter[str] | None:
    """Annotations by split, where a format's files hold several splits; else None."""
    if source.reader != "refer":
        return None
    refs = load_plain_pickle(str(source.annotations))
    return Counter(str(ref.get("split")) for ref in refs if isinstance(ref, dict))


def _nothing(source: SourceConfig) -> str:
    try:
        splits = splits_of(source)
    except DataError as error:
        return str(error)
    if splits is None or source.split in splits:
        return "the annotation files hold no annotation"
    known = ", ".join(f"{name} ({count})" for name, count in sorted(splits.items()))
    return f"split {source.split!r} is not in {source.annotations}; it has {known or 'none'}"


def _missing_images(source: SourceConfig, found: SourceLint) -> Iterator[str]:
    tried = found.examples[Reason.MISSING_IMAGE].detail.partition(":")[0]
    if source.images is None:
        yield f"no image is called {tried!r}: the files of the source hold the images themselves"
        return
    if not Path(source.images).is_dir():
        yield f"no image is called {tried!r} in {source.images}; 'images' may name a folder in it"
        return
    names = _some_names(source.images)
    if not names:
        yield f"{source.images} is empty: unpack the images there, or correct 'images'"
        return
    yield f"no image is called {tried!r}; {source.images} holds {names[0]!r}"
    pattern = _pattern(names)
    if source.reader in ("vqav2", "snli_ve") and pattern is not None:
        yield f'set image_name: "{pattern}"'
    else:
        yield "'images' has to be the folder that the names in the annotations are relative to"


def _some_names(folder: str) -> list[str]:
    """A few names, without listing a folder of a hundred thousand."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in islice(entries, _LISTED))
    except OSError:
        return []


def _pattern(names: list[str]) -> str | None:
    """COCO's kind of names, prefix and twelve digits, as a pattern of the id."""
    for name in names:
        parts = re.fullmatch(r"([^{}]*?)([0-9]{12})(\.[A-Za-z]+)", name)
        if parts is not None:
            return f"{parts[1]}{{id:012d}}{parts[3]}"
    return None
