"""Questions with ten annotators' answers, as VQAv2 has them.

The domains ask the same things in other words and expect other conventions in the answer:
`upstream` counts in digits and says `big`, `left`; `downstream` counts in words and says `large`,
`to the left`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from data_prep.world.captions import with_article
from data_prep.world.referring import (
    HORIZONTAL,
    VERTICAL,
    Phrase,
    Relation,
    absent_phrase,
    full_phrase,
    holds,
    partial_phrases,
    pick_unique,
    relational_references,
    unique_phrases,
)
from data_prep.world.scene import Scene
from data_prep.world.vocabulary import COLOURS, NUMBER_WORDS, SHAPES, SIZE_SYNONYM, SIZES

ANNOTATORS = 10
DISSENT_RATE = 0.06


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with its true answer and the answers that a careless annotator would give."""

    text: str
    answer: str
    answer_type: str
    question_type: str
    wrong: tuple[str, ...]


Maker = Callable[[random.Random, Scene], Question | None]


def questions(rng: random.Random, scene: Scene, count: int = 3) -> list[Question]:
    """Up to `count` different questions about the scene, each of another kind."""
    makers = list(_MAKERS)
    weights = list(_MAKERS.values())
    found: list[Question] = []
    while makers and len(found) < count:
        maker = rng.choices(makers, weights)[0]
        place = makers.index(maker)
        del makers[place], weights[place]
        question = maker(rng, scene)
        if question is not None:
            found.append(question)
    return found


def annotators_answers(rng: random.Random, question: Question) -> list[tuple[str, str]]:
    """Ten (answer, confidence) pairs; a small share of annotators errs and is less sure of it."""
    answers = []
    for _ in range(ANNOTATORS):
        if rng.random() < DISSENT_RATE:
            answers.append((rng.choice(question.wrong), rng.choice(("maybe", "no"))))
        else:
            answers.append((question.answer, "yes"))
    return answers


def _upstream(scene: Scene) -> bool:
    return scene.domain == "upstream"


def _others(words: tuple[str, ...], answer: str) -> tuple[str, ...]:
    return tuple(word for word in words if word != answer)


def _colour(rng: random.Random, scene: Scene) -> Question | None:
    thing = rng.choice(scene.things)
    phrases = [phrase for phrase in unique_phrases(scene, thing) if phrase.colour is None]
    if phrases and rng.random() < 0.85:
        what, answer = "the " + rng.choice(phrases).words(), thing.colour
    else:
        references = [
            reference
            for reference in relational_references(rng, scene)
            if reference.phrase.colour is None
        ]
        if not references:
            return None
        reference = rng.choice(references)
        side = {"left": "left of", "right": "right of"}.get(reference.relation, reference.relation)
        what = f"the {reference.phrase.words()} {side} the {reference.landmark.words()}"
        answer = reference.target.colour
    if _upstream(scene):
        start, end = rng.choice((("what color is", ""), ("what is the color of", "")))
    else:
        start, end = rng.choice((("which hue does", " have"), ("of which hue is", "")))
    return Question(
        text=f"{start} {what}{end}?",
        answer=answer,
        answer_type="other",
        question_type=start,
        wrong=_others(tuple(COLOURS), answer),
    )


def _shape(rng: random.Random, scene: Scene) -> Question | None:
    thing = rng.choice(scene.things)
    phrases = [phrase for phrase in unique_phrases(scene, thing) if phrase.shape is None]
    if not phrases:
        return None
    what = rng.choice(phrases).words()
    if _upstream(scene):
        start, end = rng.choice(
            (("what shape is", ""), ("which shape is", ""), ("what shape does", " have"))
        )
    else:
        start, end = "which shape does", " have"
    return Question(
        text=f"{start} the {what}{end}?",
        answer=thing.shape,
        answer_type="other",
        question_type=start,
        wrong=_others(SHAPES, thing.shape),
    )


def _size(rng: random.Random, scene: Scene) -> Question | None:
    thing = rng.choice(scene.things)
    phrases = [phrase for phrase in unique_phrases(scene, thing) if phrase.size is None]
    if not phrases:
        return None
    what = "the " + rng.choice(phrases).words()
    if _upstream(scene):
        start, text = rng.choice(
            (("what size is", f"what size is {what}?"), ("is the", f"is {what} big or small?"))
        )
        answer, vocabulary = thing.size, SIZES
    else:
        start, text = "how large is", f"how large is {what}?"
        answer, vocabulary = SIZE_SYNONYM[thing.size], tuple(SIZE_SYNONYM.values())
    return Question(
        text=text,
        answer=answer,
        answer_type="other",
        question_type=start,
        wrong=_others(vocabulary, answer),
    )


