"""Views of an image: boxes stay around what they were around, whatever is drawn."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.schema import Box, ImageFacts, Sample
from model.checkpoint import TOKENIZER_FILE, load_config
from model.tokenizer import OFATokenizer
from pipeline.training.augmentation import AugmentationConfig, ViewConfig, augmented
from pipeline.training.data import Batch, Collator, ShardReader
from pipeline.training.data_config import DataConfig
from pipeline.training.loader import BatchMaker, Loader, build_order
from tests.support.small_world import prepared_world
from tests.support.training_run import small_base

_COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def sample_of(task: str, size: tuple[int, int], boxes: list[Box], text: str = "it") -> Sample:
    facts = ImageFacts(
        width=size[0],
        height=size[1],
        format="PNG",
        sha256="0",
        original_width=size[0],
        original_height=size[1],
        name="a.png",
    )
    return Sample(
        uid="s/1",
        task=task,
        source="s",
        split="train",
        image=facts,
        text=text if task == "grounding" else None,
        boxes=tuple(boxes),
        instruction=" x",
    )


def painted(size: tuple[int, int], boxes: list[Box]) -> Image.Image:
    """A black image in which each box has a colour of its own."""
    image = Image.new("RGB", size)
    for box, colour in zip(boxes, _COLOURS, strict=False):
        image.paste(colour, tuple(int(c) for c in box.box))
    return image


def where(view: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int] | None:
    """The bounds of a colour's pixels."""
    rows, columns = np.nonzero((np.asarray(view) == colour).all(axis=-1))
    if not len(rows):
        return None
    return (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)


def spans(length: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(0, length - 1), st.integers(1, length)).filter(
        lambda ends: ends[0] < ends[1]
    )


@st.composite
def scenes(draw: st.DrawFn) -> tuple[tuple[int, int], Box, ViewConfig, int]:
    width, height = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    (x0, x1), (y0, y1) = draw(spans(width)), draw(spans(height))
    low = draw(st.floats(0.3, 4))
    view = ViewConfig(
        zoom=(low, draw(st.floats(low, 6))), mirror=draw(st.sampled_from([0.0, 0.5, 1.0]))
    )
    box = Box(box=(float(x0), float(y0), float(x1), float(y1)), label="it")
    return (width, height), box, view, draw(st.integers(0, 10**6))


@given(scenes())
@settings(max_examples=300, deadline=None)
def test_the_box_of_an_expression_is_whole_and_where_its_pixels_are(
    scene: tuple[tuple[int, int], Box, ViewConfig, int],
) -> None:
    size, box, config, seed = scene
    sample, image = sample_of("grounding", size, [box]), painted(size, [box])
    seen, view = augmented(sample, image, config, random.Random(seed))
    assert (seen.image.width, seen.image.height) == view.size
    assert seen.boxes[0].box == where(view, _COLOURS[0])
    x0, y0, x1, y1 = seen.boxes[0].box
    assert (x1 - x0, y1 - y0) == (box.box[2] - box.box[0], box.box[3] - box.box[1])


@given(scenes())
@settings(max_examples=300, deadline=None)
def test_the_boxes_of_objects_are_what_can_be_seen_of_them(
    scene: tuple[tuple[int, int], Box, ViewConfig, int],
) -> None:
    size, box, config, seed = scene
    sample, image = sample_of("detection", size, [box]), painted(size, [box])
    seen, view = augmented(sample, image, config, random.Random(seed))
    assert seen.boxes[0].box == where(view, _COLOURS[0])
    x0, y0, x1, y1 = box.box
    left, top, right, bottom = seen.boxes[0].box
    assert (right - left) * (bottom - top) >= 0.5 * (x1 - x0) * (y1 - y0)


def test_corners_between_pixels_move_exactly() -> None:
    box = Box(box=(10.25, 20.5, 30.75, 40.125), label="it")
    sample, image = sample_of("grounding", (64, 48), [box]), Image.new("RGB", (64, 48))
    config = ViewConfig(zoom=(1.2, 2.0))
    starts = set()
    for seed in range(20):
        seen, _ = augmented(sample, image, config, random.Random(seed))
        x0, y0, x1, y1 = seen.boxes[0].box
        assert (x1 - x0, y1 - y0) == (20.5, 19.625)
        assert (10.25 - x0) % 1 == (20.5 - y0) % 1 == 0
        starts.add((x0, y0))
    assert len(starts) > 10


