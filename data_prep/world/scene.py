"""Scenes: two to five shapes, far enough apart that each spatial statement is true or false.

A scene is a function of (seed, domain, split, index), so any process can make any scene.
"""

import math
import random
from dataclasses import dataclass

from data_prep.world.vocabulary import COLOURS, PAIRS, SIZES, Domain, Pair, Split

MIN_SIDE, MAX_SIDE = 96, 160
# More big things than this seldom find room for all.
MAX_BIG_THINGS = 2
# Diameters as shares of the geometric mean of the image's sides: the gap between the classes keeps
# "small" and "big" apart even where the image is later squeezed to a square.
SIZE_SHARES: dict[str, tuple[float, float]] = {"small": (0.17, 0.2), "big": (0.29, 0.35)}
# Centres differ by at least this share of the side in both directions, so left/right and
# above/below are decided.
MIN_CENTRE_GAP = 0.06
MIN_BOX_GAP = 0.02
BACKGROUNDS: tuple[str, ...] = ("plain", "gradient", "noise", "stripes")

# Image ids are unique over splits and domains, as COCO's are over its years.
_SPLIT_BASE: dict[Split, int] = {"train": 0, "val": 10_000_000, "test": 20_000_000}
_DOMAIN_BASE: dict[Domain, int] = {"upstream": 0, "downstream": 100_000_000}
MAX_SCENES_PER_SPLIT = 9_999_999

Outline = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One shape: attributes, outline (None for a circle) and tight box, in pixels of the image."""

    size: str
    colour: str
    shape: str
    rgb: tuple[int, int, int]
    box: tuple[float, float, float, float]
    outline: Outline | None

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box (x, y) in pixels."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2

    @property
    def kind(self) -> str:
        """The full description, which is also the detection category, as `small red circle`."""
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Background:
    """How the ground is painted: a style, two muted tones, and a seed for what is random in it."""

    style: str
    tones: tuple[tuple[int, int, int], tuple[int, int, int]]
    angle: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture before it is drawn. `things` are sorted from left to right."""

    image_id: int
    domain: Domain
    split: Split
    width: int
    height: int
    background: Background
    things: tuple[Thing, ...]

    @property
    def file_name(self) -> str:
        """The twelve-digit JPEG name, without folder."""
        return f"{self.image_id:012d}.jpg"


def scene_random(seed: int, domain: Domain, split: Split, index: int) -> random.Random:
    """The random stream of one scene.

    Strings seed Python's generator through SHA-512, so it is the same on every machine.
    """
    return random.Random(f"prefixworks-world/{seed}/{domain}/{split}/{index}")


def make_scene(rng: random.Random, domain: Domain, split: Split, index: int) -> Scene:
    """Draws the size of the image, its background and well separated things from `rng`."""
    width = rng.randint(MIN_SIDE, MAX_SIDE)
    height = min(MAX_SIDE, max(MIN_SIDE, round(width * rng.uniform(0.8, 1.25))))
    background = _make_background(rng)
    kinds = _draw_kinds(rng, PAIRS[domain], rng.choice((2, 3, 3, 4, 4, 5)))
    things = _place(rng, kinds, width, height)
    return Scene(
        image_id=_DOMAIN_BASE[domain] + _SPLIT_BASE[split] + index + 1,
        domain=domain,
        split=split,
        width=width,
        height=height,
        background=background,
        things=tuple(sorted(things, key=lambda thing: thing.centre[0])),
    )


def _make_background(rng: random.Random) -> Background:
    level = rng.randint(75, 135)
    tones = []
    for _ in range(2):
        # Two near tones: a busy ground should hide nothing, only never be the same.
        shade = level + rng.randint(-18, 18)
        red, green, blue = (shade + rng.randint(-10, 10) for _ in range(3))
        tones.append((red, green, blue))
    return Background(
        style=rng.choice(BACKGROUNDS),
        tones=(tones[0], tones[1]),
        angle=rng.uniform(0.0, math.pi),
        seed=rng.getrandbits(64),
    )


