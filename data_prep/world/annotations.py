"""Writes what is said about the scenes in the files of COCO, VQAv2, REFER and SNLI-VE.

A scene becomes `SceneRows`, rows that are already JSON text: they cross process borders cheaply,
and a file of a million answers is streamed, never held.
"""

import json
import pickle
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.world.captions import captions
from data_prep.world.expressions import expressions
from data_prep.world.hypotheses import Hypothesis, hypothesis
from data_prep.world.questions import Question, annotators_answers, questions
from data_prep.world.scene import Scene, Thing
from data_prep.world.vocabulary import CATEGORY_IDS, Domain, Expressions, Split


@dataclass(frozen=True, kw_only=True)
class SceneRows:
    """All rows of one scene. Texts are JSON objects; `refs` are REFER's dictionaries."""

    image: str
    captions: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    instances: tuple[str, ...]
    hypothesis: str
    refs: tuple[dict[str, Any], ...]
    refer_image: str


def scene_rows(rng: random.Random, scene: Scene, spoken: Expressions = "varied") -> SceneRows:
    """Speaks about the scene and renders every row.

    The calls draw from one `rng`, so their order decides the texts.

    Args:
        rng: Decides.
        scene: What is spoken of.
        spoken: Kind of the referring expressions.
    """
    texts = captions(scene)
    asked = questions(rng, scene)
    refs = _refs(rng, scene, spoken)
    statement = hypothesis(rng, scene)
    image = {
        "id": scene.image_id,
        "file_name": scene.file_name,
        "width": scene.width,
        "height": scene.height,
        "license": 1,
    }
    # REFER keeps all splits in one file, so its names start with the split's folder.
    refer_image = {**image, "file_name": f"{scene.split}/{scene.file_name}"}
    return SceneRows(
        image=json.dumps(image),
        captions=tuple(
            json.dumps({"id": scene.image_id * 10 + n, "image_id": scene.image_id, "caption": text})
            for n, text in enumerate(texts)
        ),
        questions=tuple(
            json.dumps(
                {
                    "image_id": scene.image_id,
                    "question": question.text,
                    "question_id": scene.image_id * 1000 + n,
                }
            )
            for n, question in enumerate(asked)
        ),
        answers=tuple(
            json.dumps(_vqa_annotation(rng, scene, question, n)) for n, question in enumerate(asked)
        ),
        instances=tuple(
            json.dumps(_instance(scene, thing, n)) for n, thing in enumerate(scene.things)
        ),
        hypothesis=json.dumps(_snli_ve_row(scene, texts[0], statement)),
        refs=refs,
        refer_image=json.dumps(refer_image),
    )


def _annotation_id(scene: Scene, place: int) -> int:
    return scene.image_id * 10 + place


def _instance(scene: Scene, thing: Thing, place: int) -> dict[str, Any]:
    x0, y0, x1, y1 = thing.box
    width, height = round(x1 - x0, 2), round(y1 - y0, 2)
    return {
        "id": _annotation_id(scene, place),
        "image_id": scene.image_id,
        "category_id": CATEGORY_IDS[thing.kind],
        "bbox": [x0, y0, width, height],
        "area": round(width * height, 2),
        "iscrowd": 0,
    }


def _vqa_annotation(
    rng: random.Random, scene: Scene, question: Question, number: int
) -> dict[str, Any]:
    answers = annotators_answers(rng, question)
    return {
        "question_id": scene.image_id * 1000 + number,
        "image_id": scene.image_id,
        "question_type": question.question_type,
        "answer_type": question.answer_type,
        "multiple_choice_answer": Counter(text for text, _ in answers).most_common(1)[0][0],
        "answers": [
            {"answer_id": n, "answer": text, "answer_confidence": confidence}
            for n, (text, confidence) in enumerate(answers, start=1)
        ],
    }


def _refs(rng: random.Random, scene: Scene, spoken: Expressions) -> tuple[dict[str, Any], ...]:
    rows = []
    for number, expression in enumerate(expressions(rng, scene, spoken)):
        place = next(n for n, thing in enumerate(scene.things) if thing is expression.target)
        ref_id = scene.image_id * 10 + number
        sentence = {
            "sent_id": ref_id,
            "raw": expression.text,
            "sent": expression.text,
            "tokens": expression.text.replace(",", " ,").split(),
        }
        rows.append(
            {
                "ref_id": ref_id,
                "ann_id": _annotation_id(scene, place),
                "image_id": scene.image_id,
                "category_id": CATEGORY_IDS[expression.target.kind],
                "file_name": f"{scene.split}/{scene.file_name}",
                "split": scene.split,
                "sent_ids": [ref_id],
                "sentences": [sentence],
            }
        )
    return tuple(rows)


