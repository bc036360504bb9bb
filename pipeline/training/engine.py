"""DeepSpeed: the only file that imports it.

The loop sees a few verbs (forward, backward, step, full_state); which ZeRO stage runs, and where
parameters and optimizer states lie, stays in here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from model.tuning import TunedModel
from model.tuning.tuned import ParameterCounts
from pipeline.config import RunConfig
from pipeline.training.averaging import MovingAverage
from pipeline.training.data import Batch
from pipeline.training.deepspeed_config import deepspeed_config
from pipeline.training.deepspeed_state import DeepSpeedState
from pipeline.training.forward import Forward, compile_layers
from pipeline.training.optimizer import adamw, groups_of
from pipeline.training.prompt_adamw import PromptClipping
from pipeline.training.quiet_deepspeed import deepspeed, join_deepspeed
from pipeline.training.sharding import whole, whole_shape
from pipeline.training.world import World, is_lost_contact, lost_contact

ResultT = TypeVar("ResultT")


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
        groups = groups_of(model, config.optimizer, lambda parameter: len(whole_shape(parameter)))
        dealt = sum(_values(group.parameters) for group in groups)
        assert dealt == self.sizes.trainable, "a method names all that it trains"
        self._lr_scales = [group.lr_scale for group in groups]
        names, clip_norm = model.prompt_names, config.optimizer.clip_norm
        self._clipping = PromptClipping(groups, names, clip_norm) if names else None
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
            own_norm = self._clipping.prepare(groups, deepspeed.utils.safe_get_full_grad, idle)
        self._engine.step()
        if last and self._average is not None:
            self._average.update(self._engine.global_steps)
        norm = self._engine.get_global_grad_norm() if last and own_norm is None else own_norm
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


def _values(parameters: Sequence[Tensor]) -> int:
    return sum(whole_shape(parameter).numel() for parameter in parameters)
