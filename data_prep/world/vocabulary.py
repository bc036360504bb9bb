"""What the world is made of: colours, shapes, sizes, and which pairs belong to which domain.

Every colour and every shape occurs in both domains, but no (colour, shape) pair does: a model that
was pretrained on `upstream` has seen each attribute of `downstream`, never the combination.
"""

from typing import Literal, get_args

Domain = Literal["upstream", "downstream"]
Split = Literal["train", "val", "test"]
Expressions = Literal["varied", "full"]

DOMAINS: tuple[Domain, ...] = get_args(Domain)
SPLITS: tuple[Split, ...] = get_args(Split)
EXPRESSIONS: tuple[Expressions, ...] = get_args(Expressions)

# Saturated and far apart, so that they survive JPEG's chroma subsampling and the muted backgrounds.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 40),
    "green": (36, 172, 62),
    "blue": (38, 84, 222),
    "yellow": (242, 208, 36),
    "purple": (166, 56, 200),
    "white": (246, 246, 246),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star")
SIZES: tuple[str, ...] = ("small", "big")

Pair = tuple[str, str]

DOWNSTREAM_PAIRS: tuple[Pair, ...] = (
    ("red", "triangle"),
    ("red", "star"),
    ("green", "circle"),
    ("green", "square"),
    ("blue", "square"),
    ("blue", "star"),
    ("yellow", "circle"),
    ("yellow", "triangle"),
    ("purple", "circle"),
    ("white", "triangle"),
)
UPSTREAM_PAIRS: tuple[Pair, ...] = tuple(
    (colour, shape)
    for colour in COLOURS
    for shape in SHAPES
    if (colour, shape) not in DOWNSTREAM_PAIRS
)
PAIRS: dict[Domain, tuple[Pair, ...]] = {
    "upstream": UPSTREAM_PAIRS,
    "downstream": DOWNSTREAM_PAIRS,
}

# The same sizes and numbers in other words: upstream answers with the first, downstream with the
# second.
SIZE_SYNONYM: dict[str, str] = {"small": "little", "big": "large"}
NUMBER_WORDS: tuple[str, ...] = ("no", "one", "two", "three", "four", "five")

CATEGORIES: tuple[str, ...] = tuple(
    f"{size} {colour} {shape}" for size in SIZES for colour in COLOURS for shape in SHAPES
)
CATEGORY_IDS: dict[str, int] = {name: number for number, name in enumerate(CATEGORIES, start=1)}
