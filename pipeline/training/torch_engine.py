"""Training with torch.distributed alone, for debugging: no hooks, no shards, no DeepSpeed.

It repeats the arithmetic of DeepSpeed's stage 0 in the same order, so that on one or two ranks a
run gives the same bits. With more ranks a sum may be rounded in another order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from model.tuning import TunedModel
from pipeline.config import RunConfig
from pipeline.training.averaging import MovingAverage
from pipeline.training.data import Batch
from pipeline.training.forward import Forward, compile_layers
from pipeline.training.full_state import AVERAGE, MOMENTS, PARAMETER, STEP, STEPS, check_fit
from pipeline.training.optimizer import adamw, groups_of
from pipeline.training.prompt_adamw import PromptClipping
from pipeline.training.world import World

ResultT = TypeVar("ResultT")


class TorchEngine:
    """A tuned model and its optimizer, whole on every rank."""

    def __init__(self, model: TunedModel, config: RunConfig, world: World) -> None:
        """Places the model.

        Args:
            model: On the CPU, the same on every rank.
            config: The run.
            world: The ranks.
        """
        self.model = model.to(world.device)
        self._world = world
        model.base.recompute_activations(config.engine.activation_checkpointing)
        if config.engine.compile:
            compile_layers(model, world.device)
        self._forward = Forward(model, config.engine.precision, world.device)
        groups = groups_of(model, config.optimizer)
        self._optimizer = adamw(groups, config.optimizer)
        self._lr_scales = [group.lr_scale for group in groups]
        self._trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.sizes = model.parameter_counts()
        """Number of trained values, and of those of the base."""
        names, self._clip_norm = model.prompt_names, config.optimizer.clip_norm
        self._clipping = PromptClipping(groups, names, self._clip_norm) if names else None
        self._accumulation = config.training.gradient_accumulation
        self._micro_batches = 0
        self._steps = 0
        decay = config.training.ema_decay
        self._average = None if decay is None else MovingAverage(self._held, decay)

    def train(self) -> None:
        """Training mode."""
        self._forward.train()

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, T, V] of a batch on the engine's device."""
        logits: Tensor = self._forward(
            batch.source_ids_BS,
            batch.images_BCHW,
            batch.image_present_B,
            batch.decoder_ids_BT,
            batch.prompt_index_B,
        )
        return logits

    def backward(self, loss: Tensor) -> None:
        """Adds a loss's gradients; they are summed over micro-batches and ranks, not averaged."""
        loss.backward()

    def step(self, lr: float, idle: Sequence[int] = ()) -> float | None:
        """Ends a micro-batch; the last of a step clips and updates.

        Args:
            lr: Learning rate of the step; groups scale it.
            idle: Places of the prompts, of several, that stay as they are.

        Returns:
            L2 norm of all gradients before clipping; None before the last micro-batch.
        """
        self._micro_batches += 1
        if self._micro_batches < self._accumulation:
            return None
        self._micro_batches = 0
        norm = self._clip(self._reduced(), idle)
        for group, scale in zip(self._optimizer.param_groups, self._lr_scales, strict=True):
            group["lr"] = lr * scale
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._steps += 1
        if self._average is not None:
            self._average.update(self._steps)
        return norm

    def measure(self, run: Callable[[TunedModel], ResultT]) -> ResultT:
        """Runs the model with the moving averages of what is trained, where the run keeps them."""
        with self.whole_model() as model, torch.no_grad():
            return run(model)

    @contextlib.contextmanager
    def whole_model(self) -> Iterator[TunedModel]:
        """The model as `measure` runs it, to be read."""
        with contextlib.nullcontext() if self._average is None else self._average.in_place():
            yield self.model

    def full_state(self) -> dict[str, Tensor]:
        """What continues the training, on the leading rank; elsewhere nothing.

        Returns:
            float32 copies on the CPU: `parameter/<name>`, AdamW's `exp_avg/<name>`,
            `exp_avg_sq/<name>` and `step/<name>`, `average/<name>` where averages are kept, and the
            number of all steps.
        """
        if not self._world.leads:
            return {}
        state: dict[str, Tensor] = {STEPS: torch.tensor(float(self._steps))}
        for name, parameter in self._trained.items():
            moments = self._optimizer.state.get(parameter, {})
            state[f"{PARAMETER}/{name}"] = parameter
            for moment in MOMENTS:
                state[f"{moment}/{name}"] = moments.get(moment, torch.zeros_like(parameter))
            state[f"{STEP}/{name}"] = moments.get("step", torch.tensor(0.0))
        if self._average is not None:
            state |= {f"{AVERAGE}/{name}": value for name, value in self._average.values().items()}
        return {
            key: value.detach().to("cpu", torch.float32, copy=True) for key, value in state.items()
        }

    @torch.no_grad()
    def take_full_state(self, tensors: dict[str, Tensor]) -> None:
        """Continues from what `full_state` returned; every rank gives the same.

        Raises:
            CheckpointError: it is the state of other parameters; nothing is changed then.
        """
        shapes = {name: parameter.shape for name, parameter in self._trained.items()}
        check_fit(tensors, shapes, averaged=self._average is not None)
        for name, parameter in self._trained.items():
            parameter.copy_(tensors[f"{PARAMETER}/{name}"])
            self._optimizer.state[parameter] = {
                # AdamW counts on the CPU.
                "step": tensors[f"{STEP}/{name}"].clone(),
                **{m: tensors[f"{m}/{name}"].to(parameter.device, copy=True) for m in MOMENTS},
            }
        latest = max(tensors[f"{STEP}/{name}"] for name in self._trained)
        self._steps = int(tensors.get(STEPS, latest))
        if self._average is not None:
            self._average.take({name: tensors[f"{AVERAGE}/{name}"] for name in self._trained})

    def _held(self) -> dict[str, Tensor]:
        return {name: parameter.data for name, parameter in self._trained.items()}

    def _reduced(self) -> list[Tensor]:
        """Gradients summed over the ranks; zeros where a step did not reach a parameter."""
        gradients = []
        for parameter in self._trained.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        if self._world.size > 1:
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            parts = flat.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        return gradients

    def _clip(self, gradients: list[Tensor], idle: Sequence[int]) -> float:
        if self._clipping is not None:
            groups = self._optimizer.param_groups
            return self._clipping.prepare(groups, lambda parameter: parameter.grad, idle)
        norms = torch.stack([gradient.norm() for gradient in gradients])
        norm = norms.square().sum().sqrt()
        if self._clip_norm > 0:
            # torch's own function divides by multiplying with a reciprocal, which rounds otherwise.
            factor = norm.new_tensor(self._clip_norm) / (norm + 1e-6)
            for gradient in gradients:
                gradient.mul_(factor.clamp(max=1.0))
        return float(norm)
