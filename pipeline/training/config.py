"""Settings of a training run: data, optimizer, schedule, loop and engine.

Importing this module is cheap: no torch, no DeepSpeed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DEFAULT_CACHE_GB = 50.0
"""Of data.cache_gb; it also bounds the cache where no DataConfig is at hand."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Prepared data sets, and how samples are drawn from them."""

    train: list[str] = field(default_factory=list)
    """Prepared data sets to learn from: folders, or locations such as s3://bucket/path."""
    validation: list[str] = field(default_factory=list)
    """Prepared data sets to validate on; none switches validation off."""
    tasks: list[str] | None = None
    """Tasks to learn; None learns every task of the data."""
    task_weights: dict[str, float] | None = None
    """Share of each task among the samples drawn, up to a factor; a task that is not named has
    none. None draws every sample of the data once an epoch."""
    image_size: int | None = None
    """Side in pixels of the square that images are resized to; None takes the base's."""
    max_source_length: int = 80
    """Tokens of an instruction that are kept, bos and eos included."""
    max_target_length: int = 160
    """Tokens of a target that are kept, eos included."""
    streams: int = 64
    """Canonical streams that the order of samples is dealt to; a multiple of the number of ranks.
    It is part of the order: another number gives another run."""
    loader_workers: int = 1
    """Background workers a rank that read, decode and tokenize; 0 does it between the steps."""
    loader: Literal["threads", "processes"] = "threads"
    """What the workers are. Threads start at once and are enough while a batch takes less than a
    step; processes scale with the cores, take seconds to start and need room in /dev/shm."""
    loader_timeout_s: float = 300.0
    """Longest a step waits for its batch before the run breaks, as when a network folder hangs."""
    cache_dir: str | None = None
    """Folder on this machine for shards of data sets in object stores; null takes
    $PREFIXWORKS_CACHE/shards, else ~/.cache/prefixworks/shards."""
    cache_gb: float = DEFAULT_CACHE_GB
    """Most that this folder holds, in GB of 10^9 bytes; what was used longest ago goes first."""
    uneven: Literal["wrap", "drop"] = "wrap"
    """What happens to the last samples of an epoch that are too few to give every stream one: wrap
    repeats some to fill up, drop leaves them out."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "max_source_length", "max_target_length", "streams")
        _at_least(self, 0, "loader_workers")
        _at_least(self, 1, "loader_timeout_s")
        if self.cache_gb <= 0:
            raise ValueError(f"cache_gb must be above 0, not {self.cache_gb}")
        if self.image_size is not None and self.image_size < 16:
            raise ValueError(f"image_size must be at least 16, not {self.image_size}")
        if self.max_source_length < 3:
            raise ValueError(f"max_source_length must be at least 3, not {self.max_source_length}")
        weights = self.task_weights
        if weights is not None and (
            min(weights.values(), default=0) < 0 or sum(weights.values()) <= 0
        ):
            raise ValueError(f"task_weights must be 0 or more and not all 0, not {weights}")
        for name in ("tasks", "task_weights"):
            if getattr(self, name) is not None and not getattr(self, name):
                raise ValueError(f"{name} names no task; leave it out to take all")


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """Trained parameters with a learning rate of their own."""

    match: str
    """Pattern of their names in `best/trainable.safetensors`, such as `decoder.*`; `*`, `?` and
    `[...]` as in a shell, a dot is no border."""
    lr_scale: float = 1.0
    """Factor on the learning rate of each step."""
    weight_decay: float | None = None
    """Their decay; None takes that of the optimizer."""

    def __post_init__(self) -> None:
        if self.lr_scale <= 0:
            raise ValueError(f"lr_scale must be above 0, not {self.lr_scale}")
        if self.weight_decay is not None:
            _at_least(self, 0, "weight_decay")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with decoupled weight decay, and clipping of the global gradient norm."""

    lr: float = 1e-3
    """Largest learning rate, reached after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: float = 1e-8
    """Added to the denominator."""
    weight_decay: float = 0.01
    """Decoupled decay; parameters with one dimension (norms, biases) are left alone."""
    clip_norm: float = 1.0
    """Largest L2 norm of all gradients together; 0 switches clipping off."""
    groups: list[GroupConfig] = field(default_factory=list)
    """Parameters with another learning rate; one belongs to the first group that matches it, and
    every group must have some."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be above 0, not {self.lr}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be at least 0 and below 1, not {self.betas}")
        if self.eps <= 0:
            raise ValueError(f"eps must be above 0, not {self.eps}")
        _at_least(self, 0, "weight_decay", "clip_norm")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over the steps of a run: linear warm-up, then decay to the last step."""

    name: Literal["polynomial", "cosine", "constant"] = "polynomial"
    """Shape of the decay."""
    warmup_ratio: float = 0.06
    """Share of the steps that warm up."""
    warmup_steps: int | None = None
    """Steps that warm up; given, it takes the place of warmup_ratio."""
    power: float = 1.0
    """Exponent of the polynomial."""
    final_lr: float = 0.0
    """Learning rate after the last step."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(
                f"warmup_ratio must be at least 0 and below 1, not {self.warmup_ratio}"
            )
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be 0 or more, not {self.warmup_steps}")
        if self.power <= 0:
            raise ValueError(f"power must be above 0, not {self.power}")
        _at_least(self, 0, "final_lr")
        if self.name != "polynomial" and self.power != 1.0:
            raise ValueError(f"power = {self.power} needs name = polynomial, not {self.name}")
        if self.name == "constant" and self.final_lr > 0:
            raise ValueError(
                f"final_lr = {self.final_lr} needs name = polynomial or cosine: constant stays at"
                " optimizer.lr"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length of a run, its batches, validation and checkpoints."""

    max_steps: int | None = None
    """Optimizer steps; None counts epochs."""
    epochs: float | None = None
    """Passes over the training data; with neither this nor max_steps, one."""
    batch_size_per_rank: int = 16
    """Samples that a rank takes at once; the global batch is this times ranks times
    gradient_accumulation."""
    gradient_accumulation: int = 1
    """Batches a rank adds up before a step."""
    label_smoothing: float = 0.1
    """Probability mass taken from the label."""
    dropout: float = 0.0
    """Dropout of embeddings and residual branches of the base while training."""
    drop_path: float = 0.0
    """Share of samples for which a residual branch is skipped while training."""
    r_drop_alpha: float | None = None
    """R-Drop: run every sample twice under dropout, and add the divergence of the two passes with
    this weight. It doubles the work of a step; None for a single pass."""
    drop_worst_ratio: float = 0.0
    """Share of a batch's tokens, those with the largest loss, that teach nothing."""
    drop_worst_after_steps: int = 0
    """The first step that drops its worst tokens has more than so many steps before it."""
    log_every_steps: int = 10
    """Steps between lines of metrics."""
    validate_every_steps: int | None = None
    """Steps between validations; None validates at the end only."""
    validation_samples: int | None = 256
    """Samples of each task of a validation set that are looked at; None takes all."""
    save_every_steps: int | None = None
    """Steps between checkpoints; None saves at the end only."""
    keep_last: int = 2
    """Checkpoints kept beside the best."""
    best_metric: str | None = None
    """Metric that decides which checkpoint is best, such as `vqa/accuracy`; None takes
    `validation/loss`."""
    best_direction: Literal["larger", "smaller"] | None = None
    """Which values of best_metric are better; None knows it: smaller ones of `validation/loss` and
    `validation/nll`, larger ones of all others."""
    patience: int | None = None
    """Validations in a row without a better best_metric that end the run; None trains to the end.
    The schedule stays that of the whole run."""
    min_delta: float = 0.0
    """How much better, in the metric's own unit, is better to patience; the best checkpoint is the
    best by however little."""
    ema_decay: float | None = None
    """Keep an exponential moving average of what is trained, of which each step keeps this share
    (less in the first steps); validation and the best checkpoint are of the average. None for
    none."""
    answer_tasks: list[str] | None = None
    """Tasks whose answers are searched and scored in a validation; None takes that of best_metric,
    if one is named."""
    beam_size: int = 3
    """Hypotheses kept while these answers are searched."""
    step_timeout_s: float = 600.0
    """Longest a step, validation or checkpoint may wait for another rank before the run breaks."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "batch_size_per_rank", "gradient_accumulation", "log_every_steps")
        _at_least(self, 1, "keep_last", "beam_size", "step_timeout_s")
        for name in (
            *("max_steps", "validate_every_steps", "validation_samples", "save_every_steps"),
            "patience",
        ):
            if getattr(self, name) is not None:
                _at_least(self, 1, name)
        if self.epochs is not None and self.epochs <= 0:
            raise ValueError(f"epochs must be above 0, not {self.epochs}")
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("epochs and max_steps exclude each other")
        for name in ("label_smoothing", "dropout", "drop_path", "drop_worst_ratio"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must be above 0 and below 1, not {self.ema_decay}")
        self._check_objective()
        self._check_selection()

    def _check_objective(self) -> None:
        _at_least(self, 0, "drop_worst_after_steps")
        if self.drop_worst_after_steps and not self.drop_worst_ratio:
            raise ValueError(
                f"drop_worst_after_steps = {self.drop_worst_after_steps} needs a drop_worst_ratio"
                " above 0"
            )
        if self.r_drop_alpha is None:
            return
        if self.r_drop_alpha <= 0:
            raise ValueError(f"r_drop_alpha must be above 0, not {self.r_drop_alpha}; or null")
        if not (self.dropout or self.drop_path):
            raise ValueError(
                f"r_drop_alpha = {self.r_drop_alpha} needs dropout or drop_path above 0: without"
                " them the two passes are equal"
            )

    def _check_selection(self) -> None:
        _at_least(self, 0, "min_delta")
        if self.best_direction is not None and self.best_metric is None:
            raise ValueError(
                f"best_direction = {self.best_direction} needs a best_metric that it is about"
            )
        if self.min_delta and self.patience is None:
            raise ValueError(f"min_delta = {self.min_delta} needs patience")
        if self.patience is not None and self.validate_every_steps is None:
            raise ValueError(f"patience = {self.patience} needs validate_every_steps")

    def answered_tasks(self) -> list[str]:
        """Tasks whose answers a validation scores."""
        if self.answer_tasks is not None or self.best_metric is None:
            return list(self.answer_tasks or [])
        task = self.best_metric.split("/")[0]
        return [] if task == "validation" else [task]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Processes, sharding and precision; the DeepSpeed dictionary is derived from it."""

    backend: Literal["deepspeed", "torch"] = "deepspeed"
    """What trains: DeepSpeed, or torch.distributed alone, which is there for debugging: it gives
    the numbers of zero_stage = 0 without DeepSpeed's hooks in the way."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """ZeRO: 1 shards optimizer state over the ranks, 2 gradients too, 3 parameters too."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """Where optimizer states lie and the update is computed: on the device, or in the memory of the
    host. It needs zero_stage 1 to 3."""
    offload_parameters: Literal["none", "cpu"] = "none"
    """Where a rank keeps its share of the parameters until a layer needs it; with cpu, the device
    holds little more than the layers at work. It needs zero_stage 3."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes under autocast; parameters, gradients and optimizer state stay float32."""
    processes: int = 1
    """Ranks on this machine."""
    threads_per_process: int | None = None
    """CPU threads of a rank; None divides the cores that this process may use."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile the layers with torch.compile: the first steps take minutes, the others less time. On
    a CPU it needs a C++ compiler."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "processes")
        if self.backend == "torch" and self.zero_stage != 0:
            raise ValueError(f"backend = torch needs zero_stage = 0, not {self.zero_stage}")
        if self.offload_optimizer != "none" and self.zero_stage == 0:
            raise ValueError(
                f"offload_optimizer = {self.offload_optimizer} needs zero_stage 1, 2 or 3, not 0"
            )
        if self.offload_parameters != "none" and self.zero_stage != 3:
            raise ValueError(
                f"offload_parameters = {self.offload_parameters} needs zero_stage = 3, not"
                f" {self.zero_stage}"
            )
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile and zero_stage = 3, which swaps parameters, exclude each other"
            )
        if self.threads_per_process is not None:
            _at_least(self, 1, "threads_per_process")


def _at_least(config: object, lowest: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value < lowest:
            raise ValueError(f"{name} must be at least {lowest}, not {value}")
