"""Readers of annotation formats, one file each, found by the name that a recipe gives."""

from data_prep.readers import coco_captions, coco_instances, refer, snli_ve, vqav2
from data_prep.readers.base import Reader, ReadItem, SourceRecord

READERS: dict[str, Reader] = {
    "coco_captions": coco_captions.read,
    "coco_instances": coco_instances.read,
    "refer": refer.read,
    "snli_ve": snli_ve.read,
    "vqav2": vqav2.read,
}

__all__ = ["READERS", "ReadItem", "Reader", "SourceRecord"]
