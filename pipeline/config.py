"""RunConfig: the one typed tree of a training run.

Its sections live beside the code that they configure and are only composed here. Reading and
writing are in config_reader, which commands without a RunConfig import directly, because the
sections below bring torch with them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from data_prep.instructions import TASKS
from model.tuning.config import TuningConfig
from pipeline.config_reader import load, parse, save, to_yaml
from pipeline.errors import ConfigError
from pipeline.evaluation.config import EvaluationConfig
from pipeline.tracking.config import DEFAULT_OUTPUT_DIR, TrackingConfig
from pipeline.training.config import EngineConfig, OptimizerConfig, ScheduleConfig, TrainingConfig
from pipeline.training.data_config import DataConfig
from pipeline.training.initial_config import InitialConfig

__all__ = ["BaseConfig", "RunConfig", "load", "parse", "save", "to_yaml"]


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """The model that a run starts from."""

    path: str = "ofa-micro"
    """Name of the packaged base, or a folder of config.json, model.safetensors, tokenizer.json."""
    random_init: bool = False
    """Pretraining: read only config.json and tokenizer.json, and start from random weights."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a training run does."""

    name: str
    """Name of the run, and of its folder in output_dir."""
    output_dir: str = DEFAULT_OUTPUT_DIR
    """Folder that holds the runs."""
    seed: int = 0
    """Seed of initial values, dropout and the order of the data."""
    base: BaseConfig = field(default_factory=BaseConfig)
    """The base model."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """What is trained."""
    initial: InitialConfig = field(default_factory=InitialConfig)
    """The values that it starts from."""
    data: DataConfig = field(default_factory=DataConfig)
    """Prepared data sets and how they are read."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and gradient clipping."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the run."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Length, batches, validation and checkpoints."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Processes, ZeRO stage and precision."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How the best checkpoint is scored."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """How the run is recorded."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ConfigError(
                f"name = {self.name!r}: must be a folder's name, without '/' or a dot in front"
            )
        if self.seed < 0:
            raise ConfigError(f"seed = {self.seed}: must be 0 or more")
        if self.base.random_init and self.tuning.method != "finetune":
            raise ConfigError(
                "base.random_init = True: needs tuning.method = finetune, not"
                f" {self.tuning.method}: a base of random weights has to learn as a whole"
            )
        self.initial.check(self.tuning, self.engine.zero_stage)
        if self.training.best_metric is not None and not self.data.validation:
            raise ConfigError(
                f"training.best_metric = {self.training.best_metric!r}: needs a data set to measure"
                " it on in data.validation"
            )
        if self.training.patience is not None and not self.data.validation:
            raise ConfigError(
                f"training.patience = {self.training.patience}: needs a data set to measure on in"
                " data.validation"
            )
        if self.schedule.final_lr > self.optimizer.lr:
            raise ConfigError(
                f"schedule.final_lr = {self.schedule.final_lr}: must not be above optimizer.lr ="
                f" {self.optimizer.lr}, from which the rate decays"
            )
        self._check_answers()
        if self.data.streams % self.engine.processes:
            raise ConfigError(
                f"engine.processes = {self.engine.processes}: must divide data.streams ="
                f" {self.data.streams}, so that every rank reads whole streams"
            )
        if self.data.features and self.tuning.method == "finetune":
            raise ConfigError(
                f"data.features = {self.data.features}: needs a frozen image trunk, and"
                " tuning.method = finetune trains it"
            )
        if self.tuning.prefix.per_task:
            self._check_prompts()

    def _check_answers(self) -> None:
        if "vqa" in self.training.constrain_loss and self.data.vqa.answers == "open":
            raise ConfigError(
                "training.constrain_loss names vqa: needs data.vqa.answers = closed, since open"
                " answers may hold any token"
            )
        closed = self.data.vqa.answers == "closed" or self.evaluation.vqa_answers is not None
        if self.evaluation.vqa in ("trie", "candidates") and not closed:
            raise ConfigError(
                f"evaluation.vqa = {self.evaluation.vqa}: needs a list of answers, from"
                " data.vqa.answers = closed or evaluation.vqa_answers"
            )

    def prompt_names(self) -> tuple[str, ...]:
        """The prompts that rows choose from, each named as its task; empty without per_task.

        They follow from the settings alone: a run is read again where its data are not.
        """
        if not self.tuning.prefix.per_task:
            return ()
        weights = self.data.task_weights
        if weights is not None:
            return tuple(task for task, weight in weights.items() if weight > 0)
        return tuple(dict.fromkeys(self.data.tasks or ()))

    def alone(self, prompt: str) -> RunConfig:
        """The settings of one of several prompts, as a run of its task alone has them."""
        answered = [prompt] if prompt in self.training.answered_tasks() else None
        return replace(
            self,
            name=f"{self.name}-{prompt}",
            tuning=self.tuning.alone(prompt),
            data=replace(self.data, tasks=[prompt], task_weights=None),
            training=replace(self.training, answer_tasks=answered),
            evaluation=replace(self.evaluation, tasks=[prompt]),
        )

    def _check_prompts(self) -> None:
        names = self.prompt_names()
        if not names:
            raise ConfigError(
                "tuning.prefix.per_task = True: needs data.tasks or data.task_weights, which name"
                " the tasks that get a prompt each"
            )
        asked = {
            "data.task_weights" if self.data.task_weights else "data.tasks": (names, TASKS),
            "tuning.prefix.task_lengths": (self.tuning.prefix.task_lengths or (), names),
            "training.answer_tasks": (self.training.answer_tasks or (), names),
        }
        for path, (wanted, known) in asked.items():
            stray = [task for task in wanted if task not in known]
            if stray:
                raise ConfigError(
                    f"{path} names {stray[0]!r}: with tuning.prefix.per_task it must be one of"
                    f" {', '.join(known)}"
                )
        if self.training.best_metric is not None:
            raise ConfigError(
                f"training.best_metric = {self.training.best_metric!r}: with tuning.prefix.per_task"
                " each prompt is judged by its own task's metric where training.answer_tasks names"
                " the task, and by its validation loss otherwise; leave it out"
            )
