"""Readers of annotation formats, one file each, found by the name that a recipe gives."""

from data_prep.readers import (
    coco_captions,
    coco_instances,
    karpathy,
    ofa_tsv,
    refer,
    snli_ve,
    table,
    vqav2,
    webdataset,
)
from data_prep.readers.base import Reader, ReadItem, SourceRecord, Workspace

READERS: dict[str, Reader] = {
    "coco_captions": coco_captions.read,
    "coco_instances": coco_instances.read,
    "karpathy": karpathy.read,
    "ofa_tsv": ofa_tsv.read,
    "refer": refer.read,
    "snli_ve": snli_ve.read,
    "table": table.read,
    "vqav2": vqav2.read,
    "webdataset": webdataset.read,
}

__all__ = ["READERS", "ReadItem", "Reader", "SourceRecord", "Workspace"]
