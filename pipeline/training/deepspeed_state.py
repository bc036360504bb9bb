"""What a DeepSpeed engine has learnt and remembers, whole, whatever its ZeRO stage and ranks.

DeepSpeed's own functions for this (`safe_get_full_optimizer_state` and its siblings) are not used:
they add the pieces of the ranks as floats, which loses the sign of a zero, they have no states
before the first step, and in stage 3 they cannot set a parameter whose values do not divide by the
ranks. All stages hold the same thing, a piece of each parameter inside a flat tensor that torch's
optimizer takes for its parameter; so here is one way for all of them, and it moves bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.tuning import TunedModel
from pipeline.training.averaging import MovingAverage
from pipeline.training.full_state import AVERAGE, MOMENTS, PARAMETER, STEP, STEPS, check_fit
from pipeline.training.world import World


@dataclass(frozen=True)
class _Piece:
    """The part of a parameter that this rank optimizes."""

    flat: Tensor
    """The tensor that the optimizer updates."""
    at: int
    """Where the piece begins in it."""
    start: int
    """Where it begins in the parameter."""
    size: int

    def of(self, whole: Tensor) -> Tensor:
        """This part of a whole parameter, or of something of its shape."""
        return whole.reshape(-1).narrow(0, self.start, self.size)

    def within(self, flat: Tensor) -> Tensor:
        """This part of a flat tensor."""
        return flat.detach().reshape(-1).narrow(0, self.at, self.size)


class DeepSpeedState:
    """Reads and writes the whole state of one engine; every rank calls each method."""

    def __init__(
        self, engine: Any, model: TunedModel, average: MovingAverage | None, world: World
    ) -> None:
        """Prepares.

        Args:
            engine: What deepspeed.initialize made.
            model: The model in it.
            average: The run's moving averages, if it keeps them.
            world: The ranks.
        """
        self._engine = engine
        self._model = model
        self._average = average
        self._world = world
        self._stage: int = engine.zero_optimization_stage()
        self._zero = engine.optimizer
        """DeepSpeed's around torch's; in stage 0, torch's itself."""
        self._adam: torch.optim.Optimizer = self._zero.optimizer if self._stage else self._zero

    @torch.no_grad()
    def full(self) -> dict[str, Tensor]:
        """Collects the state, one parameter after the other.

        Returns:
            On the leading rank copies on the CPU, all float32: `parameter/<name>`,
            `exp_avg/<name>`, `exp_avg_sq/<name>` of the parameter's shape, `step/<name>` without
            dimensions, `average/<name>` where the run keeps averages, and `engine/steps`, which
            goes on where AdamW leaves parameters alone. Nothing on the others.

        Raises:
            RuntimeError: another rank is gone.
        """
        kinds = (PARAMETER, *MOMENTS, *([AVERAGE] if self._average else []))
        found: dict[str, Tensor] = {}
        for name, parameter in self._trained():
            shape = _shape(parameter)
            own = torch.zeros(len(kinds), shape.numel(), device=self._world.device)
            step = torch.zeros(1, device=self._world.device)
            self._put_pieces(name, parameter, own, step)
            self._to_leader(own)
            self._to_leader(step)
            if self._world.leads:
                for kind, row in zip(kinds, own, strict=True):
                    found[f"{kind}/{name}"] = row.reshape(shape).to("cpu", copy=True)
                found[f"{STEP}/{name}"] = step[0].to("cpu", copy=True)
        if self._world.leads:
            found[STEPS] = torch.tensor(float(self._engine.global_steps))
        return found

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what `full` returned, also of another stage or number of ranks.

        Args:
            tensors: The same on every rank.

        Raises:
            CheckpointError: names, shapes or types are others than this run's; nothing is taken.
        """
        shapes = {name: _shape(parameter) for name, parameter in self._trained()}
        check_fit(tensors, shapes, averaged=self._average is not None)
        counts = {p: float(tensors[f"{STEP}/{n}"]) for n, p in self._trained()}
        for flat, parameters in self._flats():
            # What shares a flat tensor shares its count, also where stage 0 has skipped some of it.
            self._begun(flat, max(counts[parameter] for parameter in parameters))
        for name, parameter in self._trained():
            whole = tensors[f"{PARAMETER}/{name}"]
            piece = self._piece(parameter)
            if self._stage < 3:
                parameter.data.copy_(whole)
            elif piece is not None:
                # DeepSpeed hangs the shard on the parameter.
                vars(parameter)["ds_tensor"].data[: piece.size].copy_(piece.of(whole))
            if piece is not None:
                piece.within(piece.flat).copy_(piece.of(whole))
                state = self._adam.state[piece.flat]
                for kind in MOMENTS:
                    piece.within(state[kind]).copy_(piece.of(tensors[f"{kind}/{name}"]))
            self._take_average(name, piece, tensors)
        # Another engine may keep no count of its own.
        latest = max(counts.values(), default=0.0)
        self._engine.global_steps = int(tensors.get(STEPS, torch.tensor(latest)))

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((n, p) for n, p in self._model.named_parameters() if p.requires_grad)

    def _flats(self) -> Iterator[tuple[Tensor, Sequence[nn.Parameter]]]:
        """What the optimizer takes for its parameters, and the parameters in each."""
        if self._stage == 0:
            return ((parameter, (parameter,)) for _, parameter in self._trained())
        zero = self._zero
        if self._stage < 3:
            return zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True)
        return zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)

    def _piece(self, parameter: nn.Parameter) -> _Piece | None:
        if self._stage == 0:
            return _Piece(parameter, 0, 0, parameter.numel())
        if self._stage < 3:
            mapping = vars(parameter)["_hp_mapping"]
            if mapping is None:
                return None
            flat = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
            held, own = mapping.hp_fragment_address, mapping.lp_fragment_address
            return _Piece(flat, held.start, own.start, held.numel)
        group, at, size = self._zero.grad_position[self._zero.get_param_id(parameter)]
        start = size * self._world.rank
        # The last shards are filled up to the size of the others.
        size = min(size, _shape(parameter).numel() - start)
        if size <= 0:
            return None
        return _Piece(self._zero.fp32_partitioned_groups_flat[group], at, start, size)

    def _begun(self, flat: Tensor, step: float) -> None:
        """Makes what the optimizer itself makes at its first step."""
        state = self._adam.state[flat]
        for kind in MOMENTS:
            state.setdefault(kind, torch.zeros_like(flat, requires_grad=False))
        state["step"] = torch.tensor(step, dtype=torch.float32)

    def _put_pieces(self, name: str, parameter: nn.Parameter, own: Tensor, step: Tensor) -> None:
        piece = self._piece(parameter)
        if piece is not None and (self._stage > 0 or self._world.leads):
            piece.of(own[0]).copy_(piece.within(piece.flat))
            state = self._adam.state.get(piece.flat, {})
            for row, kind in enumerate(MOMENTS, start=1):
                if kind in state:
                    piece.of(own[row]).copy_(piece.within(state[kind]))
            if piece.start == 0 and "step" in state:
                step.fill_(float(state["step"]))
        if self._average is None:
            return
        average = self._average.values()[name]
        if self._stage < 3:
            if self._world.leads:
                own[-1].copy_(average.reshape(-1))
        elif piece is not None:
            piece.of(own[-1]).copy_(average.reshape(-1)[: piece.size])

    def _take_average(self, name: str, piece: _Piece | None, tensors: Mapping[str, Tensor]) -> None:
        if self._average is None:
            return
        average, whole = self._average.values()[name], tensors[f"{AVERAGE}/{name}"]
        if self._stage < 3:
            average.copy_(whole)
        elif piece is not None:
            average.reshape(-1)[: piece.size].copy_(piece.of(whole))

    def _to_leader(self, tensor: Tensor) -> None:
        """Joins what the ranks have put into their tensors; each place was put by one of them."""
        if self._stage and self._world.size > 1:
            # As integers, because a sum of floats turns -0.0 into 0.0.
            dist.reduce(tensor.view(torch.int32), dst=0)


def _shape(parameter: nn.Parameter) -> torch.Size:
    """The whole shape, also of a parameter of which stage 3 has left a shard."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape
