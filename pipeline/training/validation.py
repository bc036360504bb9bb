"""Validation while training: loss on held-out samples, and answers where a metric needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from model.tokenizer import OFATokenizer
from model.tuning import TunedModel
from pipeline.config import RunConfig
from pipeline.evaluation.answering import Answerer
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.evaluator import choose_samples, only_answers, score_rows
from pipeline.evaluation.report import PredictionRow
from pipeline.training.data import Collator, ShardReader
from pipeline.training.objective import Objective
from pipeline.training.prompt_losses import parts_of
from pipeline.training.validation_pictures import ValidationPictures
from pipeline.training.world import World

SampleT = TypeVar("SampleT")

LOSS = "validation/loss"
NLL = "validation/nll"


def loss_of(task: str) -> str:
    """The metric of a task's own loss, where it has a prompt of its own."""
    return f"{task}/loss"


class Validator:
    """Measures a model on the same held-out samples each time, spread over the ranks."""

    def __init__(
        self,
        readers: Sequence[ShardReader],
        tokenizer: OFATokenizer,
        collate: Collator,
        config: RunConfig,
        image_size: int,
        world: World,
        answers: tuple[str, ...] = (),
    ) -> None:
        """Chooses the samples; answers are the only ones that questions may get.

        Raises:
            DataError: a wanted task has no samples.
            ConfigError: a wanted task is unknown, or closed answers are wanted and there are none.
        """
        self._readers = readers
        self._tokenizer = tokenizer
        self._config = config
        self._image_size = image_size
        self._world = world
        self._collate = collate
        self._only_answers = only_answers(config.evaluation, answers)
        # Where ranks hold the model together, each makes the calls that the busiest one makes.
        self._together = world.size > 1 and config.engine.zero_stage == 3
        self._chosen = [
            choose_samples(
                reader.tasks,
                EvaluationConfig(
                    tasks=self._tasks_of(reader), max_samples=config.training.validation_samples
                ),
                str(reader.folder),
            )
            for reader in readers
        ]
        self._pictures = ValidationPictures(
            readers, self._chosen, tokenizer, config, image_size, world, self._only_answers
        )

    def draw(self, model: TunedModel, step: int) -> None:
        """Draws the model's answers to a few samples, the same ones each time; every rank calls."""
        was_training = model.training
        model.eval()
        self._pictures.draw(model, step)
        model.train(was_training)

    def measure(
        self, model: TunedModel, after_batch: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Mean loss and, where asked for, the metrics of answers; the same on every rank.

        Args:
            model: With all its parameters in one place.
            after_batch: Called after each batch.
        """
        was_training = model.training
        model.eval()
        metrics = self._losses(model, after_batch)
        answered = self._config.training.answered_tasks()
        if answered:
            metrics |= self._answers(model, answered, after_batch)
        model.train(was_training)
        return metrics

    @torch.no_grad()
    def _losses(self, model: TunedModel, after_batch: Callable[[], None]) -> dict[str, float]:
        places = [
            (dataset, row)
            for dataset, chosen in enumerate(self._chosen)
            for rows in chosen.values()
            for row in rows
        ]
        names = self._config.prompt_names()
        # Of training's regularisers only the smoothing, by which the two losses are compared.
        objective = Objective(label_smoothing=self._config.training.label_smoothing)
        sums = [[0.0, 0.0, 0.0] for _ in names or ("",)]
        for chosen, counts in self._batches(
            places, max(16, self._config.training.batch_size_per_rank)
        ):
            records = [self._readers[dataset].read(row) for dataset, row in chosen]
            batch = self._collate(records).to(self._world.device)
            logits_BTV = model(
                batch.source_ids_BS,
                batch.images_BCHW,
                batch.image_present_B,
                batch.decoder_ids_BT,
                batch.prompt_index_B,
            )
            if not counts:
                continue
            for prompt, rows, part in parts_of(batch, len(sums)):
                loss = objective.loss(logits_BTV if rows is None else logits_BTV[rows], part)
                found = (float(loss.loss_sum), float(loss.nll_sum), float(part.tokens))
                sums[prompt] = [a + b for a, b in zip(sums[prompt], found, strict=True)]
            after_batch()
        total = self._world.total([value for each in sums for value in each])
        return _mean_losses([total[at : at + 3] for at in range(0, len(total), 3)], names)

    def _answers(
        self, model: TunedModel, tasks: Sequence[str], after_batch: Callable[[], None]
    ) -> dict[str, float]:
        rows: list[PredictionRow] = []
        answerer = Answerer(
            model,
            self._tokenizer,
            image_size=self._image_size,
            beam_size=self._config.training.beam_size,
            max_source_length=self._config.data.max_source_length,
            answers=self._only_answers,
            # Ranks score different numbers of pairs; a search makes as many calls on all of them.
            score_all=self._config.evaluation.vqa == "candidates" and not self._together,
            agree=self._any_rank if self._together else bool,
        )
        size = self._config.evaluation.batch_size
        for reader, chosen in zip(self._readers, self._chosen, strict=True):
            for task in tasks:
                for part, counts in self._batches(chosen.get(task, []), size):
                    records = [reader.read(row) for row in part]
                    samples = [sample for sample, _ in records]
                    found = answerer.answer(task, samples, [image for _, image in records])
                    if not counts:
                        continue
                    rows += [
                        PredictionRow(position=row, sample=sample, prediction=prediction)
                        for row, sample, prediction in zip(part, samples, found, strict=True)
                    ]
                    after_batch()
        return score_rows([row for part in self._world.gather(rows) for row in part])

    def _batches(
        self, samples: Sequence[SampleT], size: int
    ) -> Iterator[tuple[Sequence[SampleT], bool]]:
        """Deals samples to the ranks; this one's, in batches, and whether a batch counts.

        One that does not count is there so that all ranks have as many.
        """
        own = samples[self._world.rank :: self._world.size]
        for start in range(0, len(own), size):
            yield own[start : start + size], True
        if self._together:
            of_busiest = -(-len(samples[:: self._world.size]) // size)
            for _ in range(-(-len(own) // size), of_busiest):
                yield samples[:1], False

    def _any_rank(self, goes_on: bool) -> bool:
        return self._world.total([float(goes_on)])[0] > 0

    def _tasks_of(self, reader: ShardReader) -> list[str]:
        there = sorted(set(reader.tasks))
        wanted = self._config.data.tasks or sorted(self._config.data.task_weights or there)
        return [task for task in wanted if task in there]


def _mean_losses(sums: Sequence[Sequence[float]], names: Sequence[str]) -> dict[str, float]:
    """Mean losses over all tokens, and over those of each prompt by its name."""
    loss_sum, nll_sum, tokens = (sum(each) for each in zip(*sums, strict=True))
    metrics = {LOSS: loss_sum / tokens, NLL: nll_sum / tokens}
    for name, (own_loss, own_nll, own_tokens) in zip(names, sums, strict=False):
        if own_tokens:
            metrics |= {loss_of(name): own_loss / own_tokens, f"{name}/nll": own_nll / own_tokens}
    return metrics
