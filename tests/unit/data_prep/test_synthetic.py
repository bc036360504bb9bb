"""The embedded world: its files, its promises about content, and who wins when two worlds meet."""

import hashlib
import itertools
import json
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
from data_prep.world.vocabulary import DOMAINS, PAIRS, Domain
from tests.support.worlds import SCENES, read_json


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