def _snli_ve_row(scene: Scene, premise: str, statement: Hypothesis) -> dict[str, Any]:
    name = Path(scene.file_name)
    return {
        "Flickr30K_ID": name.stem,
        "captionID": f"{name}#0",
        "pairID": f"{name}#0r1{statement.label[0]}",
        "gold_label": statement.label,
        "annotator_labels": [statement.label],
        "sentence1": premise,
        "sentence2": statement.text,
    }


class _JsonTable:
    """A JSON object file with one long streamed list, after which the short fields follow."""

    def __init__(self, path: Path, section: str) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._file.write(f'{{"{section}": [')
        self._first = True

    def add(self, rows: Iterable[str]) -> None:
        for row in rows:
            self._file.write("\n" if self._first else ",\n")
            self._file.write(row)
            self._first = False

    def close(self, fields: dict[str, str]) -> None:
        """Ends the list and writes `fields`, whose values are JSON text."""
        self._file.write("\n]")
        for name, text in fields.items():
            self._file.write(f',\n"{name}": {text}')
        self._file.write("}\n")
        self._file.close()


def _list_text(rows: list[str]) -> str:
    return "[\n" + ",\n".join(rows) + "\n]"


def _info(domain: Domain, split: str) -> str:
    text = f"prefixworks world, {domain} domain, {split}"
    return json.dumps({"description": text, "version": "1"})


_LICENSES = json.dumps([{"id": 1, "name": "Apache-2.0"}])
_CATEGORIES = json.dumps(
    [
        {"id": number, "name": name, "supercategory": name.rsplit(" ", 1)[1]}
        for name, number in CATEGORY_IDS.items()
    ]
)


class SplitWriter:
    """The per-split files: captions, VQA questions and annotations, entailment and detection."""

    def __init__(self, folder: Path, domain: Domain, split: Split) -> None:
        self._images: list[str] = []
        self._domain, self._split = domain, split
        self._captions = _JsonTable(folder / f"captions_{split}.json", "annotations")
        self._detection = _JsonTable(folder / f"detection_{split}.json", "annotations")
        self._questions = _JsonTable(folder / f"vqa_questions_{split}.json", "questions")
        self._answers = _JsonTable(folder / f"vqa_annotations_{split}.json", "annotations")
        self._hypotheses = (folder / f"snli_ve_{split}.jsonl").open("w", encoding="utf-8")

    def add(self, rows: SceneRows) -> None:
        """Appends the rows of one scene."""
        self._images.append(rows.image)
        self._captions.add(rows.captions)
        self._detection.add(rows.instances)
        self._questions.add(rows.questions)
        self._answers.add(rows.answers)
        self._hypotheses.write(rows.hypothesis + "\n")

    def close(self) -> None:
        """Completes the files."""
        info = _info(self._domain, self._split)
        images = _list_text(self._images)
        coco = {"images": images, "info": info, "licenses": _LICENSES}
        self._captions.close(coco)
        self._detection.close({**coco, "categories": _CATEGORIES})
        vqa = {
            "info": info,
            "license": json.dumps({"name": "Apache-2.0"}),
            "data_type": json.dumps("prefixworks-world"),
            "data_subtype": json.dumps(self._split),
        }
        self._questions.close({**vqa, "task_type": json.dumps("Open-Ended")})
        self._answers.close(vqa)
        self._hypotheses.close()


class ReferWriter:
    """REFER's two files, which hold all splits: `refs(synth).p` and `instances.json`."""

    def __init__(self, folder: Path, domain: Domain) -> None:
        folder.mkdir()
        self._folder, self._domain = folder, domain
        self._images: list[str] = []
        self._refs: list[dict[str, Any]] = []
        self._instances = _JsonTable(folder / "instances.json", "annotations")

    def add(self, rows: SceneRows) -> None:
        """Appends the rows of one scene."""
        self._images.append(rows.refer_image)
        self._instances.add(rows.instances)
        self._refs.extend(rows.refs)

    def close(self) -> None:
        """Completes the files."""
        self._instances.close(
            {
                "images": _list_text(self._images),
                "categories": _CATEGORIES,
                "info": _info(self._domain, "all splits"),
                "licenses": _LICENSES,
            }
        )
        with (self._folder / "refs(synth).p").open("wb") as file:
            # Protocol 2, as REFER's own files; the memo is off because it depends on which strings
            # happen to be one object, and the bytes must not.
            pickler = pickle.Pickler(file, protocol=2)
            pickler.fast = True
            pickler.dump(self._refs)
