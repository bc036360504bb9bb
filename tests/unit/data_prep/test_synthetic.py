"""The embedded world: its files, its promises about content, and who wins when two worlds meet."""

import hashlib
import itertools
import json
import pickle
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.errors import DataError
from data_prep.synthetic import read_world_plan, write_world
from data_prep.world.drawing import draw
from data_prep.world.scene import Scene, make_scene, scene_random
from data_prep.world.vocabulary import COLOURS, DOMAINS, PAIRS, SHAPES, Domain

SCENES = {"train": 450, "val": 30, "test": 30}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("worlds")
    for domain in DOMAINS:
        assert write_world(root / domain, domain=domain, scenes=SCENES, seed=5, processes=1)
    return {domain: root / domain for domain in DOMAINS}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


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


def contents(world: Path) -> dict[str, str]:
    return {
        str(path.relative_to(world)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(world.rglob("*"))
        if path.is_file()
    }


def test_the_bytes_do_not_depend_on_the_processes(worlds: dict[str, Path], tmp_path: Path) -> None:
    write_world(tmp_path / "again", domain="upstream", scenes=SCENES, seed=5, processes=2)
    assert contents(tmp_path / "again") == contents(worlds["upstream"])


def test_a_smaller_world_is_the_beginning_of_a_larger_one(
    worlds: dict[str, Path], tmp_path: Path
) -> None:
    write_world(tmp_path / "small", domain="upstream", scenes={"val": 10}, seed=5, processes=1)
    small, large = contents(tmp_path / "small"), contents(worlds["upstream"])
    images = [name for name in small if name.startswith("images/")]
    assert len(images) == 10
    assert all(small[name] == large[name] for name in images)


def test_another_seed_or_split_is_another_picture() -> None:
    names = itertools.product((0, 1), ("train", "val"))
    pictures = set()
    for seed, split in names:
        scene = make_scene(scene_random(seed, "upstream", split, 0), "upstream", split, 0)  # type: ignore[arg-type]
        pictures.add(draw(scene).tobytes())
    assert len(pictures) == 4


def test_a_finished_world_is_kept_and_another_is_refused(
    worlds: dict[str, Path], tmp_path: Path
) -> None:
    world = worlds["upstream"]
    before = contents(world)
    assert not write_world(world, domain="upstream", scenes=SCENES, seed=5)
    with pytest.raises(DataError, match=r"holds another world .*seed 5; asked for .*seed 6"):
        write_world(world, domain="upstream", scenes=SCENES, seed=6)
    assert contents(world) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(DataError, match="not a complete world"):
        write_world(tmp_path / "mine", domain="upstream", scenes=SCENES, seed=5)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_a_world_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write the world"):
        write_world(tmp_path / "file" / "world", domain="upstream", scenes={"val": 1}, seed=0)

    def full_disk(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(DataError, match="No space left"):
        write_world(tmp_path / "w", domain="upstream", scenes={"val": 1}, seed=0, processes=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize(
    ("domain", "scenes", "message"),
    [
        ("midstream", {"train": 1}, "domain 'midstream' is unknown"),
        ("upstream", {"dev": 1}, "split 'dev' is unknown"),
        ("upstream", {"train": -1}, "-1 scenes for train"),
        ("upstream", {}, "at least one split"),
    ],
)
def test_wrong_parameters(
    tmp_path: Path, domain: str, scenes: dict[str, int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write_world(tmp_path / "world", domain=domain, scenes=scenes, seed=0)
    assert not list(tmp_path.iterdir())


def test_the_plan_is_read_back(worlds: dict[str, Path], tmp_path: Path) -> None:
    plan = read_world_plan(worlds["downstream"])
    assert (plan.domain, plan.scenes, plan.seed) == ("downstream", SCENES, 5)
    for content, message in (("{", "not JSON"), ("[]", "format"), ('{"format": "x"}', "format")):
        (tmp_path / "world.json").write_text(content)
        with pytest.raises(DataError, match=message):
            read_world_plan(tmp_path)


@pytest.mark.parametrize("domain", DOMAINS)
def test_coco_files(worlds: dict[str, Path], domain: Domain) -> None:
    world, seen = worlds[domain], set()
    for split, count in SCENES.items():
        captions = read_json(world / f"captions_{split}.json")
        detection = read_json(world / f"detection_{split}.json")
        assert captions["images"] == detection["images"]
        assert len(captions["images"]) == count
        for image in captions["images"]:
            with Image.open(world / "images" / split / image["file_name"]) as picture:
                assert (picture.format, picture.mode) == ("JPEG", "RGB")
                assert picture.size == (image["width"], image["height"])
                assert all(96 <= side <= 160 for side in picture.size)
            assert image["file_name"] == f"{image['id']:012d}.jpg"
            seen.add(image["id"])
        assert set(Counter(row["image_id"] for row in captions["annotations"]).values()) == {3}
        names = {category["id"]: category["name"] for category in detection["categories"]}
        sizes = {image["id"]: (image["width"], image["height"]) for image in detection["images"]}
        objects = Counter(row["image_id"] for row in detection["annotations"])
        assert set(objects) == set(sizes)
        assert all(2 <= number <= 5 for number in objects.values())
        for row in detection["annotations"]:
            x, y, width, height = row["bbox"]
            assert min(x, y) >= 0
            assert min(width, height) > 5
            assert x + width <= sizes[row["image_id"]][0]
            assert y + height <= sizes[row["image_id"]][1]
            assert tuple(names[row["category_id"]].split()[1:]) in PAIRS[domain]
    assert len(seen) == sum(SCENES.values())


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


@pytest.mark.parametrize("domain", DOMAINS)
def test_vqa_files(worlds: dict[str, Path], domain: Domain) -> None:
    dissent, answers = 0, 0
    for split in SCENES:
        questions = read_json(worlds[domain] / f"vqa_questions_{split}.json")["questions"]
        annotations = read_json(worlds[domain] / f"vqa_annotations_{split}.json")["annotations"]
        ids = [row["question_id"] for row in questions]
        assert ids == [row["question_id"] for row in annotations]
        assert len(set(ids)) == len(ids)
        for question, row in zip(questions, annotations, strict=True):
            assert question["image_id"] == row["image_id"]
            assert question["question"].startswith(row["question_type"])
            assert row["answer_type"] in ("yes/no", "number", "other")
            assert [answer["answer_id"] for answer in row["answers"]] == list(range(1, 11))
            given = Counter(answer["answer"] for answer in row["answers"])
            assert given[row["multiple_choice_answer"]] == max(given.values()) >= 4
            dissent += 10 - max(given.values())
            answers += 10
    assert 0.03 < dissent / answers < 0.09


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
def test_snli_ve_files(worlds: dict[str, Path], domain: Domain) -> None:
    labels: Counter[str] = Counter()
    for split, count in SCENES.items():
        lines = (worlds[domain] / f"snli_ve_{split}.jsonl").read_text().splitlines()
        assert len(lines) == count
        for line in lines:
            row = json.loads(line)
            assert (worlds[domain] / "images" / split / f"{row['Flickr30K_ID']}.jpg").is_file()
            assert row["sentence1"]
            assert row["sentence2"]
            labels[row["gold_label"]] += 1
    assert set(labels) == {"entailment", "contradiction", "neutral"}
    assert min(labels.values()) > 0.25 * sum(SCENES.values())


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


@pytest.mark.parametrize("domain", DOMAINS)
def test_boxes_are_tight_around_what_is_drawn(domain: Domain) -> None:
    for index in range(60):
        scene = make_scene(scene_random(1, domain, "test", index), domain, "test", index)
        empty = drawn(replace(scene, things=()))
        for thing in scene.things:
            changed = np.abs(drawn(replace(scene, things=(thing,))) - empty).sum(axis=2) > 40
            ys, xs = np.nonzero(changed)
            found = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            # A sharp tip covers little of its last pixels.
            assert np.abs(np.array(found) - np.array(thing.box)).max() < 2.0, thing.kind


@pytest.mark.parametrize("domain", DOMAINS)
def test_things_stay_apart_and_sizes_differ(domain: Domain) -> None:
    areas: dict[str, list[float]] = {"small": [], "big": []}
    for index in range(200):
        scene = make_scene(scene_random(2, domain, "train", index), domain, "train", index)
        for a, b in itertools.combinations(scene.things, 2):
            assert abs(a.centre[0] - b.centre[0]) >= 0.059 * scene.width
            assert abs(a.centre[1] - b.centre[1]) >= 0.059 * scene.height
            assert (
                a.box[2] <= b.box[0]
                or b.box[2] <= a.box[0]
                or (a.box[3] <= b.box[1] or b.box[3] <= a.box[1])
            )
        for thing in scene.things:
            x0, y0, x1, y1 = thing.box
            areas[thing.size].append((x1 - x0) * (y1 - y0) / scene.width / scene.height)
    assert max(areas["small"]) * 1.3 < min(areas["big"])


def drawn(scene: Scene) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.asarray(draw(scene), dtype=np.int32)


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