def test_objects_that_are_mostly_outside_are_not_told_of_and_the_order_is_kept() -> None:
    boxes = [
        Box(box=(0.0, 0.0, 10.0, 10.0), label="a"),
        Box(box=(20.0, 20.0, 30.0, 30.0), label="b"),
        Box(box=(40.0, 40.0, 50.0, 50.0), label="c"),
    ]
    sample, image = sample_of("detection", (50, 50), boxes), painted((50, 50), boxes)
    told = set()
    for seed in range(60):
        seen, view = augmented(
            sample, image, ViewConfig(zoom=(1.5, 2.5), mirror=0.5), random.Random(seed)
        )
        assert [box.box for box in seen.boxes] == sorted(box.box for box in seen.boxes)
        for box in seen.boxes:
            assert box.box == where(view, _COLOURS["abc".index(str(box.label))])
        told.add(tuple(sorted(str(box.label) for box in seen.boxes)))
    assert {("b",), ("b", "c")} <= told


@pytest.mark.parametrize("text", ["the LEFT one", "rightmost ball", "turning clockwise"])
def test_a_text_that_names_a_side_is_never_mirrored(text: str) -> None:
    box = Box(box=(0.0, 0.0, 10.0, 10.0))
    config = ViewConfig(mirror=1.0)
    for words, x0 in ((text, 0.0), ("an upright bright bottle", 40.0)):
        sample = sample_of("grounding", (50, 50), [box], text=words)
        seen, view = augmented(sample, painted((50, 50), [box]), config, random.Random(1))
        assert seen.boxes[0].box[0] == x0
        assert seen.boxes[0].box == where(view, _COLOURS[0])


def test_what_is_beside_the_image_is_grey() -> None:
    sample = replace(sample_of("detection", (10, 10), []), task="caption")
    image = Image.new("L", (10, 10), 255)
    seen, view = augmented(sample, image, ViewConfig(zoom=(0.5, 0.5)), random.Random(3))
    assert (seen.image.width, view.size) == (20, (20, 20))
    pixels = np.asarray(view)
    assert (pixels == 255).all(axis=-1).sum() == 100
    assert (pixels == 128).all(axis=-1).sum() == 300


def test_without_settings_nothing_is_touched() -> None:
    sample, image = sample_of("detection", (10, 10), []), Image.new("P", (10, 10))
    assert augmented(sample, image, ViewConfig(), random.Random(0)) == (sample, image)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ViewConfig(zoom=(2.0, 1.0)), "zoom must rise"),
        (lambda: ViewConfig(zoom=(0.01, 1.0)), "zoom must rise"),
        (lambda: ViewConfig(mirror=1.5), "mirror must be between"),
        (lambda: AugmentationConfig(vqa=ViewConfig(mirror=0.5)), r"vqa\.mirror = 0\.5: must be 0"),
    ],
)
def test_impossible_settings_are_refused(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_world(tmp_path_factory.mktemp("prepared"), scenes=4)


def seen_by(prepared: Path, base: Path, *, ranks: int, workers: int, first: int) -> list[Batch]:
    """What the ranks see from a step on, in the order of their places."""
    tokenizer = OFATokenizer.from_file(base / TOKENIZER_FILE)
    view = ViewConfig(zoom=(0.8, 1.5), mirror=0.5)
    views = AugmentationConfig(grounding=view, detection=view, caption=ViewConfig(zoom=(1, 1.2)))
    collate = Collator(tokenizer, load_config(str(base)), 32)
    batches = []
    for rank in range(ranks):
        with ShardReader(prepared) as reader:
            order = build_order([reader], DataConfig(streams=4), seed=4)
            maker = BatchMaker([reader], collate, 4, views)
            with Loader(
                order,
                maker,
                rank=rank,
                ranks=ranks,
                batch_size=1,
                accumulation=4 // ranks,
                workers=workers,
            ) as loader:
                batches.append([b for step in loader.steps(first, 4) for b in step])
    return [batch for row in zip(*batches, strict=True) for batch in row]


def test_views_depend_on_seed_and_place_alone(
    prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = small_base(tmp_path_factory.mktemp("base") / "base", prepared)
    alone = seen_by(prepared, base, ranks=1, workers=0, first=0)
    pair = seen_by(prepared, base, ranks=2, workers=2, first=0)
    late = seen_by(prepared, base, ranks=1, workers=3, first=2)
    for one, other in [*zip(alone, pair, strict=True), *zip(alone[8:], late, strict=True)]:
        assert one.uids == other.uids
        assert one.images_BCHW.equal(other.images_BCHW)
        assert one.target_BT.equal(other.target_BT)
    # The same samples come again in a later epoch, seen in another way.
    with ShardReader(prepared) as reader:
        plain = {uid: row for row, uid in enumerate(reader.uids)}
        changed = [
            batch.samples[0].image != reader.read(plain[batch.uids[0]])[0].image for batch in alone
        ]
    assert any(changed)
