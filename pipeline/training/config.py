"""Settings of a training run: optimizer, schedule, loop and engine.

Importing this module is cheap: no torch, no DeepSpeed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipeline.training.bounds import at_least as _at_least

ClosedTask = Literal["vqa", "grounding", "entailment"]
"""A task whose answers are made of certain tokens only."""


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
    constrain_loss: list[ClosedTask] = field(default_factory=list)
    """Tasks whose loss leaves out the tokens that no answer may hold: grounding's are its location
    bins, entailment's the tokens of its three labels, vqa's those of data.vqa's closed answers. The
    published recipes do this for vqa and entailment."""
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
    async_checkpoints: bool = True
    """Write a checkpoint while training goes on, from a copy in the memory of the leading rank: 12
    bytes a trained value, 16 with ema_decay. Without it the steps wait for the disk."""
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
    """Longest that a rank may go on without ending a step, a batch of validation or a checkpoint,
    from the first step on; then it prints where its threads are, and the run breaks."""

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

    peak_tflops: float | None = None
    """What a rank could do at best, in 10^12 floating-point operations a second of the precision:
    what utilisation is a share of. None measures a matrix product at the start, in under a
    second."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "processes")
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            raise ValueError(f"peak_tflops must be above 0, not {self.peak_tflops}; or null")
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
