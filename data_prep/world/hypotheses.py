"""Hypotheses for visual entailment: true, false, or about what no picture of shapes can tell."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from data_prep.world.captions import joined, with_article
from data_prep.world.referring import (
    RELATIONS,
    Phrase,
    Relation,
    absent_phrase,
    clearly_holds,
    extreme,
    full_phrase,
    opposite,
    partial_phrases,
    pick_unique,
)
from data_prep.world.scene import Scene
from data_prep.world.vocabulary import NUMBER_WORDS, SHAPES

LABELS: tuple[str, ...] = ("entailment", "contradiction", "neutral")


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A statement and its gold label."""

    text: str
    label: str


Maker = Callable[[random.Random, Scene, bool], str | None]

_UNDECIDED: dict[str, tuple[str, ...]] = {
    "upstream": (
        "the {what} is heavy",
        "the {what} is old",
        "the {what} is new",
        "the {what} is made of wood",
        "the {what} was drawn by a child",
        "the {what} belongs to a child",
        "the {what} is moving to the left",
        "the {what} is the only one a child can move",
    ),
    "downstream": (
        "the {what} drawn by a child is heavy",
        "the old {what} belongs to a child",
        "a child can move the {what}",
        "of new wood is the {what}",
    ),
}
_SIDES: dict[str, dict[Relation, tuple[str, ...]]] = {
    "upstream": {
        "left": ("the {a} is left of the {b}", "the {a} is on the left side of the {b}"),
        "right": ("the {a} is right of the {b}", "the {a} is on the right side of the {b}"),
        "above": (
            "the {a} is above the {b}",
            "the {a} is higher than the {b}",
            "the {b} has the {a} above it",
        ),
        "below": (
            "the {a} is below the {b}",
            "the {a} is lower than the {b}",
            "the {b} has the {a} below it",
        ),
    },
    "downstream": {
        "left": ("to the left of the {b} is the {a}", "left of the {b}, the {a} can be seen"),
        "right": ("to the right of the {b} is the {a}", "right of the {b}, the {a} can be seen"),
        "above": ("above the {b} is the {a}", "above the {b}, the {a} can be seen"),
        "below": ("below the {b} is the {a}", "below the {b}, the {a} can be seen"),
    },
}
_FURTHEST: dict[str, dict[Relation, str]] = {
    "upstream": {
        "left": "the {what} is furthest to the left",
        "right": "the {what} is furthest to the right",
        "above": "the {what} is furthest above",
        "below": "the {what} is furthest below",
    },
    "downstream": {
        "left": "the leftmost thing is a {what}",
        "right": "the rightmost thing is a {what}",
        "above": "the highest thing is a {what}",
        "below": "the lowest thing is a {what}",
    },
}


def hypothesis(rng: random.Random, scene: Scene) -> Hypothesis:
    """One statement about the scene; the three labels are equally frequent."""
    while True:
        label = rng.choice(LABELS)
        if label == "neutral":
            text = _undecided(rng, scene)
        else:
            maker = rng.choices(_MAKERS, _WEIGHTS)[0]
            text = maker(rng, scene, label == "entailment")
        if text is not None:
            return Hypothesis(text=text, label=label)


def _undecided(rng: random.Random, scene: Scene) -> str | None:
    phrase = pick_unique(rng, scene, rng.choice(scene.things))
    if phrase is None:
        return None
    return rng.choice(_UNDECIDED[scene.domain]).format(what=phrase.words())


def _exists(rng: random.Random, scene: Scene, truth: bool) -> str | None:
    phrase: Phrase | None
    if truth:
        thing = rng.choice(scene.things)
        phrase = rng.choice([Phrase(None, thing.colour, thing.shape), full_phrase(thing)])
    else:
        phrase = absent_phrase(rng, scene)
    if phrase is None:
        return None
    if scene.domain == "upstream":
        templates = ("there is {}", "{} can be seen", "{} is in the picture", "the picture has {}")
        return rng.choice(templates).format(with_article(phrase))
    return f"in the picture can be seen {with_article(phrase, synonyms=True)}"


def _number(rng: random.Random, scene: Scene, truth: bool) -> str | None:
    phrase = rng.choice((Phrase(), Phrase(shape=rng.choice(scene.things).shape)))
    number = len(phrase.found_in(scene))
    if not truth:
        number = rng.choice([n for n in range(1, 6) if n != number])
    word = NUMBER_WORDS[number]
    if scene.domain == "downstream":
        what = phrase.words(noun="shape") if number == 1 else phrase.plural()
        return f"{word} {what} can be seen in the picture"
    if number == 1:
        return f"there is only one {phrase.words(noun='shape')}"
    return rng.choice(
        (f"there are {word} {phrase.plural()}", f"the number of {phrase.plural()} is {word}")
    )


def _relation(rng: random.Random, scene: Scene, truth: bool) -> str | None:
    first, second = rng.sample(scene.things, 2)
    a, b = pick_unique(rng, scene, first), pick_unique(rng, scene, second)
    held = [relation for relation in RELATIONS if clearly_holds(relation, first, second)]
    if a is None or b is None or not held:
        return None
    relation = rng.choice(held) if truth else opposite(rng.choice(held))
    template = rng.choice(_SIDES[scene.domain][relation])
    return template.format(a=a.words(), b=b.words())


def _furthest(rng: random.Random, scene: Scene, truth: bool) -> str | None:
    relation = rng.choice(RELATIONS)
    outermost = extreme(scene, Phrase(), relation)
    if truth:
        phrases = list(partial_phrases(outermost))
    else:
        other = rng.choice([thing for thing in scene.things if thing is not outermost])
        phrases = [phrase for phrase in partial_phrases(other) if not phrase.fits(outermost)]
    if scene.domain == "upstream":
        phrases = [phrase for phrase in phrases if len(phrase.found_in(scene)) == 1]
    if not phrases:
        return None
    return _FURTHEST[scene.domain][relation].format(what=rng.choice(phrases).words())


def _hues(rng: random.Random, scene: Scene, truth: bool) -> str | None:
    same = len({thing.colour for thing in scene.things}) == 1
    if scene.domain == "upstream":
        texts = ("all shapes have the same hue", "the shapes do not all have the same hue")
    else:
        texts = ("of the same hue are all shapes", "not all shapes are of the same hue")
    return texts[0] if same == truth else texts[1]


def _comparison(rng: random.Random, scene: Scene, truth: bool) -> str | None:
    first, second = rng.sample(SHAPES, 2)
    counts = [len(Phrase(shape=shape).found_in(scene)) for shape in (first, second)]
    if (counts[0] > counts[1]) != truth or not sum(counts):
        return None
    if scene.domain == "upstream":
        return f"there are more {first}s than {second}s"
    return f"more {first}s than {second}s can be seen"


def _list(rng: random.Random, scene: Scene, truth: bool) -> str | None:
    things = rng.sample(scene.things, rng.choice((2, min(3, len(scene.things)))))
    phrases = [Phrase(None, thing.colour, thing.shape) for thing in things]
    if not truth:
        absent = absent_phrase(rng, scene)
        if absent is None:
            return None
        phrases[rng.randrange(len(phrases))] = absent
    words = joined([with_article(phrase) for phrase in phrases])
    return f"{words} are in the picture" if scene.domain == "upstream" else f"seen are {words}"


_MAKERS: tuple[Maker, ...] = (_exists, _number, _relation, _furthest, _hues, _comparison, _list)
_WEIGHTS: tuple[float, ...] = (3.0, 2.0, 2.5, 1.5, 0.4, 0.8, 1.0)
