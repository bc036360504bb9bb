"""Dense captions: every object by name, in reading order, with how it lies to the one before."""

from data_prep.world.referring import Phrase, full_phrase
from data_prep.world.scene import Scene, Thing
from data_prep.world.vocabulary import NUMBER_WORDS


def captions(scene: Scene) -> list[str]:
    """Three references of different phrasing; the first is the plain list.

    `upstream` reads from left to right, `downstream` from right to left and in other words for the
    sizes.
    """
    return _upstream(scene) if scene.domain == "upstream" else _downstream(scene)


def joined(parts: list[str]) -> str:
    """An English enumeration: `a, b and c`."""
    if len(parts) == 1:
        return parts[0]
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def with_article(phrase: Phrase, *, synonyms: bool = False) -> str:
    """`a small red circle`; none of the world's words begins with a vowel."""
    return "a " + phrase.words(synonyms=synonyms)


def _names(things: tuple[Thing, ...], *, synonyms: bool) -> list[str]:
    return [with_article(full_phrase(thing), synonyms=synonyms) for thing in things]


def _upstream(scene: Scene) -> list[str]:
    names = _names(scene.things, synonyms=False)
    number = NUMBER_WORDS[len(names)]
    return [
        joined(names),
        f"{number} shapes, seen from left to right: {joined(names)}",
        _walk(scene.things, "to the right"),
    ]


def _downstream(scene: Scene) -> list[str]:
    things = tuple(reversed(scene.things))
    names = _names(things, synonyms=True)
    number = NUMBER_WORDS[len(names)]
    return [
        f"from right to left {joined(names)}",
        f"seen from the right side, {number} shapes: {joined(names)}",
        _walk(things, "to the left"),
    ]


def _walk(things: tuple[Thing, ...], direction: str) -> str:
    """`a large red circle, then to the right and lower a little green star`."""
    names = _names(things, synonyms=True)
    steps = [names[0]]
    for before, thing, name in zip(things, things[1:], names[1:], strict=False):
        height = "higher" if thing.centre[1] < before.centre[1] else "lower"
        steps.append(f"then {direction} and {height} {name}")
    return ", ".join(steps)
