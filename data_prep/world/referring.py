"""What a phrase picks out of a scene: the judge that keeps phrases and questions unambiguous."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from data_prep.world.scene import Scene, Thing
from data_prep.world.vocabulary import PAIRS, SIZE_SYNONYM, SIZES

Relation = Literal["left", "right", "above", "below"]
RELATIONS: tuple[Relation, ...] = get_args(Relation)
HORIZONTAL: tuple[Relation, ...] = ("left", "right")
VERTICAL: tuple[Relation, ...] = ("above", "below")
# People mention a landmark even where the rest of the phrase would do.
NEEDED_SHARE = 0.4


@dataclass(frozen=True)
class Phrase:
    """A noun phrase by up to three attributes; None leaves an attribute open."""

    size: str | None = None
    colour: str | None = None
    shape: str | None = None

    def fits(self, thing: Thing) -> bool:
        """Whether the thing has every attribute that the phrase names."""
        return (
            self.size in (None, thing.size)
            and self.colour in (None, thing.colour)
            and self.shape in (None, thing.shape)
        )

    def found_in(self, scene: Scene) -> list[Thing]:
        """All things of the scene that the phrase fits, left to right."""
        return [thing for thing in scene.things if self.fits(thing)]

    def words(self, *, noun: str = "thing", synonyms: bool = False) -> str:
        """The phrase without article, as `small red circle`; `noun` stands in for an open shape."""
        size = SIZE_SYNONYM[self.size] if synonyms and self.size else self.size
        return " ".join(word for word in (size, self.colour, self.shape or noun) if word)

    def plural(self, *, noun: str = "shape", synonyms: bool = False) -> str:
        """The phrase for several things, such as `small red circles`."""
        return self.words(noun=noun, synonyms=synonyms) + "s"


def full_phrase(thing: Thing) -> Phrase:
    """All three attributes of a thing."""
    return Phrase(thing.size, thing.colour, thing.shape)


def partial_phrases(thing: Thing) -> Iterator[Phrase]:
    """The seven phrases that name at least one attribute of the thing, shorter ones first."""
    for wanted in sorted(itertools.product((False, True), repeat=3), key=sum):
        if any(wanted):
            yield Phrase(
                thing.size if wanted[0] else None,
                thing.colour if wanted[1] else None,
                thing.shape if wanted[2] else None,
            )


def unique_phrases(scene: Scene, thing: Thing) -> list[Phrase]:
    """Phrases that fit this thing and no other in the scene, shorter first; empty for a twin."""
    return [phrase for phrase in partial_phrases(thing) if len(phrase.found_in(scene)) == 1]


def pick_unique(rng: random.Random, scene: Scene, thing: Thing) -> Phrase | None:
    """One unique phrase of the thing, more often a short one, as people are brief."""
    phrases = unique_phrases(scene, thing)
    if not phrases:
        return None
    return min(rng.choice(phrases), rng.choice(phrases), key=phrases.index)


def holds(relation: Relation, thing: Thing, landmark: Thing) -> bool:
    """Whether the thing's centre lies on that side of the landmark's centre."""
    (x, y), (landmark_x, landmark_y) = thing.centre, landmark.centre
    if relation == "left":
        return x < landmark_x
    if relation == "right":
        return x > landmark_x
    return y < landmark_y if relation == "above" else y > landmark_y


def clearly_holds(relation: Relation, thing: Thing, landmark: Thing) -> bool:
    """Whether the whole box lies on that side of the landmark's box, as people mean it."""
    a, b = thing.box, landmark.box
    if relation == "left":
        return a[2] <= b[0]
    if relation == "right":
        return a[0] >= b[2]
    return a[3] <= b[1] if relation == "above" else a[1] >= b[3]


@dataclass(frozen=True, kw_only=True)
class RelationalReference:
    """`target` described by `phrase` and by where it lies, seen from a landmark."""

    target: Thing
    phrase: Phrase
    relation: Relation
    landmark: Phrase


def relational_references(
    rng: random.Random, scene: Scene, *, relations: tuple[Relation, ...] = RELATIONS
) -> list[RelationalReference]:
    """References that pick out exactly one thing, by each relation that clearly holds.

    The relation is needed to find the target in `NEEDED_SHARE` of the cases where it can be; then
    no other thing that the phrase fits may lie on that side of the landmark at all.
    """
    found = []
    for target, landmark in itertools.permutations(scene.things, 2):
        landmark_phrase = pick_unique(rng, scene, landmark)
        if landmark_phrase is None:
            continue
        for relation in relations:
            if not clearly_holds(relation, target, landmark):
                continue
            phrase = _target_phrase(rng, scene, target, landmark, relation)
            if phrase is not None:
                found.append(
                    RelationalReference(
                        target=target, phrase=phrase, relation=relation, landmark=landmark_phrase
                    )
                )
    return found


def _target_phrase(
    rng: random.Random, scene: Scene, target: Thing, landmark: Thing, relation: Relation
) -> Phrase | None:
    rivals = [
        thing for thing in scene.things if thing is not target and holds(relation, thing, landmark)
    ]
    decided = [
        phrase
        for phrase in (Phrase(), *partial_phrases(target))
        if not any(phrase.fits(rival) for rival in rivals)
    ]
    needing = [phrase for phrase in decided if len(phrase.found_in(scene)) > 1]
    free = [phrase for phrase in decided if len(phrase.found_in(scene)) == 1]
    if needing and (not free or rng.random() < NEEDED_SHARE):
        return rng.choice(needing)
    return rng.choice(free) if free else None


def extreme(scene: Scene, phrase: Phrase, relation: Relation) -> Thing:
    """The thing furthest to that side among those that the phrase fits (at least one must)."""
    things = phrase.found_in(scene)
    axis = 0 if relation in HORIZONTAL else 1
    if relation in ("left", "above"):
        return min(things, key=lambda thing: thing.centre[axis])
    return max(things, key=lambda thing: thing.centre[axis])


def absent_phrase(rng: random.Random, scene: Scene) -> Phrase | None:
    """A phrase of the domain that nothing in the scene fits but that resembles something in it."""
    for _ in range(20):
        model = rng.choice(scene.things)
        colour, shape = rng.choice(
            [pair for pair in PAIRS[scene.domain] if model.colour in pair or model.shape in pair]
        )
        phrase = Phrase(rng.choice((None, *SIZES)), colour, shape)
        if not phrase.found_in(scene):
            return phrase
    return None


def opposite(relation: Relation) -> Relation:
    """The relation seen from the other thing."""
    opposites: dict[Relation, Relation] = {
        "left": "right",
        "right": "left",
        "above": "below",
        "below": "above",
    }
    return opposites[relation]
