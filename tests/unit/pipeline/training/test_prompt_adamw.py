"""Prompts in one optimizer are clipped and rest each by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.training.config import GroupConfig, OptimizerConfig
from pipeline.training.parameter_groups import prompt_groups
from pipeline.training.prompt_adamw import PromptAdamW, PromptClipping

NAMES = ("caption", "vqa")
PARTS = ("encoder.weight", "decoder.weight", "encoder.bias")


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(3)
    return {
        f"{name}.{part}": nn.Parameter(torch.randn(3) if "bias" in part else torch.randn(2, 3))
        for name in NAMES
        for part in PARTS
    }


def gradients(step: int) -> dict[str, Tensor]:
    """A caption's are large, so that a common norm would clip away the others."""
    torch.manual_seed(100 + step)
    return {
        name: torch.randn(p.shape) * (9.0 if name.startswith("caption") else 0.3 * (step + 1))
        for name, p in parameters().items()
    }


def gradient(parameter: nn.Parameter) -> Tensor | None:
    return parameter.grad


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_each_prompt_takes_the_steps_of_an_optimizer_of_its_own(clip_norm: float) -> None:
    settings = OptimizerConfig(
        lr=0.1, clip_norm=clip_norm, groups=[GroupConfig(match="vqa.decoder.*", lr_scale=0.5)]
    )
    trained = parameters()
    groups = prompt_groups(trained, settings, NAMES)
    together = PromptAdamW(
        [
            {"params": g.parameters, "weight_decay": g.weight_decay, "lr": 0.1 * g.lr_scale}
            for g in groups
        ]
    )
    clipping = PromptClipping(groups, NAMES, clip_norm)
    alone = parameters()
    optimizers = {
        name: torch.optim.AdamW(
            [
                {
                    "params": [alone[f"{name}.{part}"]],
                    "weight_decay": 0.0 if part.endswith("bias") else settings.weight_decay,
                    "lr": 0.05 if (name, part) == ("vqa", "decoder.weight") else 0.1,
                }
                for part in PARTS
            ]
        )
        for name in NAMES
    }
    for step in range(5):
        idle = [1] if step in (0, 3) else []
        for name, value in gradients(step).items():
            trained[name].grad, alone[name].grad = value.clone(), value.clone()
        norm = clipping.prepare(together.param_groups, gradient, idle)
        assert norm == pytest.approx(
            float(torch.cat([v.flatten() for v in gradients(step).values()]).norm()), rel=1e-5
        )
        together.step()
        for place, name in enumerate(NAMES):
            own = [p for key, p in alone.items() if key.startswith(name)]
            if clip_norm:
                nn.utils.clip_grad_norm_(own, clip_norm)
            if place not in idle:
                optimizers[name].step()
    for name, value in trained.items():
        torch.testing.assert_close(value, alone[name], atol=1e-6, rtol=1e-6)


def test_a_group_belongs_to_one_prompt_and_keeps_its_rate() -> None:
    settings = OptimizerConfig(
        weight_decay=0.2, groups=[GroupConfig(match="*.encoder.*", lr_scale=2.0)]
    )
    trained = parameters()
    name_of = {id(p): name for name, p in trained.items()}
    found = [
        (
            group.prompt,
            group.lr_scale,
            group.weight_decay,
            [name_of[id(p)] for p in group.parameters],
        )
        for group in prompt_groups(trained, settings, NAMES)
    ]
    assert found == [
        (name, scale, decay, [f"{name}.{part}"])
        for scale, decay, part in (
            (2.0, 0.2, "encoder.weight"),
            (2.0, 0.0, "encoder.bias"),
            (1.0, 0.2, "decoder.weight"),
        )
        for name in NAMES
    ]


def test_a_pattern_about_no_prompt_is_refused() -> None:
    settings = OptimizerConfig(groups=[GroupConfig(match="entailment.*")])
    with pytest.raises(ConfigError, match="matches nothing that is trained"):
        prompt_groups(parameters(), settings, NAMES)
