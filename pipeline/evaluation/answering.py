"""Answers of a model to samples: the path that evaluation, validation and zero-shot share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from data_prep.schema import Sample
from model.candidates import score_candidates
from model.generation import GenerationOptions, Hypothesis, generate
from model.images import to_pixels
from model.ofa.model import OFA
from model.ofa.prompts import Prompts
from model.tokenizer import OFATokenizer
from model.tuning import TunedModel
from pipeline.errors import ConfigError
from pipeline.tasks.base import Prediction
from pipeline.tasks.registry import get_task
from pipeline.tasks.vqa import VQA, answer_ids

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
        answers: tuple[str, ...] = (),
        score_all: bool = False,
        agree: Callable[[bool], bool] = bool,
    ) -> None:
        """Prepares to answer. Set the model to eval before.

        Args:
            model: A tuned model, or a base alone, which answers without a prompt.
            tokenizer: The base's.
            image_size: Side in pixels of the square that images are resized to.
            beam_size: Beams of the search.
            max_source_length: Tokens of an instruction that are kept, bos and eos included.
            answers: The only answers to questions; none leaves them open.
            score_all: Choose the best of all these answers, instead of searching one among them.
            agree: As of `generate`, where processes hold the model together.
        """
        self._base: OFA
        self._prompts: Prompts | None = None
        self._prompt_names: tuple[str, ...] = ()
        if isinstance(model, TunedModel):
            self._base = model.base
            self._prompt_names = model.prompt_names
            with torch.no_grad():
                self._prompts = model.prompts()
        else:
            self._base = model
        self._tokenizer = tokenizer
        self._image_size = image_size
        self._beam_size = beam_size
        self._max_source_length = max_source_length
        self._answers = answers
        self._score_all = score_all and bool(answers)
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

        Raises:
            ConfigError: the model has several prompts, and none for this task.
        """
        task = get_task(task_name, self._answers)
        parameter = next(self._base.parameters())
        inputs = (
            source_batch(
                [s.instruction for s in samples], self._tokenizer, self._max_source_length
            ).to(parameter.device),
            torch.stack([to_pixels(image, self._image_size) for image in images]).to(parameter),
            torch.ones(len(samples), dtype=torch.bool, device=parameter.device),
        )
        prompts = self._prompts_of(task_name)
        if self._score_all and task_name == VQA.name:
            found = self._best_of_all(*inputs, prompts)
        else:
            options = self._search(task_name)
            searched = generate(
                self._base, *inputs, prompts=prompts, options=options, agree=self._agree
            )
            found = [hypotheses[0] for hypotheses in searched]
        return [
            task.decode(best, image.size, self._tokenizer, self._base.config, self._image_size)
            for best, image in zip(found, images, strict=True)
        ]

    def _best_of_all(
        self,
        source_ids_BS: Tensor,
        images_BCHW: Tensor,
        present_B: Tensor,
        prompts: Prompts | None,
    ) -> list[Hypothesis]:
        candidates = answer_ids(self._answers, self._tokenizer)
        scores_BA = score_candidates(
            self._base,
            source_ids_BS,
            images_BCHW,
            present_B,
            candidates=candidates,
            prompts=prompts,
        )
        eos = self._tokenizer.layout.eos
        # The first of equal scores: the more frequent answer.
        return [
            Hypothesis([*candidates[best], eos], score, [])
            for score, best in zip(*(x.tolist() for x in scores_BA.max(dim=1)), strict=True)
        ]

    def _prompts_of(self, task_name: str) -> Prompts | None:
        if not self._prompt_names or self._prompts is None:
            return self._prompts
        if task_name not in self._prompt_names:
            known = ", ".join(self._prompt_names)
            raise ConfigError(f"there is no prompt for task {task_name!r}, only for {known}")
        place = torch.tensor([self._prompt_names.index(task_name)])
        return self._prompts.select(place.to(next(self._base.parameters()).device))

    def _search(self, task_name: str) -> GenerationOptions:
        if task_name not in self._options:
            self._options[task_name] = get_task(task_name, self._answers).options(
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
