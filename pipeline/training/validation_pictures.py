"""Pictures of a validation: what the model answers to a few samples.

They are the same samples each time, so that the sheets of a run show what it learns.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence

from model.tokenizer import OFATokenizer
from model.tuning import TunedModel
from pipeline.config import RunConfig
from pipeline.evaluation.answering import Answerer
from pipeline.evaluation.pictures import picture_sheet
from pipeline.evaluation.report import PredictionRow
from pipeline.training.data import ShardReader
from pipeline.training.run_folder import run_folder
from pipeline.training.world import World

log = logging.getLogger(__name__)

FOLDER = "pictures/predictions"
"""In the run's folder; a file a validation, named by its step."""


class ValidationPictures:
    """Answers and draws a fixed choice of validation samples, spread over the ranks."""

    def __init__(
        self,
        readers: Sequence[ShardReader],
        chosen: Sequence[Mapping[str, Sequence[int]]],
        tokenizer: OFATokenizer,
        config: RunConfig,
        image_size: int,
        world: World,
        answers: tuple[str, ...] = (),
    ) -> None:
        """Chooses as many samples of each task of each data set, evenly over what is validated.

        Args:
            readers: The data sets.
            chosen: For each of them, what is validated: rows by task.
            tokenizer: The base's.
            config: The run.
            image_size: Side in pixels of the square that images are resized to.
            world: The ranks.
            answers: The only answers to questions; none leaves them open.
        """
        self._only_answers = answers
        self._readers, self._tokenizer, self._config = readers, tokenizer, config
        self._image_size, self._world = image_size, world
        # Ranks that hold the model together make the same calls: each answers all of the few.
        self._together = world.size > 1 and config.engine.zero_stage == 3
        self._samples: list[tuple[int, str, int]] = []
        wanted = config.tracking.pictures if config.tracking.enabled else 0
        groups = [(n, task, rows) for n, tasks in enumerate(chosen) for task, rows in tasks.items()]
        for place, (dataset, task, rows) in enumerate(groups):
            share = wanted // len(groups) + (place < wanted % len(groups))
            take = min(share, len(rows))
            self._samples += [(dataset, task, rows[i * len(rows) // take]) for i in range(take)]

    def draw(self, model: TunedModel, step: int) -> None:
        """Writes `pictures/predictions/step-NNNNNN.png` into the run's folder; every rank calls.

        Args:
            model: In eval mode.
            step: Optimizer steps done.

        Raises:
            DataError: a sample cannot be read.
            TrainingError: another rank is gone.
        """
        if not self._samples:
            return
        own = self._answers(model)
        answers = own if self._together else [r for part in self._world.gather(own) for r in part]
        if not self._world.leads:
            return
        # Ranks took samples in turn; their order is that of the choice.
        places = {(dataset, row): n for n, (dataset, _, row) in enumerate(self._samples)}
        answers.sort(key=lambda answer: places[answer[0], answer[1].position])
        images = [self._readers[dataset].read(row.position)[1] for dataset, row in answers]
        path = run_folder(self._config) / FOLDER / f"step-{step:06d}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sheet = picture_sheet([row for _, row in answers], images)
            sheet.save(path, format="PNG", optimize=True)
        except OSError as error:
            # A picture is not worth a run.
            log.warning("%s cannot be written, training goes on: %s", path, error)

    def _answers(self, model: TunedModel) -> list[tuple[int, PredictionRow]]:
        answerer = Answerer(
            model,
            self._tokenizer,
            image_size=self._image_size,
            beam_size=self._config.training.beam_size,
            max_source_length=self._config.data.max_source_length,
            answers=self._only_answers,
        )
        found = []
        own = self._samples
        if not self._together:
            own = own[self._world.rank :: self._world.size]
        for (dataset, task), group in itertools.groupby(own, key=lambda each: each[:2]):
            positions = [position for _, _, position in group]
            records = [self._readers[dataset].read(position) for position in positions]
            samples = [sample for sample, _ in records]
            answers = answerer.answer(task, samples, [image for _, image in records])
            found += [
                (dataset, PredictionRow(position=position, sample=sample, prediction=answer))
                for position, sample, answer in zip(positions, samples, answers, strict=True)
            ]
        return found
