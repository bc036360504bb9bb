"""Readers: what a good file gives, and what becomes of each way to be wrong."""

from __future__ import annotations

import json
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.config import SourceConfig
from data_prep.errors import DataError
from data_prep.quarantine import Reason, Rejection
from data_prep.readers import READERS, SourceRecord, Workspace
from tests.support.raw_data import HEIGHT, WIDTH, sources, write_json, write_raw, write_refs


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_raw(tmp_path / "raw")
    return tmp_path / "raw"


def read(config: SourceConfig) -> tuple[dict[str, SourceRecord], list[Rejection]]:
    with tempfile.TemporaryDirectory() as folder:
        items = list(READERS[config.reader](config, Workspace(folder=Path(folder))))
        assert not list(Path(folder).iterdir())
    records = {item.uid: item for item in items if isinstance(item, SourceRecord)}
    assert len(records) == sum(isinstance(item, SourceRecord) for item in items)
    return records, [item for item in items if isinstance(item, Rejection)]


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


def test_captions_are_gathered_by_image(raw: Path) -> None:
    records, rejections = read(sources(raw)["coco_captions"])
    assert not rejections
    assert records.keys() == {f"coco_captions/train/{i}" for i in range(1, 7)}
    third = records["coco_captions/train/3"]
    assert third.task == "caption"
    assert third.references == ("Caption 0 of image 3.", "Caption 1 of image 3.")
    assert third.image == "000000000003.jpg"
    assert third.position == "captions.json:annotations[4]"


def test_questions_count_their_answers(raw: Path) -> None:
    records, rejections = read(sources(raw)["vqav2"])
    assert not rejections
    asked = records["vqav2/train/200"]
    assert asked.text == "Is 2 - red?"
    assert asked.answers == (("yes", 9), ("no", 1))
    assert asked.image == "000000000002.jpg"


def test_questions_of_a_test_split_have_no_answers(raw: Path) -> None:
    config = SourceConfig(
        reader="vqav2",
        images=str(raw / "images"),
        questions=str(raw / "questions.json"),
        image_name="COCO_test2015_{id:012d}.jpg",
    )
    records, rejections = read(config)
    assert not rejections
    assert records["vqav2/train/200"].answers == ()
    assert records["vqav2/train/200"].image == "COCO_test2015_000000000002.jpg"


def test_expressions_of_the_split_get_their_box(raw: Path) -> None:
    records, rejections = read(sources(raw)["refer"])
    assert not rejections
    # Only odd images are in train, each with two expressions.
    assert records.keys() == {
        f"refer/train/{7 * i}/{20 * i + k}" for i in (1, 3, 5) for k in (0, 1)
    }
    first = records["refer/train/7/21"]
    assert first.text == "the right one"
    assert first.boxes == (((20.0, 4.0, 29.5, 12.0), None),)
    assert first.size == (WIDTH, HEIGHT)


def test_gold_labels_become_answers(raw: Path) -> None:
    records, rejections = read(sources(raw)["snli_ve"])
    assert not rejections
    assert [records[f"snli_ve/train/{i:012d}.jpg#0r1e"].label for i in (3, 4, 5)] == [
        "yes",
        "no",
        "maybe",
    ]
    assert records["snli_ve/train/000000000003.jpg#0r1e"].premise == "A premise."


def test_objects_stand_from_left_to_right(raw: Path) -> None:
    edit(
        raw / "instances.json",
        lambda c: c["annotations"].append(
            {"id": 99, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1}
        ),
    )
    records, rejections = read(sources(raw)["coco_instances"])
    assert not rejections
    assert records["coco_instances/train/1"].boxes == (
        ((10.0, 4.0, 19.5, 12.0), "big blue square"),
        ((20.0, 4.0, 29.5, 12.0), "small red circle"),
    )


BROKEN: list[tuple[str, str, Any, Reason]] = [
    ("coco_captions", "captions.json", lambda c: c["images"].pop(0), Reason.UNKNOWN_IMAGE),
    (
        "coco_captions",
        "captions.json",
        lambda c: c["annotations"][0].pop("caption"),
        Reason.MALFORMED_ANNOTATION,
    ),
    (
        "coco_captions",
        "captions.json",
        lambda c: c["annotations"].append("text"),
        Reason.UNKNOWN_IMAGE,
    ),
    ("vqav2", "answers.json", lambda c: c["annotations"].pop(0), Reason.NO_ANSWERS),
    ("vqav2", "questions.json", lambda c: c["questions"].pop(0), Reason.UNKNOWN_QUESTION),
    ("vqav2", "answers.json", lambda c: c["annotations"][0]["answers"].clear(), Reason.NO_ANSWERS),
    (
        "vqav2",
        "answers.json",
        lambda c: c["annotations"][0].update(image_id=2),
        Reason.MALFORMED_ANNOTATION,
    ),
    (
        "vqav2",
        "questions.json",
        lambda c: c["questions"][0].update(image_id="one"),
        Reason.MALFORMED_ANNOTATION,
    ),
    (
        "vqav2",
        "questions.json",
        lambda c: c["questions"].append(["no object"]),
        Reason.MALFORMED_ANNOTATION,
    ),
    ("refer", "instances.json", lambda c: c["images"].pop(0), Reason.UNKNOWN_IMAGE),
    ("refer", "instances.json", lambda c: c["annotations"].pop(0), Reason.UNKNOWN_ANNOTATION),
    (
        "refer",
        "instances.json",
        lambda c: c["annotations"][0].update(image_id=2),
        Reason.MALFORMED_ANNOTATION,
    ),
    (
        "refer",
        "instances.json",
        lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
        Reason.BAD_BOX,
    ),
    ("coco_instances", "instances.json", lambda c: c["categories"].pop(), Reason.BAD_LABEL),
    (
        "coco_instances",
        "instances.json",
        lambda c: c["annotations"][0].update(bbox=[1, 2, 0, 5]),
        Reason.BAD_BOX,
    ),
    (
        "coco_instances",
        "instances.json",
        lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 5]),
        Reason.BAD_BOX,
    ),
]


