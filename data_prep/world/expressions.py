"""Referring expressions that pick out exactly one thing of their scene.

`upstream` mostly names attributes, often all three of them, as descriptions in detection data do:
that is what words and looks are matched by. Where it uses a relation it says the target first.
`downstream` asks through relations, says the landmark first, and puts attributes behind the noun.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from data_prep.world.referring import (
    RELATIONS,
    Phrase,
    Relation,
    RelationalReference,
    extreme,
    full_phrase,
    partial_phrases,
    pick_unique,
    relational_references,
)
from data_prep.world.scene import Scene, Thing
from data_prep.world.vocabulary import SIZE_SYNONYM, Domain, Expressions


@dataclass(frozen=True, kw_only=True)
class Expression:
    """A text and the one thing that it means."""

    text: str
    target: Thing


Maker = Callable[[random.Random, Scene], Expression | None]

_TARGET_FIRST: dict[Relation, str] = {
    "left": "the {target} left of the {landmark}",
    "right": "the {target} right of the {landmark}",
    "above": "the {target} above the {landmark}",
    "below": "the {target} below the {landmark}",
}
_TO_THE_SIDE: dict[Relation, str] = {
    "left": "the {target} to the left of the {landmark}",
    "right": "the {target} to the right of the {landmark}",
    "above": "the {target} higher than the {landmark}",
    "below": "the {target} lower than the {landmark}",
}
_LANDMARK_FIRST: dict[Relation, tuple[str, ...]] = {
    "left": (
        "left of the {landmark}, the {target}",
        "{landmark}, the {target} on the left side of it",
    ),
    "right": (
        "right of the {landmark}, the {target}",
        "{landmark}, the {target} on the right side of it",
    ),
    "above": (
        "above the {landmark}, the {target}",
        "{landmark}, the {target} above it",
    ),
    "below": (
        "below the {landmark}, the {target}",
        "{landmark}, the {target} below it",
    ),
}
_SUPERLATIVE: dict[Relation, str] = {
    "left": "the leftmost {target}",
    "right": "the rightmost {target}",
    "above": "the highest {target}",
    "below": "the lowest {target}",
}
_FURTHEST: dict[Relation, str] = {
    "left": "the {target} furthest to the left",
    "right": "the {target} furthest to the right",
    "above": "the {target} furthest above",
    "below": "the {target} furthest below",
}


def expressions(rng: random.Random, scene: Scene, kind: Expressions = "varied") -> list[Expression]:
    """A few expressions with different targets; fewer where they would be unclear.

    Args:
        rng: Decides.
        scene: What is spoken of.
        kind: `varied` for all of the domain's phrasings; `full` names all attributes and no more.
    """
    makers, weights = _MAKERS[scene.domain] if kind == "varied" else ((_by_kind,), (1.0,))
    count = _COUNT[scene.domain]
    found: list[Expression] = []
    for _ in range(6 * count):
        expression = rng.choices(makers, weights)[0](rng, scene)
        if expression and all(expression.target is not other.target for other in found):
            found.append(expression)
        if len(found) == count:
            break
    return found


def _by_kind(rng: random.Random, scene: Scene) -> Expression | None:
    target = rng.choice(scene.things)
    phrase = full_phrase(target)
    if len(phrase.found_in(scene)) > 1:
        return None
    return Expression(text=f"the {phrase.words()}", target=target)


def _by_attributes(rng: random.Random, scene: Scene) -> Expression | None:
    target = rng.choice(scene.things)
    phrase = pick_unique(rng, scene, target)
    if phrase is None:
        return None
    article = rng.choice(("the ", "the ", ""))
    return Expression(text=article + phrase.words(), target=target)


def _attributes_behind(rng: random.Random, scene: Scene) -> Expression | None:
    """`the star, large and red`: the noun first, the large and the little in the other words."""
    target = rng.choice(scene.things)
    phrase = pick_unique(rng, scene, target)
    if phrase is None:
        return None
    size = SIZE_SYNONYM[phrase.size] if phrase.size else None
    attributes = [word for word in (size, phrase.colour) if word]
    noun = phrase.shape or "thing"
    if not attributes:
        return Expression(text=f"the only {noun}", target=target)
    return Expression(text=f"the {noun}, {' and '.join(attributes)}", target=target)


def _superlative(rng: random.Random, scene: Scene) -> Expression | None:
    return _by_extreme(rng, scene, _SUPERLATIVE)


def _furthest(rng: random.Random, scene: Scene) -> Expression | None:
    return _by_extreme(rng, scene, _FURTHEST)


def _by_extreme(
    rng: random.Random, scene: Scene, templates: dict[Relation, str]
) -> Expression | None:
    relation = rng.choice(RELATIONS)
    model = rng.choice(scene.things)
    # Only phrases that several things fit: for one alone there is no outermost.
    phrases = [
        phrase for phrase in (Phrase(), *partial_phrases(model)) if len(phrase.found_in(scene)) > 1
    ]
    phrase = rng.choice(phrases)
    noun = rng.choice(("thing", "shape"))
    text = templates[relation].format(target=phrase.words(noun=noun))
    return Expression(text=text, target=extreme(scene, phrase, relation))


def _target_first(rng: random.Random, scene: Scene) -> Expression | None:
    return _by_relation(rng, scene, lambda reference: _TARGET_FIRST[reference.relation])


def _to_the_side(rng: random.Random, scene: Scene) -> Expression | None:
    return _by_relation(rng, scene, lambda reference: _TO_THE_SIDE[reference.relation])


def _landmark_first(rng: random.Random, scene: Scene) -> Expression | None:
    return _by_relation(
        rng, scene, lambda reference: rng.choice(_LANDMARK_FIRST[reference.relation])
    )


def _by_relation(
    rng: random.Random, scene: Scene, template: Callable[[RelationalReference], str]
) -> Expression | None:
    references = relational_references(rng, scene)
    if not references:
        return None
    reference = rng.choice(references)
    text = template(reference).format(
        target=reference.phrase.words(), landmark=reference.landmark.words()
    )
    return Expression(text=text, target=reference.target)


_COUNT: dict[Domain, int] = {"upstream": 3, "downstream": 2}
_MAKERS: dict[str, tuple[tuple[Maker, ...], tuple[float, ...]]] = {
    "upstream": (
        (_by_kind, _by_attributes, _target_first, _superlative),
        (0.4, 0.34, 0.14, 0.12),
    ),
    "downstream": (
        (_landmark_first, _to_the_side, _furthest, _attributes_behind),
        (0.45, 0.15, 0.2, 0.2),
    ),
}