def _count(rng: random.Random, scene: Scene) -> Question | None:
    thing = rng.choice(scene.things)
    phrase = rng.choice((Phrase(), *partial_phrases(thing)))
    # A full description nearly always counts to one, which would teach to answer without looking.
    if phrase == full_phrase(thing):
        phrase = Phrase(shape=thing.shape)
    # Nobody counts to "zero" in words: downstream asks for the number of what is there.
    if _upstream(scene) and rng.random() < 0.1:
        absent = absent_phrase(rng, scene)
        phrase = absent or phrase
    number = len(phrase.found_in(scene))
    if _upstream(scene):
        start, text = "how many", f"how many {phrase.plural()} are there?"
        vocabulary = tuple(str(n) for n in range(6))
    else:
        start = "what number of"
        text = f"what number of {phrase.plural(synonyms=True)} can be seen?"
        vocabulary = NUMBER_WORDS
    near = [vocabulary[n] for n in (number - 1, number + 1) if 0 <= n < len(vocabulary)]
    return Question(
        text=text,
        answer=vocabulary[number],
        answer_type="number",
        question_type=start,
        wrong=tuple(near),
    )


def _exists(rng: random.Random, scene: Scene) -> Question | None:
    phrase: Phrase | None
    if rng.random() < 0.5:
        thing = rng.choice(scene.things)
        phrase = rng.choice([Phrase(None, thing.colour, thing.shape), full_phrase(thing)])
        answer = "yes"
    else:
        phrase, answer = absent_phrase(rng, scene), "no"
    if phrase is None:
        return None
    if _upstream(scene):
        start, end = rng.choice((("is there", ""), ("are there any", "")))
        what = phrase.plural() if start == "are there any" else with_article(phrase)
    else:
        start, end = "can", " be seen in the picture"
        what = with_article(phrase, synonyms=True)
    return Question(
        text=f"{start} {what}{end}?",
        answer=answer,
        answer_type="yes/no",
        question_type=start,
        wrong=_others(("yes", "no"), answer),
    )


def _side(rng: random.Random, scene: Scene) -> Question | None:
    pair = _two_phrases(rng, scene, HORIZONTAL)
    if pair is None:
        return None
    what, landmark, relation = pair
    if _upstream(scene):
        start, text = "is the", f"is the {what} left or right of the {landmark}?"
        answer, vocabulary = str(relation), ("left", "right")
    else:
        start, text = "on which side", f"on which side of the {landmark} is the {what}?"
        answer, vocabulary = f"to the {relation}", ("to the left", "to the right")
    return Question(
        text=text,
        answer=answer,
        answer_type="other",
        question_type=start,
        wrong=_others(vocabulary, answer),
    )


def _height(rng: random.Random, scene: Scene) -> Question | None:
    pair = _two_phrases(rng, scene, VERTICAL)
    if pair is None:
        return None
    what, landmark, relation = pair
    if _upstream(scene):
        text = f"is the {what} above or below the {landmark}?"
        answer, vocabulary = str(relation), ("above", "below")
    else:
        text = f"is the {what} higher or lower than the {landmark}?"
        answer = "higher" if relation == "above" else "lower"
        vocabulary = ("higher", "lower")
    return Question(
        text=text,
        answer=answer,
        answer_type="other",
        question_type="is the",
        wrong=_others(vocabulary, answer),
    )


def _related(rng: random.Random, scene: Scene) -> Question | None:
    asked = rng.choice((*HORIZONTAL, *VERTICAL))
    pair = _two_phrases(rng, scene, HORIZONTAL if asked in HORIZONTAL else VERTICAL)
    if pair is None:
        return None
    what, landmark, relation = pair
    answer = "yes" if asked == relation else "no"
    if _upstream(scene):
        side = f"{asked} of" if asked in HORIZONTAL else asked
        start, text = "is the", f"is the {what} {side} the {landmark}?"
    else:
        side = f"on the {asked} side of" if asked in HORIZONTAL else asked
        start, text = "can the", f"can the {what} be seen {side} the {landmark}?"
    return Question(
        text=text,
        answer=answer,
        answer_type="yes/no",
        question_type=start,
        wrong=_others(("yes", "no"), answer),
    )


def _two_phrases(
    rng: random.Random, scene: Scene, relations: tuple[Relation, ...]
) -> tuple[str, str, Relation] | None:
    """Two things by unique phrases, and which of two relations the first has to the other."""
    first, second = rng.sample(scene.things, 2)
    what, landmark = pick_unique(rng, scene, first), pick_unique(rng, scene, second)
    if what is None or landmark is None:
        return None
    relation = next(r for r in relations if holds(r, first, second))
    return what.words(), landmark.words(), relation


_MAKERS: dict[Maker, float] = {
    _colour: 3.0,
    _shape: 2.0,
    _size: 1.5,
    _count: 2.5,
    _exists: 2.5,
    _side: 1.5,
    _height: 1.0,
    _related: 0.7,
}
