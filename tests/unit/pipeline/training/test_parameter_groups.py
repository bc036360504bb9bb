"""Which parameters learn at which rate: patterns, their order, and patterns that decide nothing."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from model.tuning import build_tuned_model
from model.tuning.config import TuningConfig
from pipeline.errors import ConfigError
from pipeline.training.config import GroupConfig, OptimizerConfig
from pipeline.training.parameter_groups import parameter_groups
from tests.support.small_base import small_model, small_tokenizer


def _trained() -> dict[str, Tensor]:
    names = ("encoder.fc.weight", "encoder.fc.bias", "decoder.fc.weight", "decoder.fc.bias")
    tensors: dict[str, Tensor] = {
        name: nn.Parameter(torch.zeros(2, 2) if name.endswith("weight") else torch.zeros(2))
        for name in names
    }
    tied = nn.Parameter(torch.zeros(3, 2))
    buffer = {"encoder.bn.running_mean": torch.zeros(2)}
    return tensors | {"encoder.tokens.weight": tied, "decoder.tokens.weight": tied} | buffer


def _groups(*groups: GroupConfig) -> dict[str, tuple[float, float]]:
    """Rate and decay of each parameter by its name."""
    trained = _trained()
    found = parameter_groups(trained, OptimizerConfig(weight_decay=0.1, groups=list(groups)))
    dealt = [p for group in found for p in group.parameters]
    assert len(dealt) == len({id(p) for p in dealt}) == 5
    of = {id(p): (g.lr_scale, g.weight_decay) for g in found for p in g.parameters}
    return {name: of[id(p)] for name, p in trained.items() if isinstance(p, nn.Parameter)}


def test_without_groups_only_decay_differs() -> None:
    found = _groups()
    assert {name: value for name, value in found.items() if "bias" in name} == {
        "encoder.fc.bias": (1.0, 0.0),
        "decoder.fc.bias": (1.0, 0.0),
    }
    assert all(value == (1.0, 0.1) for name, value in found.items() if "weight" in name)


def test_the_first_pattern_that_matches_decides() -> None:
    found = _groups(
        GroupConfig(match="decoder.fc.*", lr_scale=0.5),
        GroupConfig(match="decoder.*", lr_scale=2.0, weight_decay=0.3),
        GroupConfig(match="*.bias", lr_scale=4.0, weight_decay=0.3),
    )
    assert found == {
        "encoder.fc.weight": (1.0, 0.1),
        "encoder.fc.bias": (4.0, 0.0),
        "decoder.fc.weight": (0.5, 0.1),
        "decoder.fc.bias": (0.5, 0.0),
        # Tied: the decoder's name is one of two.
        "encoder.tokens.weight": (2.0, 0.3),
        "decoder.tokens.weight": (2.0, 0.3),
    }


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (("decodr.*",), "optimizer.groups[0].match = 'decodr.*': matches nothing that is trained"),
        (("*", "decoder.*"), "optimizer.groups[1].match = 'decoder.*': all that it matches"),
        (("Decoder.*",), "there is decoder.fc.bias, decoder.fc.weight"),
        (("*running_mean",), "matches nothing that is trained"),
    ],
)
def test_a_pattern_that_decides_nothing_is_named(patterns: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        _groups(*(GroupConfig(match=pattern) for pattern in patterns))


@pytest.mark.parametrize("method", ["prefix", "adapter", "adapter_prefix", "bitfit", "finetune"])
def test_every_method_names_all_that_it_trains(method: str) -> None:
    tokenizer = small_tokenizer(["a red box"], text_count=280, bin_count=8, code_count=4)
    base = small_model(tokenizer, seed=1, image_size=48)
    model = build_tuned_model(base, TuningConfig(method=method))  # type: ignore[arg-type]
    groups = parameter_groups(model.method.trained(model.base), OptimizerConfig())
    dealt = {id(p) for group in groups for p in group.parameters}
    assert dealt == {id(p) for p in model.parameters() if p.requires_grad}
