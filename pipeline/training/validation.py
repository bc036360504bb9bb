"""Validation while training: loss on held-out samples, and answers where a metric needs them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model.losses import label_smoothed_loss
from model.ofa.config import OFAConfig
from model.tokenizer import OFATokenizer
from model.tuning import TunedModel
from pipeline.config import RunConfig
from pipeline.evaluation.answering import Answerer
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.evaluator import choose_samples, score_rows
from pipeline.evaluation.report import PredictionRow
from pipeline.training.data import Collator, ShardReader
from pipeline.training.validation_pictures import ValidationPictures
from pipeline.training.world import World

LOSS = "validation/loss"
NLL = "validation/nll"


class Validator:
    """Measures a model on the same held-out samples each time, spread over the ranks."""

    def __init__(
        self,
        readers: Sequence[ShardReader],
        tokenizer: OFATokenizer,
        base: OFAConfig,
        config: RunConfig,
        image_size: int,
        world: World,
    ) -> None:
        """Chooses the samples.

        Raises:
            DataError: a wanted task has no samples.
            ConfigError: a wanted task is unknown.
        """
        self._readers = readers
        self._tokenizer = tokenizer
        self._config = config
        self._image_size = image_size
        self._world = world
        self._collate = Collator(
            tokenizer,
            base,
            image_size,
            max_source_length=config.data.max_source_length,
            max_target_length=config.data.max_target_length,
        )
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
            readers, self._chosen, tokenizer, config, image_size, world
        )

    def draw(self, model: TunedModel, step: int) -> None:
        """Draws the model's answers to a few samples, the same ones each time; every rank calls."""
        was_training = model.training
        model.eval()
        self._pictures.draw(model, step)
        model.train(was_training)

    def measure(self, model: TunedModel) -> dict[str, float]:
        """Mean loss and, where asked for, the metrics of answers; the same on every rank."""
        was_training = model.training
        model.eval()
        metrics = self._losses(model)
        answered = self._config.training.answered_tasks()
        if answered:
            metrics |= self._answers(model, answered)
        model.train(was_training)
        return metrics

    @torch.no_grad()
    def _losses(self, model: TunedModel) -> dict[str, float]:
        places = [
            (dataset, row)
            for dataset, chosen in enumerate(self._chosen)
            for rows in chosen.values()
            for row in rows
        ]
        own = places[self._world.rank :: self._world.size]
        sums = [0.0, 0.0, 0.0]
        size = max(16, self._config.training.batch_size_per_rank)
        for start in range(0, len(own), size):
            records = [
                self._readers[dataset].read(row) for dataset, row in own[start : start + size]
            ]
            batch = self._collate(records).to(self._world.device)
            logits_BTV = model(
                batch.source_ids_BS, batch.images_BCHW, batch.image_present_B, batch.decoder_ids_BT
            )
            loss = label_smoothed_loss(
                logits_BTV,
                batch.target_BT,
                epsilon=self._config.training.label_smoothing,
                confidence_B=batch.confidence_B,
            )
            sums[0] += float(loss.loss_sum)
            sums[1] += float(loss.nll_sum)
            sums[2] += batch.tokens
        loss_sum, nll_sum, tokens = self._world.total(sums)
        return {LOSS: loss_sum / tokens, NLL: nll_sum / tokens}

    def _answers(self, model: TunedModel, tasks: Sequence[str]) -> dict[str, float]:
        rows: list[PredictionRow] = []
        answerer = Answerer(
            model,
            self._tokenizer,
            image_size=self._image_size,
            beam_size=self._config.training.beam_size,
            max_source_length=self._config.data.max_source_length,
        )
        size = self._config.evaluation.batch_size
        for reader, chosen in zip(self._readers, self._chosen, strict=True):
            for task in tasks:
                own = chosen.get(task, [])[self._world.rank :: self._world.size]
                for start in range(0, len(own), size):
                    part = own[start : start + size]
                    records = [reader.read(row) for row in part]
                    samples = [sample for sample, _ in records]
                    found = answerer.answer(task, samples, [image for _, image in records])
                    rows += [
                        PredictionRow(position=row, sample=sample, prediction=prediction)
                        for row, sample, prediction in zip(part, samples, found, strict=True)
                    ]
        return score_rows([row for part in self._world.gather(rows) for row in part])

    def _tasks_of(self, reader: ShardReader) -> list[str]:
        there = sorted(set(reader.tasks))
        wanted = self._config.data.tasks or sorted(self._config.data.task_weights or there)
        return [task for task in wanted if task in there]
