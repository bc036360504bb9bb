"""The recipes of the real datasets fit the folders and files that their archives unpack to."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path

import pytest

from data_prep.config import PrepareConfig
from data_prep.manifest import read_manifest
from data_prep.verification import verify_dataset
from jobs.cli import main
from pipeline.config_reader import load
from tests.support.raw_data import HEIGHT, WIDTH, jpeg, write_json
from tests.support.small_world import prepare_in_process

RECIPES = Path(__file__).parents[3] / "jobs" / "recipes"
COCO_ID = 581857
FLICKR_ID = "3416050480"


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every archive as it unpacks, with one image in each folder, in the published formats."""
    raw = tmp_path / "data" / "raw"
    for split in ("train2014", "val2014", "test2015"):
        (raw / "coco" / split).mkdir(parents=True)
        name = f"COCO_{split}_{COCO_ID:012d}.jpg"
        (raw / "coco" / split / name).write_bytes(jpeg(1))
    for folder in ("coco/annotations", "vqav2", "refer/refcoco", "snli_ve"):
        (raw / folder).mkdir(parents=True)
    (raw / "flickr30k" / "flickr30k-images").mkdir(parents=True)
    (raw / "flickr30k" / "flickr30k-images" / f"{FLICKR_ID}.jpg").write_bytes(jpeg(2))
    _write_captions(raw)
    _write_vqa(raw)
    _write_refcoco(raw)
    for split in ("train", "dev", "test"):
        line = {
            "Flickr30K_ID": FLICKR_ID,
            "pairID": f"{FLICKR_ID}.jpg#4r1n",
            "gold_label": "neutral",
            "sentence1": "Two men are working.",
            "sentence2": "The men are brothers.",
            "annotator_labels": ["neutral"],
            "captionID": f"{FLICKR_ID}.jpg#4",
        }
        (raw / "snli_ve" / f"snli_ve_{split}.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _listed(split: str) -> dict[str, object]:
    name = f"COCO_{split}_{COCO_ID:012d}.jpg"
    return {"id": COCO_ID, "file_name": name, "width": WIDTH, "height": HEIGHT, "license": 1}


def _write_captions(raw: Path) -> None:
    for split in ("train2014", "val2014"):
        captions = [
            {"id": i, "image_id": COCO_ID, "caption": f"A man {i} on a horse."} for i in range(5)
        ]
        content = {"info": {}, "licenses": [], "images": [_listed(split)], "annotations": captions}
        write_json(raw / "coco" / "annotations" / f"captions_{split}.json", content)


def _write_vqa(raw: Path) -> None:
    asked = [
        {"image_id": COCO_ID, "question": f"What is {i}?", "question_id": COCO_ID * 1000 + i}
        for i in range(3)
    ]
    for split in ("train2014", "val2014", "test-dev2015"):
        content = {"info": {}, "task_type": "Open-Ended", "questions": asked}
        write_json(raw / "vqav2" / f"v2_OpenEnded_mscoco_{split}_questions.json", content)
    answers = [
        {
            "image_id": COCO_ID,
            "question_id": COCO_ID * 1000 + i,
            "multiple_choice_answer": "net",
            "answers": [
                {"answer": "net", "answer_confidence": "yes", "answer_id": k} for k in range(1, 11)
            ],
        }
        for i in range(3)
    ]
    for split in ("train2014", "val2014"):
        path = raw / "vqav2" / f"v2_mscoco_{split}_annotations.json"
        write_json(path, {"info": {}, "annotations": answers})


def _write_refcoco(raw: Path) -> None:
    folder = raw / "refer" / "refcoco"
    box = {"id": 1719310, "image_id": COCO_ID, "category_id": 1, "bbox": [2, 3, 9.5, 8]}
    content = {"images": [_listed("train2014")], "annotations": [box], "categories": []}
    write_json(folder / "instances.json", content)
    refs = [
        {
            "ref_id": number,
            "ann_id": 1719310,
            "image_id": COCO_ID,
            "category_id": 1,
            "split": split,
            "file_name": f"COCO_train2014_{COCO_ID:012d}_0.jpg",
            "sent_ids": [number],
            "sentences": [
                {"sent_id": number, "sent": "the lady", "raw": "THE LADY", "tokens": ["the"]}
            ],
        }
        for number, split in enumerate(("train", "val", "testA", "testB"))
    ]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("coco_captions", {"caption": 2}),
        ("vqav2", {"vqa": 9}),
        ("refcoco", {"grounding": 4}),
        ("snli_ve", {"entailment": 3}),
    ],
)
def test_a_recipe_fits_what_the_archives_unpack_to(
    unpacked: Path, capsys: pytest.CaptureFixture[str], name: str, tasks: dict[str, int]
) -> None:
    recipe = RECIPES / f"prepare_{name}.yaml"
    assert main(["data", "lint", f"--config={recipe}"]) == 0, capsys.readouterr().out
    config = load(PrepareConfig, [recipe])
    found: Counter[str] = Counter()
    for dataset in config.datasets:
        folder = prepare_in_process(config, dataset)
        found.update(read_manifest(folder).tasks)
        assert verify_dataset(folder, decode=True).problems.total == 0
    assert found == tasks
