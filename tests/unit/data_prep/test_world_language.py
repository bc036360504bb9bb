"""What the embedded world says about its scenes is true, and means one thing only."""

import json
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import DataError
from data_prep.synthetic import write_world
from data_prep.world.vocabulary import COLOURS, DOMAINS, PAIRS, SHAPES, Domain
from tests.support.worlds import SCENES, read_json


def read_refs(world: Path) -> list[dict[str, Any]]:
    with (world / "refer" / "refs(synth).p").open("rb") as file:
        refs: list[dict[str, Any]] = pickle.load(file)
    return refs


def texts_of(world: Path) -> list[str]:
    """Every text that a model could meet in a world."""
    texts = [ref["sentences"][0]["sent"] for ref in read_refs(world)]
    for split in SCENES:
        captions = read_json(world / f"captions_{split}.json")["annotations"]
        texts += [row["caption"] for row in captions]
        questions = read_json(world / f"vqa_questions_{split}.json")["questions"]
        texts += [row["question"] for row in questions]
        for row in read_json(world / f"vqa_annotations_{split}.json")["annotations"]:
            texts += [answer["answer"] for answer in row["answers"]]
        for line in (world / f"snli_ve_{split}.jsonl").read_text().splitlines():
            texts.append(json.loads(line)["sentence2"])
    return texts


def things_of(world: Path) -> dict[int, list[dict[str, Any]]]:
    """Boxes with their category's name, by image, as a reader of the files sees them."""
    data = read_json(world / "refer" / "instances.json")
    names = {category["id"]: category["name"] for category in data["categories"]}
    things: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in data["images"]}
    for row in data["annotations"]:
        things[row["image_id"]].append({**row, "name": names[row["category_id"]]})
    return things


def centre(thing: dict[str, Any]) -> tuple[float, float]:
    x, y, width, height = thing["bbox"]
    return x + width / 2, y + height / 2


def matching(things: list[dict[str, Any]], phrase: str) -> list[dict[str, Any]]:
    """The things with every attribute of a phrase such as `little red` or `big thing`."""
    words = phrase.replace("little", "small").replace("large", "big").split()
    wanted = {word for word in words if word not in ("the", "a", "thing", "shape", "and", "only")}
    return [thing for thing in things if wanted <= set(thing["name"].split())]


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_first_captions_name_every_object_in_order(
    worlds: dict[str, Path], domain: Domain
) -> None:
    things = things_of(worlds[domain])
    data = read_json(worlds[domain] / "captions_train.json")["annotations"]
    first = {row["image_id"]: row["caption"] for row in reversed(data)}
    for image, caption in first.items():
        order = sorted(things[image], key=lambda thing: centre(thing)[0])
        names = [thing["name"] for thing in order]
        if domain == "downstream":
            names = [
                name.replace("small", "little").replace("big", "large") for name in reversed(names)
            ]
        pattern = rf"a ((?:small|big|little|large) (?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)}))"
        assert re.findall(pattern, caption) == names


def test_counts_and_colours_are_true(worlds: dict[str, Path]) -> None:
    """Answers recomputed from the boxes' categories, for the questions that can be read simply."""
    words = ("zero", "one", "two", "three", "four", "five")
    checked: Counter[str] = Counter()
    for domain, world in worlds.items():
        things = things_of(world)
        questions = read_json(world / "vqa_questions_train.json")["questions"]
        annotations = read_json(world / "vqa_annotations_train.json")["annotations"]
        for question, row in zip(questions, annotations, strict=True):
            present = things[question["image_id"]]
            if match := re.match(
                r"(?:how many|what number of) (.*)s (?:are|can)", question["question"]
            ):
                number = len(matching(present, match[1]))
                expected = str(number) if domain == "upstream" else words[number]
            elif match := re.fullmatch(
                r"(?:what color is|what is the color of|which hue does|of which hue is)"
                r" the ([a-z ]+?)(?: have)?\?",
                question["question"],
            ):
                if re.search(r" of | above | below ", match[1]):
                    continue
                (thing,) = matching(present, match[1])
                expected = thing["name"].split()[1]
            else:
                continue
            assert row["multiple_choice_answer"] == expected, question["question"]
            checked[domain] += 1
    assert min(checked[domain] for domain in DOMAINS) > 200