@pytest.mark.parametrize(("reader", "file", "change", "reason"), BROKEN)
def test_a_broken_annotation_is_rejected_and_the_rest_is_kept(
    raw: Path, reader: str, file: str, change: Any, reason: Reason
) -> None:
    whole, _ = read(sources(raw)[reader])
    edit(raw / file, change)
    records, rejections = read(sources(raw)[reader])
    assert {rejection.reason for rejection in rejections} == {reason}
    lost = whole.keys() - records.keys()
    assert lost <= {rejection.uid for rejection in rejections}
    for uid, record in records.items():
        # Rows moved up where one was taken out; nothing else may change.
        assert record == replace(whole[uid], position=record.position)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{ no json", Reason.MALFORMED_ANNOTATION),
        ('{"gold_label": "entailment", "Flickr30K_ID": 1}', Reason.MALFORMED_ANNOTATION),
        ('{"gold_label": "-", "Flickr30K_ID": 1, "sentence2": "x"}', Reason.BAD_LABEL),
        ("[" * 100_000, Reason.MALFORMED_ANNOTATION),
    ],
)
def test_a_broken_line_is_rejected(raw: Path, line: str, reason: Reason) -> None:
    with (raw / "snli_ve.jsonl").open("a") as file:
        file.write(line + "\n")
    records, rejections = read(sources(raw)["snli_ve"])
    assert len(records) == 6
    assert [(r.reason, r.position) for r in rejections] == [(reason, "snli_ve.jsonl:line 7")]


def test_a_premise_that_is_asked_for_must_be_there(raw: Path) -> None:
    line = {"gold_label": "neutral", "Flickr30K_ID": "1", "sentence2": "x"}
    (raw / "snli_ve.jsonl").write_text(json.dumps(line))
    plain = sources(raw)["snli_ve"]
    assert len(read(plain)[0]) == 1
    asking = SourceConfig(
        reader="snli_ve", images=plain.images, annotations=plain.annotations, use_premise=True
    )
    assert [r.reason for r in read(asking)[1]] == [Reason.MALFORMED_ANNOTATION]


class _Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str, bytes]]:
        return Path.write_bytes, (self.target, b"run")  # type: ignore[return-value]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_runs_nothing(raw: Path, tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "run-by-pickle"
    hostile = pickle.dumps([_Hostile(target)], protocol=protocol)
    (raw / "refs(test).p").write_bytes(hostile)
    with pytest.raises(DataError, match="only plain data are read"):
        read(sources(raw)["refer"])
    assert not target.exists()
    # It was armed: an ordinary unpickler runs it.
    pickle.loads(hostile)
    assert target.exists()


def test_a_pickle_of_python_2_is_read(raw: Path) -> None:
    # (lp0 ... : protocol 0 as Python 2 wrote it, with byte strings in UTF-8 and long integers.
    (raw / "refs(test).p").write_bytes(
        b"(lp0\n(dp1\nS'split'\np2\nS'train'\np3\nsS'ref_id'\np4\nL5L\nsS'ann_id'\nI10\n"
        b"sS'image_id'\nI1\nsS'sentences'\n(lp5\n(dp6\nS'sent_id'\nI3\n"
        b"sS'sent'\nS'caf\\xc3\\xa9'\nsasa."
    )
    records, rejections = read(sources(raw)["refer"])
    assert not rejections
    assert records["refer/train/5/3"].text == "café"


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"a": 1})])
def test_a_file_of_references_that_is_none_is_an_error(raw: Path, content: bytes) -> None:
    (raw / "refs(test).p").write_bytes(content)
    with pytest.raises(DataError, match=r"refs\(test\)\.p"):
        read(sources(raw)["refer"])


def test_references_of_a_wrong_shape_are_rejected(raw: Path) -> None:
    write_refs(raw, ["text", {"split": "train", "image_id": 1, "ann_id": 10, "sentences": []}])
    records, rejections = read(sources(raw)["refer"])
    assert not records
    assert [r.reason for r in rejections] == [Reason.MALFORMED_ANNOTATION] * 2


@pytest.mark.parametrize("reader", ["coco_captions", "vqav2", "refer", "coco_instances"])
@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"images": 3}', "[" * 100_000])
def test_a_file_that_is_unusable_as_a_whole_is_an_error(
    raw: Path, reader: str, content: str | None
) -> None:
    config = sources(raw)[reader]
    path = Path(config.instances or config.questions or config.annotations or "")
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=path.name):
        read(config)
