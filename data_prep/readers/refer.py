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
    Workspace,
    guarded,
    identity_of,
    place,
    shown,
    take,
    take_box,
)
from data_prep.readers.coco import CocoFile
from data_prep.readers.inputs import opened
from data_prep.readers.scratch import Scratch, key_of

_FIELDS = ("image_id", "bbox")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}; only plain data are read")


def read(config: SourceConfig, work: Workspace) -> Iterator[ReadItem]:
    """Yields a sample for every expression of the configured split.

    The references are small by nature and are held; the boxes of instances.json are not.
    """
    refs_path, instances_path = str(config.annotations), str(config.instances)
    with Scratch(work.folder) as scratch:
        file = CocoFile(instances_path, scratch, _FIELDS, key="id")
        for number, ref in enumerate(load_plain_pickle(refs_path)):
            if isinstance(ref, dict) and ref.get("split") not in (config.split, None):
                continue
            sentences = ref.get("sentences") if isinstance(ref, dict) else None
            count = len(sentences) if isinstance(sentences, list) and sentences else 1
            for which in range(count):
                where = place(refs_path, f"[{number}].sentences[{which}]")
                uid = f"{config.source_name}/{config.split}/{_identity(ref, number, which)}"
                yield guarded(uid, where, partial(_record, uid, where, file, ref, which))


def load_plain_pickle(path: str) -> list[Any]:
    """Reads a pickled list of plain data without running anything that the file asks for.

    Raises:
        DataError: The file is missing, is no pickle, holds something else than a list, or refers
            to a class or a function.
    """
    try:
        with opened(path) as file:
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
    plain = ref if isinstance(ref, dict) else {}
    ref_id = identity_of(plain.get("ref_id")) or f"row {number}"
    try:
        sentence_id = identity_of(plain["sentences"][which]["sent_id"])
    except (KeyError, IndexError, TypeError):
        sentence_id = None
    return f"{ref_id}/{sentence_id or which}"


def _record(uid: str, where: str, file: CocoFile, ref: Any, which: int) -> SourceRecord:
    take(ref, "split", str)
    image_key = key_of(take(ref, "image_id", (int, str)))
    box_key = key_of(take(ref, "ann_id", (int, str)))
    if image_key is None or box_key is None:
        raise Rejected(Reason.MALFORMED_ANNOTATION, "'image_id' or 'ann_id' is out of range")
    image = file.image(image_key)
    boxes = file.annotations.get(box_key)
    if not boxes:
        raise Rejected(Reason.UNKNOWN_ANNOTATION, f"box {box_key} is not in the instances")
    if len(boxes) > 1:
        raise Rejected(Reason.MALFORMED_ANNOTATION, f"{len(boxes)} boxes have the id {box_key}")
    box = boxes[0][1]
    if box.get("image_id") != ref["image_id"]:
        raise Rejected(
            Reason.MALFORMED_ANNOTATION,
            f"box {box_key} lies in image {shown(box.get('image_id'))}, "
            f"the expression in {image_key}",
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
