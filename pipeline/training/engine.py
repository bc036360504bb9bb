"""DeepSpeed: the only file that imports it.

The loop sees a few verbs (forward, backward, step, full_state); which ZeRO stage runs, and where
parameters and optimizer states lie, stays in here.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import torch
from torch import Tensor, nn

from model.tuning import TunedModel
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.training.averaging import MovingAverage
from pipeline.training.data import Batch
from pipeline.training.deepspeed_config import deepspeed_config
from pipeline.training.deepspeed_state import DeepSpeedState
from pipeline.training.parameter_groups import ParameterGroup, parameter_groups, prompt_groups
from pipeline.training.prompt_adamw import PromptAdamW, PromptClipping
from pipeline.training.world import (
    World,
    environment_rank,
    is_lost_contact,
    lost_contact,
)

# Read while DeepSpeed is imported; without it, it looks for accelerators by itself, and slowly.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
# It announces its findings while it is imported, on every rank.
logging.disable(logging.INFO)
import deepspeed  # noqa: E402
from deepspeed.utils import logger as deepspeed_logger  # noqa: E402
from deepspeed.utils import safe_get_full_grad  # noqa: E402

logging.disable(logging.NOTSET)
# Its calls of torch.distributed, once a rank; nothing that a user could change.
warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
deepspeed_logger.setLevel(logging.WARNING)


def join_world(config: RunConfig) -> World:
    """Makes this process a rank: of the launcher that started it, or the only one.

    Raises:
        TrainingError: the other ranks do not appear.
    """
    rank, size, local_rank = environment_rank() or (0, 1, 0)
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank}
    os.environ.update({name: str(value) for name, value in names.items()})
    if size == 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "0")  # any that is free
    on_cpu = deepspeed.get_accelerator().device_name() == "cpu"
    if on_cpu:
        # Its shared-memory all-reduce is compiled on first use and leaves its buffers in /dev/shm
        # behind a killed rank; gloo needs neither. An empty table also spares probing compilers.
        deepspeed.ops.__compatible_ops__ = {}
    else:
        torch.cuda.set_device(local_rank)
    try:
        deepspeed.init_distributed(
            dist_backend="gloo" if on_cpu else "nccl",
            auto_mpi_discovery=False,
            verbose=False,
            timeout=timedelta(seconds=config.training.step_timeout_s),
        )
    except RuntimeError as error:
        raise lost_contact(rank, error) from error
    device = torch.device("cpu") if on_cpu else torch.device("cuda", local_rank)
    return World(rank=rank, size=size, device=device)


def leave_world() -> None:
    """Ends the process group; after it no rank talks to another."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Forward(nn.Module):
    """The tuned model under the precision of the run."""

    def __init__(self, model: TunedModel, precision: str, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self._autocast = functools.partial(
            torch.autocast, device.type, dtype=torch.bfloat16, enabled=precision == "bf16"
        )

    def forward(
        self, source: Tensor, images: Tensor, present: Tensor, decoder: Tensor, prompts: Tensor
    ) -> Tensor:
        with self._autocast():
            logits: Tensor = self.model(source, images, present, decoder, prompts)
        return logits


class Engine:
    """A tuned model, its optimizer and their shards on all ranks."""

    def __init__(
        self,
        model: TunedModel,
        config: RunConfig,
        world: World,
        rebuild: Callable[[], TunedModel],
    ) -> None:
        """Shards and places the model.

        Args:
            model: On the CPU, the same on every rank.
            config: The run.
            world: The ranks.
            rebuild: Makes another such model; stage 3 collects its shards in it.
        """
        self.model = model
        self._rebuild = rebuild
        self._world = world
        self._stage = config.engine.zero_stage
        if self._stage == 3:
            # A base that remembers its positions by length skips modules on the ranks whose texts
            # have a known length, while the others wait for them to gather parameters.
            model.base.frozen = False
        model.base.recompute_activations(config.engine.activation_checkpointing)
        if config.engine.compile:
            _compile_layers(model, world.device)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.trainable = sum(parameter.numel() for parameter in trained)
        """Number of trained values."""
        groups = _groups(model, config)
        dealt = sum(p.numel() for group in groups for p in group.parameters)
        assert dealt == self.trainable, "a method names all that it trains"
        self._lr_scales = [group.lr_scale for group in groups]
        names, clip_norm = model.prompt_names, config.optimizer.clip_norm
        self._clipping = PromptClipping(groups, names, clip_norm) if names else None
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=_Forward(model.to(world.device), config.engine.precision, world.device),
            optimizer=_adamw(groups, config),
            config=deepspeed_config(config, ranks=world.size, trainable=self.trainable),
        )
        decay = config.training.ema_decay
        self._average = None if decay is None else MovingAverage(self._held, decay)
        self._state = DeepSpeedState(self._engine, model, self._average, world)

    def train(self) -> None:
        """Training mode."""
        self._engine.train()

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, T, V] of a batch on the engine's device."""
        logits: Tensor = self._engine(
            batch.source_ids_BS,
            batch.images_BCHW,
            batch.image_present_B,
            batch.decoder_ids_BT,
            batch.prompt_index_B,
        )
        return logits

    def backward(self, loss: Tensor) -> None:
        """Adds a loss's gradients; they are summed over micro-batches and ranks, not averaged."""
        self._engine.backward(loss * self._world.size, scale_wrt_gas=False)

    def step(self, lr: float, idle: Sequence[int] = ()) -> float | None:
        """Ends a micro-batch; the last of a step clips and updates.

        Args:
            lr: Learning rate of the step; groups scale it.
            idle: Places of the prompts, of several, that have no token in the step and stay as they
                are.

        Returns:
            L2 norm of all gradients before clipping; None before the last micro-batch, or where
            DeepSpeed does not know it.
        """
        for group, scale in zip(self._optimizer.param_groups, self._lr_scales, strict=True):
            group["lr"] = lr * scale
        last = self._engine.is_gradient_accumulation_boundary()
        own_norm = None
        if last and self._clipping is not None:
            groups = self._optimizer.param_groups
            own_norm = self._clipping.prepare(groups, safe_get_full_grad, idle)
        self._engine.step()
        if last and self._average is not None:
            self._average.update(self._engine.global_steps)
        norm = self._engine.get_global_grad_norm() if last and own_norm is None else own_norm
        return None if norm is None else float(norm)

    @contextlib.contextmanager
    def whole_model(self, *, averaged: bool = False) -> Iterator[TunedModel]:
        """The model with all its parameters in one place, to be read on every rank.

        Args:
            averaged: With the moving averages of what is trained, where the run keeps them.
        """
        average = self._average if averaged else None
        with contextlib.nullcontext() if average is None else average.in_place():
            yield self.model if self._stage < 3 else self._collected()

    def _held(self) -> dict[str, Tensor]:
        """What this rank holds of each trained parameter: all of it, or in stage 3 its shard."""
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if self._stage < 3:
            return {name: parameter.data for name, parameter in trained.items()}
        # DeepSpeed hangs the shard on the parameter.
        return {name: vars(parameter)["ds_tensor"].data for name, parameter in trained.items()}

    def _collected(self) -> TunedModel:
        """A plain copy: the sharded modules gather and release by themselves at each call."""
        copy = self._rebuild()
        own = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        with torch.no_grad():
            for name, target in [*copy.named_parameters(), *copy.named_buffers()]:
                source = own[name]
                sharded = [source] if isinstance(source, nn.Parameter) else []
                with deepspeed.zero.GatheredParameters(sharded, modifier_rank=None):
                    target.copy_(source)
        return copy.to(self._world.device)

    def full_state(self) -> dict[str, Tensor]:
        """What is trained and what its optimizer remembers, as `DeepSpeedState.full` names it.

        Every rank calls it; the leading one gets copies, the others nothing.

        Raises:
            TrainingError: another rank is gone.
        """
        try:
            return self._state.full()
        except RuntimeError as error:
            if is_lost_contact(error):
                raise lost_contact(self._world.rank, error) from error
            raise

    def take_full_state(self, tensors: dict[str, Tensor]) -> None:
        """Takes what `full_state` returned, also of another stage or number of ranks.

        Raises:
            CheckpointError: the tensors don't fit; nothing is taken.
        """
        self._state.take(tensors)


def _groups(model: TunedModel, config: RunConfig) -> list[ParameterGroup]:
    trained, settings = model.method.trained(model.base), config.optimizer
    if model.prompt_names:
        return prompt_groups(trained, settings, model.prompt_names)
    return parameter_groups(trained, settings)


def _adamw(groups: Sequence[ParameterGroup], config: RunConfig) -> torch.optim.AdamW:
    settings = config.optimizer
    # torch's own: DeepSpeed's is compiled on first use.
    kind = PromptAdamW if config.prompt_names() else torch.optim.AdamW
    return kind(
        [{"params": group.parameters, "weight_decay": group.weight_decay} for group in groups],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
    )


def _compile_layers(model: TunedModel, device: torch.device) -> None:
    """Compiles the layers of both stacks: all layers of a stack share what is compiled.

    Raises:
        ConfigError: there is no compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ConfigError(f"engine.compile: no C++ compiler {compiler!r}; set CXX, or leave it out")
    for layer in [*model.base.encoder.layers, *model.base.decoder.layers]:
        layer.compile()
