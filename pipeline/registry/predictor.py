"""Prediction with one prompt on its base, for an image and a text.

The same path as evaluation: the task renders the instruction, constrains generation and reads the
hypothesis, so a registered prompt answers exactly as it was scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from data_prep.instructions import source_text
from model.generation import generate
from model.images import to_pixels
from model.tuning import TunedModel, leaves_base_alone
from pipeline.errors import RegistryError
from pipeline.evaluation.answering import MAX_SOURCE_LENGTH, source_batch
from pipeline.registry.artifact import attach_prompt, read_record
from pipeline.registry.bases import LoadedBase, base_place, read_base, shared_base
from pipeline.registry.picture_input import ImageInput, open_image
from pipeline.registry.record import PromptRecord
from pipeline.registry.tuning_values import from_values
from pipeline.tasks.base import Prediction
from pipeline.tasks.registry import get_task
from pipeline.tracking.config import DEFAULT_OUTPUT_DIR, TrackingConfig, resolve_store

if TYPE_CHECKING:
    import pandas as pd

BEAM_SIZE = 5
"""Beams unless a caller asks for another number; evaluation's default."""
MAX_BEAM_SIZE = 64
"""More than any search gains from; a request may not take the memory of a service."""


class Predictor:
    """One prompt, ready to answer."""

    def __init__(self, model: TunedModel, base: LoadedBase, record: PromptRecord) -> None:
        self.record = record
        self._model = model
        self.base = base

    @classmethod
    def from_folder(cls, folder: str | Path, base: str | None = None) -> Predictor:
        """Loads a prompt artifact onto its base.

        Args:
            folder: The artifact.
            base: Folder or name of the base; None takes PREFIXWORKS_BASE, else the base's name.

        Raises:
            RegistryError: the artifact is damaged, its base is not found, or the base that is found
                is another one.
        """
        record = read_record(folder)
        place = base or base_place(record)
        shares = leaves_base_alone(from_values(record.meta.tuning, record.meta.name))
        loaded = shared_base(place) if shares else read_base(place)
        _check_tokenizer(record, loaded)
        model = attach_prompt(loaded.model, folder, base_fingerprint=loaded.fingerprint)
        return cls(model, loaded, record)

    def predict(
        self,
        image: ImageInput,
        text: str | None = None,
        *,
        task: str | None = None,
        beam_size: int = BEAM_SIZE,
    ) -> Prediction:
        """Answers for one image.

        Args:
            image: Path, URL, bytes, data URL or base64 text of an image file, or a Pillow image.
            text: Question, expression or hypothesis; None for a task that asks about the whole
                image.
            task: One of the prompt's tasks; needed only when it has several.
            beam_size: Beams of the search, at most MAX_BEAM_SIZE.

        Returns:
            Text, box in pixels of the given image, and score, as far as the task has them.

        Raises:
            RegistryError: the task is not one of the prompt's, it needs a text and has none, or the
                number of beams is out of range.
            DataError: the image cannot be read.
        """
        if not 1 <= beam_size <= MAX_BEAM_SIZE:
            raise RegistryError(f"beam_size = {beam_size} is not from 1 to {MAX_BEAM_SIZE}")
        name = self._task_name(task)
        picture = open_image(image)
        source_ids_BS = self._source(name, text)
        return self._answer(name, picture, source_ids_BS, beam_size)

    def _task_name(self, wanted: str | None) -> str:
        names = [use.name for use in self.record.meta.tasks]
        if wanted is None and len(names) == 1:
            return names[0]
        if wanted in names:
            return str(wanted)
        title, known = self.record.meta.name, ", ".join(names)
        if wanted is None:
            raise RegistryError(f"prompt {title!r} knows several tasks; name one of: {known}")
        raise RegistryError(f"prompt {title!r} was not made for task {wanted!r}, but for: {known}")

    def _source(self, task: str, text: str | None) -> torch.Tensor:
        try:
            instruction = source_text(task, text)
        except ValueError as error:
            raise RegistryError(str(error)) from error
        return source_batch([instruction], self.base.tokenizer, self._max_source_length())

    def _max_source_length(self) -> int:
        data = self.record.meta.config.get("data", {})
        return int(data.get("max_source_length", MAX_SOURCE_LENGTH))

    @torch.inference_mode()
    def _answer(
        self, name: str, picture: Image.Image, source_ids_BS: torch.Tensor, beam_size: int
    ) -> Prediction:
        task = get_task(name, self.record.meta.answers)
        config, tokenizer = self.base.model.config, self.base.tokenizer
        size = self.record.meta.image_size
        best = generate(
            self._model.base,
            source_ids_BS,
            to_pixels(picture, size)[None],
            torch.ones(1, dtype=torch.bool),
            prompts=self._model.prompts(),
            options=task.options(beam_size, tokenizer, config, size),
        )[0][0]
        return task.decode(best, picture.size, tokenizer, config, size)


def _check_tokenizer(record: PromptRecord, base: LoadedBase) -> None:
    # The fingerprint is of the weights: the same ones with another tokenizer read other words.
    found = base.tokenizer.digest
    if found != record.meta.tokenizer_digest:
        raise RegistryError(
            f"prompt {record.meta.name!r} was made with tokenizer {record.meta.tokenizer_digest},"
            f" the base {base.model.config.name} has {found}"
        )


@contextmanager
def opened_reference(reference: str, store_uri: str | None = None) -> Iterator[Path]:
    """The artifact folder behind a reference, for as long as the block runs.

    Args:
        reference: Path of an artifact folder, `name@alias`, `name/version`, also behind `models:/`.
        store_uri: MLflow store; None for MLFLOW_TRACKING_URI, else runs/mlflow.db.

    Raises:
        RegistryError: there is no such version, or its files cannot be fetched.
    """
    if Path(reference).is_dir():
        yield Path(reference)
        return
    from pipeline.registry.store import PromptRegistry  # MLflow imports slowly

    location = resolve_store(TrackingConfig(uri=store_uri), DEFAULT_OUTPUT_DIR)
    with PromptRegistry(location).fetched(reference) as folder:
        yield folder


def predict_frame(
    predictor: Predictor, rows: pd.DataFrame, beam_size: int = BEAM_SIZE
) -> pd.DataFrame:
    """Answers for each row of a table.

    Args:
        predictor: The prompt.
        rows: Columns `image`, and `text` and `task` where needed.
        beam_size: Beams of the search.

    Returns:
        Columns `text`, `box`, `score`, in the order of the rows and with their index.
    """
    import pandas as pd

    answers = [
        predictor.predict(
            row["image"], _value(row, "text"), task=_value(row, "task"), beam_size=int(beam_size)
        )
        for row in rows.to_dict(orient="records")
    ]
    values = {
        "text": [answer.text for answer in answers],
        "box": [
            None if answer.box is None else [float(c) for c in answer.box] for answer in answers
        ],
        "score": [float(answer.score) for answer in answers],
    }
    return pd.DataFrame(values, index=rows.index)


def _value(row: Mapping[str, object], name: str) -> str | None:
    # pandas writes a missing text as NaN or None.
    value = row.get(name)
    return value if isinstance(value, str) else None
