"""Small raw data in the five real formats, to prepare, to break and to prepare again."""

from __future__ import annotations

import json
import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from data_prep.config import DatasetConfig, PrepareConfig, SourceConfig

WIDTH, HEIGHT = 48, 32


def jpeg(seed: int, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> bytes:
    """A JPEG whose every pixel differs a little, so that cutting it off is noticed."""
    image = Image.new("RGB", size)
    image.putdata(
        [
            ((x * 5 + seed) % 256, (y * 7 + 3 * seed) % 256, (x * y + seed) % 256)
            for y in range(size[1])
            for x in range(size[0])
        ]
    )
    sink = BytesIO()
    image.save(sink, "JPEG", quality=90, **options)
    return sink.getvalue()


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def write_raw(folder: Path, images: int = 6) -> None:
    """Writes images 1..n and annotations of all five formats, one or two of each per image."""
    (folder / "images").mkdir(parents=True)
    ids = range(1, images + 1)
    for i in ids:
        (folder / "images" / f"{i:012d}.jpg").write_bytes(jpeg(i))
    listed = [
        {"id": i, "file_name": f"{i:012d}.jpg", "width": WIDTH, "height": HEIGHT} for i in ids
    ]
    captions = [
        {"id": 10 * i + k, "image_id": i, "caption": f"Caption {k} of image {i}."}
        for i in ids
        for k in range(2)
    ]
    write_json(folder / "captions.json", {"images": listed, "annotations": captions})
    boxes = [
        {"id": 10 * i + k, "image_id": i, "category_id": 1 + k, "bbox": [20 - 10 * k, 4, 9.5, 8]}
        for i in ids
        for k in range(2)
    ]
    names = [{"id": 1, "name": "small red circle"}, {"id": 2, "name": "big blue square"}]
    instances = {"images": listed, "annotations": boxes, "categories": names}
    write_json(folder / "instances.json", instances)
    _write_vqa(folder, ids)
    _write_refs(folder, ids)
    lines = [
        {
            "Flickr30K_ID": f"{i:012d}",
            "pairID": f"{i:012d}.jpg#0r1e",
            "gold_label": ("entailment", "contradiction", "neutral")[i % 3],
            "sentence1": "A premise.",
            "sentence2": f"There is thing {i}.",
        }
        for i in ids
    ]
    (folder / "snli_ve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_vqa(folder: Path, ids: range) -> None:
    questions = [{"question_id": 100 * i, "image_id": i, "question": f"Is {i} - red?"} for i in ids]
    answers = [
        {
            "question_id": 100 * i,
            "image_id": i,
            "answers": [{"answer": "no", "answer_id": 1}]
            + [{"answer": "yes", "answer_id": k} for k in range(2, 11)],
        }
        for i in ids
    ]
    write_json(folder / "questions.json", {"questions": questions})
    write_json(folder / "answers.json", {"annotations": answers})


def _write_refs(folder: Path, ids: range) -> None:
    refs = [
        {
            "ref_id": 7 * i,
            "ann_id": 10 * i,
            "image_id": i,
            "split": "train" if i % 2 else "val",
            "sentences": [
                {"sent_id": 20 * i, "sent": "red circle", "raw": "Red circle"},
                {"sent_id": 20 * i + 1, "sent": "the right one", "raw": "the right one"},
            ],
        }
        for i in ids
    ]
    write_refs(folder, refs)


def write_refs(folder: Path, refs: object) -> None:
    (folder / "refs(test).p").write_bytes(pickle.dumps(refs))


def sources(folder: Path) -> dict[str, SourceConfig]:
    """The sources that write_raw wrote, by reader."""
    images = str(folder / "images")
    return {
        "coco_captions": SourceConfig(
            reader="coco_captions", images=images, annotations=str(folder / "captions.json")
        ),
        "vqav2": SourceConfig(
            reader="vqav2",
            images=images,
            questions=str(folder / "questions.json"),
            annotations=str(folder / "answers.json"),
        ),
        "refer": SourceConfig(
            reader="refer",
            images=images,
            annotations=str(folder / "refs(test).p"),
            instances=str(folder / "instances.json"),
        ),
        "snli_ve": SourceConfig(
            reader="snli_ve", images=images, annotations=str(folder / "snli_ve.jsonl")
        ),
        "coco_instances": SourceConfig(
            reader="coco_instances", images=images, annotations=str(folder / "instances.json")
        ),
    }


def prepare_config(folder: Path, output: Path, **changes: Any) -> PrepareConfig:
    """A configuration that prepares everything that write_raw wrote as 'mix'."""
    settings: dict[str, Any] = {"shard_size": 5, "workers": 1, "max_reject_rate": 0.0, **changes}
    return PrepareConfig(
        output_dir=str(output),
        datasets={"mix": DatasetConfig(sources=list(sources(folder).values()))},
        **settings,
    )