def _draw_kinds(rng: random.Random, pairs: tuple[Pair, ...], count: int) -> list[tuple[str, Pair]]:
    # The same kind twice in a picture leaves nothing to refer to it by, so it stays rare.
    kinds: list[tuple[str, Pair]] = []
    while len(kinds) < count:
        bigs = sum(size == "big" for size, _ in kinds)
        size = "small" if bigs == MAX_BIG_THINGS else rng.choice(SIZES)
        kind = (size, rng.choice(pairs))
        if kind not in kinds or rng.random() < 0.1:
            kinds.append(kind)
    return kinds


def _place(
    rng: random.Random, kinds: list[tuple[str, Pair]], width: int, height: int
) -> list[Thing]:
    while True:
        placed: list[Thing] = []
        # Big ones first: they are the hard ones to find a place for.
        for size, pair in sorted(kinds, key=lambda kind: kind[0]):
            thing = _find_place(rng, size, pair, width, height, placed)
            if thing is None:
                break
            placed.append(thing)
        else:
            return placed


def _find_place(
    rng: random.Random, size: str, pair: Pair, width: int, height: int, placed: list[Thing]
) -> Thing | None:
    thing = _make_thing(rng, size, pair, math.sqrt(width * height))
    x0, y0, x1, y1 = thing.box
    margin = 2.0
    for _ in range(40):
        dx = rng.uniform(margin, width - margin - (x1 - x0)) - x0
        dy = rng.uniform(margin, height - margin - (y1 - y0)) - y0
        moved = (x0 + dx, y0 + dy, x1 + dx, y1 + dy)
        if all(_apart(moved, other.box, width, height) for other in placed):
            return _moved(thing, dx, dy)
    return None


def _apart(
    a: tuple[float, float, float, float],
    b: tuple[float, float, float, float],
    width: int,
    height: int,
) -> bool:
    centre_x = abs(a[0] + a[2] - b[0] - b[2]) / 2
    centre_y = abs(a[1] + a[3] - b[1] - b[3]) / 2
    if centre_x < MIN_CENTRE_GAP * width or centre_y < MIN_CENTRE_GAP * height:
        return False
    gap = MIN_BOX_GAP * min(width, height)
    beside = a[2] + gap <= b[0] or b[2] + gap <= a[0]
    stacked = a[3] + gap <= b[1] or b[3] + gap <= a[1]
    return beside or stacked


def _make_thing(rng: random.Random, size: str, pair: Pair, scale: float) -> Thing:
    colour, shape = pair
    low, high = SIZE_SHARES[size]
    diameter = rng.uniform(low, high) * scale
    outline = _outline(rng, shape, diameter)
    if outline is None:
        box = (0.0, 0.0, diameter, diameter)
    else:
        xs, ys = [x for x, _ in outline], [y for _, y in outline]
        box = (min(xs), min(ys), max(xs), max(ys))
    red, green, blue = (min(255, max(0, c + rng.randint(-9, 9))) for c in COLOURS[colour])
    return Thing(
        size=size, colour=colour, shape=shape, rgb=(red, green, blue), box=box, outline=outline
    )


def _outline(rng: random.Random, shape: str, diameter: float) -> Outline | None:
    tilt = rng.uniform(-0.2, 0.2)
    if shape == "circle":
        return None
    if shape == "square":
        return _ring(4, (0.62 * diameter,), tilt + math.pi / 4)
    if shape == "triangle":
        return _ring(3, (0.60 * diameter,), tilt)
    return _ring(10, (0.60 * diameter, 0.25 * diameter), tilt)


def _ring(corners: int, radii: tuple[float, ...], tilt: float) -> Outline:
    points = []
    for corner in range(corners):
        radius = radii[corner % len(radii)]
        angle = tilt + 2 * math.pi * corner / corners
        points.append((radius * math.sin(angle), -radius * math.cos(angle)))
    return tuple(points)


def _moved(thing: Thing, dx: float, dy: float) -> Thing:
    # Rounded to hundredths of a pixel here, so that the drawing, the boxes and the JSON files
    # agree.
    x0, y0, x1, y1 = thing.box
    outline = thing.outline
    return Thing(
        size=thing.size,
        colour=thing.colour,
        shape=thing.shape,
        rgb=thing.rgb,
        box=(round(x0 + dx, 2), round(y0 + dy, 2), round(x1 + dx, 2), round(y1 + dy, 2)),
        outline=None if outline is None else tuple((x + dx, y + dy) for x, y in outline),
    )
