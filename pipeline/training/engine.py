"""DeepSpeed: the only file that imports it.

The loop sees a few verbs (forward, backward, step, save, load); which ZeRO stage runs, and where
parameters and optimizer states lie, stays in here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from model.tuning import TunedModel
from model.tuning.tuned import ParameterCounts
from pipeline.config import RunConfig
from pipeline.errors import CheckpointError, TrainingError
from pipeline.training.averaging import MovingAverage
from pipeline.training.data import Batch
from pipeline.training.deepspeed_config import deepspeed_config
from pipeline.training.forward import Forward, compile_layers
from pipeline.training.parameter_groups import adamw, parameter_groups
from pipeline.training.quiet_deepspeed import deepspeed, join_deepspeed
from pipeline.training.sharding import whole, whole_shape
from pipeline.training.world import World, is_lost_contact, lost_contact

ResultT = TypeVar("ResultT")

_MODEL_FILE = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")
"""DeepSpeed's name of the file that lists the parameters, below stage 3 and in it."""


class DeepSpeedEngine:
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
            model: On the CPU, the same on every rank; in stage 3 its base may be sharded already.
            config: The run.
            world: The ranks.
            rebuild: Makes another such model that is whole.
        """
        join_deepspeed()
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
            compile_layers(model, world.device)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.sizes = ParameterCounts(
            trainable=_values(trained), base=_values(list(model.base.parameters()))
        )
        """Number of trained values, and of those of the base."""
        groups = parameter_groups(
            model.method.trained(model.base),
            config.optimizer,
            lambda parameter: len(whole_shape(parameter)),
        )
        dealt = sum(_values(group.parameters) for group in groups)
        assert dealt == self.sizes.trainable, "a method names all that it trains"
        self._lr_scales = [group.lr_scale for group in groups]
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=Forward(model.to(world.device), config.engine.precision, world.device),
            optimizer=adamw(groups, config.optimizer),
            config=deepspeed_config(
                config,
                ranks=world.size,
                trainable=self.sizes.trainable,
                pinned=world.device.type == "cuda",
            ),
        )
        decay = config.training.ema_decay
        self._average = None if decay is None else MovingAverage(self._held, decay)

    def train(self) -> None:
        """Training mode."""
        self._engine.train()

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, T, V] of a batch on the engine's device."""
        logits: Tensor = self._engine(
            batch.source_ids_BS, batch.images_BCHW, batch.image_present_B, batch.decoder_ids_BT
        )
        return logits

    def backward(self, loss: Tensor) -> None:
        """Adds a loss's gradients; they are summed over micro-batches and ranks, not averaged."""
        self._engine.backward(loss * self._world.size, scale_wrt_gas=False)

    def step(self, lr: float) -> float | None:
        """Ends a micro-batch; the last of a step clips and updates.

        Args:
            lr: Learning rate of the step; groups scale it.

        Returns:
            L2 norm of all gradients before clipping; None before the last micro-batch, or where
            DeepSpeed does not know it.
        """
        for group, scale in zip(self._optimizer.param_groups, self._lr_scales, strict=True):
            group["lr"] = lr * scale
        last = self._engine.is_gradient_accumulation_boundary()
        self._engine.step()
        if last and self._average is not None:
            self._average.update(self._engine.global_steps)
        norm = self._engine.get_global_grad_norm() if last else None
        return None if norm is None else float(norm)

    def measure(self, run: Callable[[TunedModel], ResultT]) -> ResultT:
        """Runs the model with the moving averages of what is trained, where the run keeps them.

        In stage 3 the layers gather and release their parameters as in training: `run` must make
        the same calls on every rank.
        """
        results: list[ResultT] = []
        with self._averaged(), torch.no_grad():
            if self._stage < 3:
                return run(self.model)
            # Inside the module's pass DeepSpeed also gathers what is used outside of its layer.
            self._engine.module(measure=lambda model: results.append(run(model)))
        return results[0]

    @contextlib.contextmanager
    def whole_model(self) -> Iterator[TunedModel]:
        """The model with all that is trained, as `measure` runs it, to be read on the leading rank.

        In stage 3 a frozen base stays sharded. Every rank calls it.
        """
        with self._averaged():
            if self._stage < 3:
                yield self.model
            elif self.model.makes_base:
                yield self._collected()
            else:
                trained = [p for p in self.model.parameters() if p.requires_grad]
                with deepspeed.zero.GatheredParameters(trained, modifier_rank=None):
                    yield self.model

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        with contextlib.nullcontext() if self._average is None else self._average.in_place():
            yield

    def _held(self) -> dict[str, Tensor]:
        """What this rank holds of each trained parameter: all of it, or in stage 3 its shard."""
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if self._stage < 3:
            return {name: parameter.data for name, parameter in trained.items()}
        # DeepSpeed hangs the shard on the parameter.
        return {name: vars(parameter)["ds_tensor"].data for name, parameter in trained.items()}

    def _average_file(self, place: Path) -> Path:
        own = f"-rank-{self._world.rank}" if self._stage == 3 else ""
        return place / f"average{own}.safetensors"

    def _collected(self) -> TunedModel:
        """On the leading rank a plain copy of a model that trains its base; else the model."""
        copy = self._rebuild() if self._world.leads else self.model
        targets = dict(copy.named_parameters()) | dict(copy.named_buffers())
        with torch.no_grad():
            for name, source in [*self.model.named_parameters(), *self.model.named_buffers()]:
                collected = whole(source)
                if self._world.leads:
                    targets[name].copy_(collected)
        return copy

    def save(self, folder: Path, tag: str) -> None:
        """Writes trained parameters, their averages and optimizer states into folder/tag.

        Every rank calls it.

        Raises:
            TrainingError: a file cannot be written.
        """
        try:
            self._engine.save_checkpoint(
                str(folder), tag=tag, save_latest=False, exclude_frozen_parameters=True
            )
            if self._average is not None and (self._world.leads or self._stage == 3):
                self._average.save(self._average_file(folder / tag))
        except (OSError, RuntimeError, SafetensorError) as error:
            rank = self._world.rank
            if is_lost_contact(error):
                raise lost_contact(rank, error) from error
            raise TrainingError(f"rank {rank} cannot save {folder / tag}: {error}") from error

    def check_saved(self, place: Path) -> None:
        """Reads a checkpoint of this engine again and looks for everything that is trained.

        Raises:
            CheckpointError: a trained parameter is not in it.
        """
        # Our own file, written a moment ago: DeepSpeed keeps more than tensors in it.
        saved = torch.load(
            place / _MODEL_FILE[self._stage == 3], map_location="cpu", weights_only=False
        )
        shapes: dict[str, object] = {}
        for group in saved["param_shapes"] or ():
            shapes |= group
        names = {name for name, p in self._engine.module.named_parameters() if p.requires_grad}
        held = set(shapes) if self._stage else set(saved["module"])
        missing = sorted(names - held)
        if missing:
            raise CheckpointError(f"{place} lacks {missing[0]} and {len(missing) - 1} more")

    def load(self, folder: Path, tag: str) -> None:
        """Takes back what save wrote, with as many ranks and the same stage.

        Raises:
            CheckpointError: it does not fit this run.
        """
        try:
            found, _ = self._engine.load_checkpoint(
                str(folder), tag=tag, load_module_strict=False, load_lr_scheduler_states=False
            )
        except (OSError, RuntimeError, KeyError, ValueError, AssertionError) as error:
            line = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{folder / tag} cannot be loaded: {line}") from error
        if found is None:
            raise CheckpointError(f"{folder / tag} holds no checkpoint")
        if self._average is not None:
            self._average.load(self._average_file(folder / tag))


def _values(parameters: Sequence[Tensor]) -> int:
    return sum(whole_shape(parameter).numel() for parameter in parameters)
