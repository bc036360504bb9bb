"""Answers of a model to samples: the path that evaluation, validation and zero-shot share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from data_prep.schema import Sample
from model.generation import GenerationOptions, generate
from model.images import to_pixels
from model.ofa.model import OFA
from model.ofa.prompts import Prompts
from model.tokenizer import OFATokenizer
from model.tuning import TunedModel
from pipeline.tasks.base import Prediction
from pipeline.tasks.registry import get_task

MAX_SOURCE_LENGTH = 80
"""Tokens of an instruction that are kept, unless a run says otherwise."""


class Answerer:
    """A model that answers batches of samples, with its prompts computed once.

    The prompts are those of the moment of construction: make a new one after each training step.
    """

    def __init__(
        self,
        model: TunedModel | OFA,
        tokenizer: OFATokenizer,
        *,
        image_size: int,
        beam_size: int = 5,
        max_source_length: int = MAX_SOURCE_LENGTH,
        agree: Callable[[bool], bool] = bool,
    ) -> None:
        """Prepares to answer. Set the model to eval before.

        Args:
            model: A tuned model, or a base alone, which answers without a prompt.
            tokenizer: The base's.
            image_size: Side in pixels of the square that images are resized to.
            beam_size: Beams of the search.
            max_source_length: Tokens of an instruction that are kept, bos and eos included.
            agree: As of `generate`, where processes hold the model together.
        """
        self._base: OFA
        self._prompts: Prompts | None = None
        if isinstance(model, TunedModel):
            self._base = model.base
            with torch.no_grad():
                self._prompts = model.prompts()
        else:
            self._base = model
        self._tokenizer = tokenizer
        self._image_size = image_size
        self._beam_size = beam_size
        self._max_source_length = max_source_length
        self._agree = agree
        self._options: dict[str, GenerationOptions] = {}

    def answer(
        self, task_name: str, samples: Sequence[Sample], images: Sequence[Image.Image]
    ) -> list[Prediction]:
        """Answers samples of one task.

        Args:
            task_name: Their task.
            samples: The samples; only their instruction is looked at.
            images: The stored image of each; boxes come back in its pixels.
        """
        task = get_task(task_name)
        config = self._base.config
        device = next(self._base.parameters()).device
        pixels_BCHW = torch.stack([to_pixels(image, self._image_size) for image in images])
        found = generate(
            self._base,
            source_batch(
                [s.instruction for s in samples], self._tokenizer, self._max_source_length
            ).to(device),
            pixels_BCHW.to(device, next(self._base.parameters()).dtype),
            torch.ones(len(samples), dtype=torch.bool, device=device),
            prompts=self._prompts,
            options=self._search(task_name),
            agree=self._agree,
        )
        return [
            task.decode(best[0], image.size, self._tokenizer, config, self._image_size)
            for best, image in zip(found, images, strict=True)
        ]

    def _search(self, task_name: str) -> GenerationOptions:
        if task_name not in self._options:
            self._options[task_name] = get_task(task_name).options(
                self._beam_size, self._tokenizer, self._base.config, self._image_size
            )
        return self._options[task_name]


def source_batch(instructions: Sequence[str], tokenizer: OFATokenizer, max_length: int) -> Tensor:
    """Encodes instructions as one batch.

    Args:
        instructions: Rendered source texts.
        tokenizer: The base's.
        max_length: Tokens that are kept of each, bos and eos included.

    Returns:
        int64 [batch, longest], bos first, eos last, right-padded.
    """
    layout = tokenizer.layout
    rows = [
        torch.tensor([layout.bos, *tokenizer.encode(text)[: max_length - 2], layout.eos])
        for text in instructions
    ]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=layout.pad)
