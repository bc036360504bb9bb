"""REFER's layout (RefCOCO, RefCOCO+, RefCOCOg): one grounding sample an expression.

Its references come as a pickle. Unpickling can run any code, so the file is read by an unpickler
that knows no classes and no functions at all: plain containers, texts and numbers need none.
"""

import pickle
from collections.abc import Iterator
from functools import partial
from typing import Any, NoReturn

from data_prep.config import SourceConfig
from data_prep.errors import DataError
from data_prep.quarantine import Reason, Rejected
from data_prep.readers.base import (
    ReadItem,
    SourceRecord,
    guarded,
    load_json,
    place,
    rows_of,
    take,
    take_box,
)
from data_prep.readers.coco import CocoImage, images_by_id, known_image
from data_prep.stores import open_input


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}; only plain data are read")


def read(config: SourceConfig) -> Iterator[ReadItem]:
    """Yields a sample for every expression of the configured split."""
    refs_path, instances_path = str(config.annotations), str(config.instances)
    content = load_json(instances_path)
    images = images_by_id(content, instances_path)
    boxes = {
        row["id"]: row
        for row in rows_of(content, "annotations", instances_path)
        if isinstance(row, dict) and isinstance(row.get("id"), int)
    }
    for number, ref in enumerate(load_plain_pickle(refs_path)):
        if isinstance(ref, dict) and ref.get("split") not in (config.split, None):
            continue
        sentences = ref.get("sentences") if isinstance(ref, dict) else None
        count = len(sentences) if isinstance(sentences, list) and sentences else 1
        for which in range(count):
            where = place(refs_path, f"[{number}].sentences[{which}]")
            uid = f"{config.source_name}/{config.split}/{_identity(ref, number, which)}"
            build = partial(_record, uid, where, images, boxes, ref, which)
            yield guarded(uid, where, build)


def load_plain_pickle(path: str) -> list[Any]:
    """Reads a pickled list of plain data without running anything that the file asks for.

    Raises:
        DataError: The file is missing, is no pickle, holds something else than a list, or refers
            to a class or a function.
    """
    try:
        with open_input(path) as file:
            # utf-8: REFER's files were written by Python 2, whose texts are bytes.
            content = _PlainUnpickler(file, encoding="utf-8").load()
    except DataError:
        raise
    except Exception as error:
        # Damaged or hostile bytes make the unpickler raise nearly anything.
        raise DataError(f"{path} is not a pickle of plain data: {error}") from error
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list, found {type(content).__name__}")
    return content


def _identity(ref: Any, number: int, which: int) -> str:
    ref_id = ref.get("ref_id", f"row {number}") if isinstance(ref, dict) else f"row {number}"
    try:
        return f"{ref_id}/{ref['sentences'][which]['sent_id']}"
    except (KeyError, IndexError, TypeError):
        return f"{ref_id}/{which}"


def _record(
    uid: str,
    where: str,
    images: dict[int, CocoImage],
    boxes: dict[int, Any],
    ref: Any,
    which: int,
) -> SourceRecord:
    take(ref, "split", str)
    image = known_image(images, take(ref, "image_id", int))
    box = boxes.get(take(ref, "ann_id", int))
    if box is None:
        raise Rejected(Reason.UNKNOWN_ANNOTATION, f"box {ref['ann_id']} is not in the instances")
    if box.get("image_id") != ref["image_id"]:
        raise Rejected(
            Reason.MALFORMED_ANNOTATION,
            f"box {ref['ann_id']} lies in image {box.get('image_id')!r:.80}, "
            f"the expression in {ref['image_id']}",
        )
    sentences = take(ref, "sentences", list)
    if not sentences:
        raise Rejected(Reason.MALFORMED_ANNOTATION, "the reference has no expressions")
    return SourceRecord(
        uid=uid,
        task="grounding",
        image=image.name,
        position=where,
        size=image.size,
        text=take(sentences[which], "sent", str),
        boxes=((take_box(box), None),),
    )
