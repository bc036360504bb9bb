"""Other views of a sample's image: zoomed, cropped, padded or mirrored, boxes and all.

A view is a window of whole pixels in the stored image, which then takes the image's place. So
boxes move by whole pixels, and stay exactly around what they were around; all resizing comes later,
as for an image without a view. The published tuning recipes resize only, hence every view is off
until a recipe asks for it.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

from PIL import Image, ImageOps

from data_prep.schema import Box, Sample

_GREY = (128, 128, 128)
"""Beside the image: as near to 0 as a pixel comes once it is scaled to -1..1."""
_SIDED = re.compile(r"\b(left|right|east|west|clockwise|counterclockwise|anticlockwise)", re.I)
_LEAST_VISIBLE = 0.5


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """The views of one task's images that training sees. The default is the image as it is."""

    zoom: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest zoom; each view draws one in between. Above 1 the image is cropped to
    1/zoom of its sides, below 1 it stands in a grey frame of 1/zoom of its sides; where is drawn,
    too."""
    mirror: float = 0.0
    """Share of the views in which left and right are exchanged."""

    def __post_init__(self) -> None:
        low, high = self.zoom
        # The frame of a smaller zoom takes more memory than a batch.
        if not 0.25 <= low <= high <= 10:
            raise ValueError(f"zoom must rise within 0.25 to 10, not {list(self.zoom)}")
        if not 0 <= self.mirror <= 1:
            raise ValueError(f"mirror must be between 0 and 1, not {self.mirror}")

    @property
    def changes(self) -> bool:
        """Whether any view differs from the image."""
        return self.zoom != (1.0, 1.0) or self.mirror > 0


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Views of the training images by task; validation and evaluation see images as they are."""

    caption: ViewConfig = field(default_factory=ViewConfig)
    """A crop may hide what a caption tells of. Sentences speak of sides: it cannot mirror."""
    vqa: ViewConfig = field(default_factory=ViewConfig)
    """A crop may hide what a question asks for. Questions speak of sides: it cannot mirror."""
    grounding: ViewConfig = field(default_factory=ViewConfig)
    """A view always holds the whole box. A sample whose text names a side is never mirrored."""
    entailment: ViewConfig = field(default_factory=ViewConfig)
    """A crop may hide what a statement tells of. Statements speak of sides: it cannot mirror."""
    detection: ViewConfig = field(default_factory=ViewConfig)
    """Boxes are cut at the edge; an object that is visible by less than half is not told of."""

    def __post_init__(self) -> None:
        for task in ("caption", "vqa", "entailment"):
            if self.of(task).mirror:
                raise ValueError(
                    f"{task}.mirror = {self.of(task).mirror}: must be 0, since its texts speak of"
                    " left and right; only grounding and detection can be mirrored"
                )

    @property
    def changes(self) -> bool:
        """Whether any task has views that differ from the image."""
        return any(getattr(self, each.name).changes for each in fields(self))

    def of(self, task: str) -> ViewConfig:
        """The views of a task."""
        config: ViewConfig = getattr(self, task)
        return config


class _Window(NamedTuple):
    """Whole pixels of the stored image; parts may lie outside of it."""

    x0: int
    y0: int
    x1: int
    y1: int


def augmented(
    sample: Sample, image: Image.Image, config: ViewConfig, rng: random.Random
) -> tuple[Sample, Image.Image]:
    """A view of a sample.

    Args:
        sample: The sample.
        image: Its stored image.
        config: The views of the sample's task.
        rng: Draws the view, and nothing else.

    Returns:
        The sample with the boxes and the size of the view, and the view. Both are as they came in
        where no view differs, or where detection's window would show no object well enough.
    """
    if not config.changes:
        return sample, image
    window = _window(sample, config.zoom, rng)
    mirrored = rng.random() < config.mirror and not _SIDED.search(sample.text or "")
    seen = _boxes_in(sample, window)
    if sample.boxes and not seen:
        return sample, image
    view = _cut(image.convert("RGB"), window)
    if mirrored:
        view = ImageOps.mirror(view)
        seen = [_mirrored(box, view.width) for box in seen]
    if sample.task == "detection":
        # The order that prepared samples have.
        seen.sort(key=lambda box: (*box.box, box.label))
    facts = replace(sample.image, width=view.width, height=view.height)
    return replace(sample, image=facts, boxes=tuple(seen)), view


def _window(sample: Sample, zoom: tuple[float, float], rng: random.Random) -> _Window:
    width, height = sample.image.width, sample.image.height
    drawn = rng.uniform(*zoom)
    if sample.task == "grounding":
        # No window is smaller than the box that the answer names.
        x0, y0, x1, y1 = _whole_pixels(sample.boxes[0])
        drawn = min(drawn, width / (x1 - x0), height / (y1 - y0))
        across = _span(width, drawn, (x0, x1), rng)
        down = _span(height, drawn, (y0, y1), rng)
    else:
        across, down = _span(width, drawn, None, rng), _span(height, drawn, None, rng)
    return _Window(across[0], down[0], across[1], down[1])


def _span(
    length: int, zoom: float, kept: tuple[int, int] | None, rng: random.Random
) -> tuple[int, int]:
    """Where a window of 1/zoom of a side lies: inside the side, or around all of it."""
    size = max(1, round(length / zoom), kept[1] - kept[0] if kept else 1)
    low, high = min(0, length - size), max(0, length - size)
    if kept:
        low, high = max(low, kept[1] - size), min(high, kept[0])
    start = rng.randint(low, high)
    return start, start + size


def _whole_pixels(box: Box) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = box.box
    return math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)


def _boxes_in(sample: Sample, window: _Window) -> list[Box]:
    """The boxes in the window's pixels, cut at its edge, without those that are mostly outside."""
    found = []
    for box in sample.boxes:
        x0, y0, x1, y1 = box.box
        left, top = max(x0, window.x0) - window.x0, max(y0, window.y0) - window.y0
        right, bottom = min(x1, window.x1) - window.x0, min(y1, window.y1) - window.y0
        if left >= right or top >= bottom:
            continue
        if (right - left) * (bottom - top) >= _LEAST_VISIBLE * (x1 - x0) * (y1 - y0):
            found.append(replace(box, box=(left, top, right, bottom)))
    return found


def _cut(image: Image.Image, window: _Window) -> Image.Image:
    if min(window) >= 0 and window.x1 <= image.width and window.y1 <= image.height:
        return image.crop(window)
    view = Image.new("RGB", (window.x1 - window.x0, window.y1 - window.y0), _GREY)
    view.paste(image, (-window.x0, -window.y0))
    return view


def _mirrored(box: Box, width: int) -> Box:
    x0, y0, x1, y1 = box.box
    return replace(box, box=(width - x1, y0, width - x0, y1))
