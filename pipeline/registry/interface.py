"""What a registered prompt looks like to MLflow: signature, input example, requirements, tags."""

from __future__ import annotations

import base64
import importlib.metadata
import io

import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema
from PIL import Image, ImageDraw

from pipeline.registry.record import PromptRecord

RUNTIME_LIBRARIES = ("mlflow", "numpy", "pandas", "pillow", "safetensors", "tokenizers", "torch")
"""Libraries that a prediction imports."""

_GENERATED = frozenset(
    {
        "task",
        "base",
        "base_fingerprint",
        "method",
        "trainable_parameters",
        "prompt_digest",
        "record_digest",
        "licence",
        "length",
        "metric",
        "metric_value",
        "metric_data",
    }
)
"""Tags that registering writes; people's own have other names."""
PROMOTION_TAG = "promotion"
"""Tag of a version that says why it became champion."""


def signature() -> ModelSignature:
    """Columns in and out; `text` and `task` may be left out where the task asks for none."""
    inputs = Schema(
        [
            # A path, URL, data URL or base64 as text, or a file's bytes: no one type says that.
            ColSpec(AnyType(), "image"),  # type: ignore[no-untyped-call]
            ColSpec(DataType.string, "text", required=False),
            ColSpec(DataType.string, "task", required=False),
        ]
    )
    outputs = Schema(
        [
            ColSpec(DataType.string, "text", required=False),
            ColSpec(Array(DataType.double), "box", required=False),
            ColSpec(DataType.double, "score"),
        ]
    )
    params = ParamSchema([ParamSpec("beam_size", DataType.long, 5)])
    return ModelSignature(inputs=inputs, outputs=outputs, params=params)


def input_example(record: PromptRecord) -> pd.DataFrame:
    """One request that works anywhere: a drawn picture as base64, and a text."""
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).ellipse((16, 16, 48, 48), fill="red")
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    names = [task.name for task in record.meta.tasks]
    text = "what color is the circle?" if names[:1] == ["vqa"] else "the red circle"
    row = {"image": image, "text": text}
    if len(names) > 1:
        row["task"] = names[0]
    return pd.DataFrame([row])


def version_tags(record: PromptRecord) -> dict[str, str]:
    """Tags that make a version findable in the UI."""
    meta = record.meta
    tags = {
        "task": ",".join(task.name for task in meta.tasks),
        "base": meta.base.name,
        "base_fingerprint": meta.base.fingerprint,
        "method": meta.method,
        "trainable_parameters": str(meta.trainable_parameters),
        "prompt_digest": record.digest,
        "record_digest": record.own_digest,
        "licence": meta.licence,
    }
    if record.length is not None:
        tags["length"] = str(record.length)
    if record.headline is not None:
        metric, value = record.headline
        tags |= {"metric": metric, "metric_value": f"{value:.6g}"}
        measured = ", ".join(f"{use.name} {use.digest}" for use in record.measured_on)
        tags |= {"metric_data": measured} if measured else {}
    for role in sorted({use.role for use in meta.data}):
        uses = [f"{use.name} {use.digest}" for use in meta.data if use.role == role]
        tags[f"data.{role}"] = ", ".join(uses)
    return tags


def is_generated_tag(name: str) -> bool:
    """Whether a tag is one that `version_tags` writes."""
    return name in _GENERATED or name.startswith("data.")


def requirements() -> list[str]:
    """Pinned requirements of prediction, from what is installed: nothing is looked up."""
    pins = []
    for name in ("prefixworks", *RUNTIME_LIBRARIES):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        # A local part such as +cpu names a build that an index may not offer.
        pins.append(f"{name}=={version.partition('+')[0]}")
    return pins
