"""A rank that hands the state of one engine to that of another, and says what it found.

Run as a module with the folder of a base: DeepSpeed needs a process group of its own.
"""

from __future__ import annotations

import re
import sys

import pytest
import torch
from torch import Tensor

from model.checkpoint import load_config
from pipeline.config import RunConfig
from pipeline.config_tree import build
from pipeline.errors import CheckpointError
from pipeline.training.backend import Engine, start_engine
from pipeline.training.data import Batch
from pipeline.training.process_group import join_world, leave_world
from pipeline.training.subject import build_model
from pipeline.training.world import World

ENGINES = (("deepspeed", 0), ("deepspeed", 3), ("torch", 0), ("deepspeed", 1), ("deepspeed", 2))
"""Backends and ZeRO stages. Each takes over from the one before; the first begins."""


def config_of(base: str, backend: str, stage: int) -> RunConfig:
    """A run whose tensors have odd sizes, so that no number of ranks divides them."""
    config: RunConfig = build(
        RunConfig,
        {
            "name": "exchange",
            "base": {"path": base},
            "tuning": {
                "method": "adapter_prefix",
                "prefix": {"length": 3},
                "adapter": {"dim": 3},
            },
            "optimizer": {"groups": [{"match": "*.bias", "lr_scale": 0.5}], "clip_norm": 0.1},
            "training": {"ema_decay": 0.5, "gradient_accumulation": 2, "batch_size_per_rank": 2},
            "engine": {"backend": backend, "zero_stage": stage, "processes": 2},
        },
    )
    return config


def whole(engine: Engine, world: World) -> dict[str, Tensor]:
    """The state on every rank."""
    return world.gather(engine.full_state())[0]


def take_step(engine: Engine, base: str, rank: int) -> None:
    """A step on samples that depend on nothing but the rank."""
    vocabulary = load_config(base).vocab.text_count
    torch.manual_seed(rank)
    for _ in range(2):
        ids = torch.randint(5, vocabulary, (2, 6))
        images, present = torch.randn(2, 3, 48, 48), torch.tensor([True, True])
        batch = Batch(
            **{"uids": (), "tasks": (), "samples": (), "tokens": 12},
            **{"source_ids_BS": ids, "decoder_ids_BT": ids, "target_BT": ids},
            **{"images_BCHW": images, "image_present_B": present},
            confidence_B=torch.ones(2),
            prompt_index_B=torch.zeros(2, dtype=torch.int64),
        )
        logits = engine.forward(batch)
        engine.backward(logits.logsumexp(-1).mean() - logits[..., 7].mean())
        engine.step(0.01)


def bits(state: dict[str, Tensor]) -> dict[str, tuple[torch.Size, bytes]]:
    return {name: (tensor.shape, tensor.numpy().tobytes()) for name, tensor in state.items()}


def refuses_others(engine: Engine, state: dict[str, Tensor]) -> None:
    """Offers states that do not fit."""
    name = next(name for name in state if name.startswith("exp_avg/"))
    wrong: list[tuple[dict[str, Tensor], str]] = [
        ({n: t for n, t in state.items() if n != name}, f"{name} is missing"),
        ({**state, "parameter/other": state[name]}, "parameter/other is unexpected"),
        ({**state, name: torch.zeros(7, 7)}, f"{name} has shape [7, 7], expected"),
        ({**state, name: state[name].double()}, f"{name} is torch.float64, expected torch.float32"),
    ]
    for tensors, said in wrong:
        with pytest.raises(CheckpointError, match=re.escape(said)):
            engine.take_full_state(tensors)


def main(base: str) -> None:
    world = join_world(config_of(base, *ENGINES[0]))
    former: dict[str, Tensor] = {}
    for turn, (backend, stage) in enumerate(ENGINES):
        config = config_of(base, backend, stage)
        engine = start_engine(build_model(config), config, world, lambda c=config: build_model(c))
        engine.train()
        begun = whole(engine, world)
        assert all(float(begun[name]) == 0.0 for name in begun if name.startswith("step/"))
        if turn == 0:
            take_step(engine, base, world.rank)
            take_step(engine, base, world.rank)
            former = whole(engine, world)
            # What sums of floats, or a pass through another type, would not keep.
            for name, tensor in former.items():
                if name.startswith("exp_avg/"):
                    tensor.view(-1)[:1] = -0.0
            # As where a part of the prompts has rested for a step.
            former["engine/steps"].add_(1.0)
        assert begun.keys() == former.keys()
        before = whole(engine, world)
        refuses_others(engine, former)
        assert bits(whole(engine, world)) == bits(before), "a refused state has left something"
        engine.take_full_state(former)
        # Before the first step of this engine, when its optimizer has made no states by itself.
        assert bits(whole(engine, world)) == bits(former), f"{backend} {stage} keeps other bits"
        take_step(engine, base, world.rank)
        stepped = whole(engine, world)
        engine.take_full_state(former)
        take_step(engine, base, world.rank)
        again = whole(engine, world)
        assert bits(again) == bits(stepped), f"{backend} {stage} does not go on to the same bits"
        assert all(float(stepped[n]) == 3.0 + turn for n in stepped if n.startswith("step/"))
        assert float(stepped["engine/steps"]) == 4.0 + turn
        moved = [n for n in stepped if not torch.equal(stepped[n], former[n])]
        assert len(moved) > len(stepped) * 0.9
        if turn:
            print(f"{backend} {stage} rank {world.rank}: {len(stepped)} tensors")
        former = stepped
    leave_world()


if __name__ == "__main__":
    main(sys.argv[1])