@pytest.mark.parametrize("domain", DOMAINS)
def test_expressions_mean_exactly_their_box(worlds: dict[str, Path], domain: Domain) -> None:
    """Every expression is read again by the small grammar below, knowing only boxes and names."""
    things = things_of(worlds[domain])
    refs = read_refs(worlds[domain])
    assert len(refs) > 1.8 * sum(SCENES.values())
    kinds: Counter[str] = Counter()
    for ref in refs:
        assert (worlds[domain] / "images" / ref["file_name"]).is_file()
        sentence = ref["sentences"][0]["sent"]
        kind, meant = understand(sentence, things[ref["image_id"]])
        assert [thing["id"] for thing in meant] == [ref["ann_id"]], sentence
        kinds[kind] += 1
    share = kinds["relation"] / sum(kinds.values())
    assert 0.1 < share < 0.4 if domain == "upstream" else 0.4 < share < 0.8
    assert kinds["extreme"]
    assert kinds["attributes"]


@pytest.mark.parametrize("domain", DOMAINS)
def test_full_expressions_name_all_attributes_of_one_thing(tmp_path: Path, domain: Domain) -> None:
    world = tmp_path / "world"
    write_world(world, domain=domain, scenes={"val": 40}, seed=5, expressions="full", processes=1)
    things = things_of(world)
    refs = read_refs(world)
    assert len(refs) > 60
    for ref in refs:
        text = ref["sentences"][0]["sent"].removeprefix("the ")
        (meant,) = matching(things[ref["image_id"]], text)
        assert (meant["name"], meant["id"]) == (text, ref["ann_id"])
    with pytest.raises(DataError, match=r"holds another world .*asked for upstream"):
        write_world(world, domain="upstream", scenes={"val": 40}, seed=5)


def test_the_domains_share_words_but_no_coloured_shape(worlds: dict[str, Path]) -> None:
    texts = {domain: texts_of(world) for domain, world in worlds.items()}
    words = {domain: set(re.findall(r"\w+|[^\w\s]", " ".join(texts[domain]))) for domain in texts}
    # A downstream word that upstream lacks would have an embedding that nobody trained.
    assert words["downstream"] - words["upstream"] == set()
    pairs = {}
    for domain in DOMAINS:
        pattern = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")
        pairs[domain] = {pair for text in texts[domain] for pair in pattern.findall(text)}
        assert pairs[domain] == set(PAIRS[domain])
        assert {colour for colour, _ in pairs[domain]} == set(COLOURS)
        assert {shape for _, shape in pairs[domain]} == set(SHAPES)
    assert not pairs["upstream"] & pairs["downstream"]


SIDES = {
    "left": (0, -1), "leftmost": (0, -1), "right": (0, 1), "rightmost": (0, 1),
    "above": (1, -1), "highest": (1, -1), "higher": (1, -1),
    "below": (1, 1), "lowest": (1, 1), "lower": (1, 1),
}  # fmt: skip
EXTREME = (
    r"the (?P<side>leftmost|rightmost|highest|lowest) (?P<target>.*)",
    r"the (?P<target>.*?) furthest (?:to the )?(?P<side>left|right|above|below)",
)
RELATION = (
    r"the (?P<target>.*?) (?:to the )?(?P<side>left|right) of the (?P<mark>.*)",
    r"the (?P<target>.*) (?P<side>above|below) the (?P<mark>.*)",
    r"the (?P<target>.*) (?P<side>higher|lower) than the (?P<mark>.*)",
    r"(?P<side>left|right) of the (?P<mark>.*), the (?P<target>.*)",
    r"(?P<side>above|below) the (?P<mark>.*), the (?P<target>.*)",
    r"(?P<mark>.*), the (?P<target>.*) on the (?P<side>left|right) side of it",
    r"(?P<mark>.*), the (?P<target>.*) (?P<side>above|below) it",
)


def understand(sentence: str, things: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """The kind of an expression and all the things that it may mean."""
    for pattern in EXTREME:
        if match := re.fullmatch(pattern, sentence):
            axis, sign = SIDES[match["side"]]
            fitting = matching(things, match["target"])
            return "extreme", [max(fitting, key=lambda thing: sign * centre(thing)[axis])]
    for pattern in RELATION:
        if match := re.fullmatch(pattern, sentence):
            axis, sign = SIDES[match["side"]]
            (mark,) = matching(things, match["mark"])
            return "relation", [
                thing
                for thing in matching(things, match["target"])
                if sign * (centre(thing)[axis] - centre(mark)[axis]) > 0
            ]
    return "attributes", matching(things, sentence.replace(",", ""))
