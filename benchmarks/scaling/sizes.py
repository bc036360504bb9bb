"""How large a model is, and how much it computes: asked of the model itself, without its weights.

It is built on torch's meta device, which knows shapes only, so OFA-huge takes a second and no
memory.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from benchmarks.scaling.assumptions import Assumptions
from benchmarks.settings import ARCHITECTURES
from model.ofa import OFA, Savings
from model.tuning import PrefixConfig, TuningConfig, build_tuned_model
from pipeline.training.flops import count_flops

_SAMPLES, _SOURCE_TOKENS, _TARGET_TOKENS = 4, 20, 16


@dataclass(frozen=True)
class ModelSize:
    """One tuned model."""

    trained: int
    """Values that are trained."""
    base: int
    """Values of the base."""
    flops: int
    """Floating-point operations of a training step, for each sample. Without the scores that a
    fused attention computes again in its backward pass: 2% of what the counter sees on a CPU."""
    modules: int
    """Modules of the base with parameters of their own: most parts that ZeRO 3 gathers it in."""


def model_size(assumed: Assumptions) -> ModelSize:
    """Measure the model of a run."""
    return _size(assumed.arch, assumed.method, assumed.prompt_length, assumed.image_size)


@functools.cache
def _size(arch: str, method: str, prompt_length: int, image_size: int) -> ModelSize:
    prefix = PrefixConfig(length=prompt_length)
    tuning = TuningConfig(method=method, prefix=prefix)  # type: ignore[arg-type]
    with torch.device("meta"):
        base = OFA(ARCHITECTURES[arch])
        model = build_tuned_model(base.eval(), tuning).train()
        if base.frozen:
            # The savings look at values, which do not exist here; they spare no products.
            base.freeze(Savings.none())
        source = torch.ones(_SAMPLES, _SOURCE_TOKENS, dtype=torch.long)
        target = torch.ones(_SAMPLES, _TARGET_TOKENS, dtype=torch.long)
        image = torch.zeros(_SAMPLES, 3, image_size, image_size)
        present = torch.ones(_SAMPLES, dtype=torch.bool)
        flops = count_flops(lambda: model(source, image, present, target).sum().backward())
    return ModelSize(
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        base=sum(p.numel() for p in base.parameters()),
        flops=flops // _SAMPLES,
        modules=sum(1 for module in base.modules() if list(module.parameters(recurse=False))),
    )
