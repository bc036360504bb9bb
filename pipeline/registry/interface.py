"""What a registered prompt looks like to MLflow: signature, input example, runtime libraries."""

from __future__ import annotations

import base64
import io

import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema
from PIL import Image, ImageDraw

from pipeline.registry.record import PromptRecord

RUNTIME_LIBRARIES = ("mlflow", "numpy", "pandas", "pillow", "safetensors", "tokenizers", "torch")
"""Libraries that a prediction imports."""


def signature() -> ModelSignature:
    """Columns in and out; `text` and `task` may be left out where the task asks for none."""
    inputs = Schema(
        [
            ColSpec(DataType.string, "image"),
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
