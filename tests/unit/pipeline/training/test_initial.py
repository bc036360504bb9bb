"""A new run starts from what its settings say, the same on every rank, or says why it cannot."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint import fingerprint
from pipeline.config import RunConfig, load
from pipeline.errors import ConfigError, RegistryError
from pipeline.training.initial import set_initial_values
from pipeline.training.inputs import open_inputs
from pipeline.training.subject import build_model
from pipeline.training.world import World
from tests.support.small_prompt import small_prompt
from tests.support.small_world import prepared_world
from tests.support.training_run import small_base

Override = tuple[str, str]
ACTIVATIONS: Override = ("initial.values", "activations")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_world(tmp_path_factory.mktemp("data"), scenes=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return small_base(tmp_path_factory.mktemp("base") / "base", data)


def config_of(base: Path, data: Path, *overrides: Override) -> RunConfig:
    basic = [
        ("name", "run"),
        ("base.path", str(base)),
        ("data.train", f"[{data}]"),
        ("data.streams", "8"),
        ("data.loader_workers", "0"),
        ("tuning.prefix.length", "6"),
    ]
    return load(RunConfig, overrides=[*basic, *overrides])


def started(config: RunConfig, rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
    """What a rank begins with."""
    model = build_model(config)
    world = World(rank=rank, size=ranks, device=torch.device("cpu"))
    before = fingerprint(model.base)
    with contextlib.ExitStack() as stack:
        inputs = open_inputs(config, model.base.config, world, stack)
        set_initial_values(model, config, inputs.loader, before)
    assert fingerprint(model.base) == before
    return model.export_state()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_activations_are_the_same_on_all_ranks_of_any_number(base: Path, data: Path) -> None:
    config = config_of(base, data, ACTIVATIONS)
    alone = started(config)
    assert same(alone, started(config, rank=1, ranks=2))
    assert not same(alone, started(config_of(base, data)))
    assert not same(alone, started(config_of(base, data, ACTIVATIONS, ("seed", "1"))))
    assert not same(alone, started(config_of(base, data, ACTIVATIONS, ("initial.samples", "2"))))


@pytest.mark.parametrize("method", ["prefix", "adapter_prefix"])
def test_another_prompt_is_continued(base: Path, data: Path, tmp_path: Path, method: str) -> None:
    model = build_model(config_of(base, data, ("tuning.prefix.length", "4")))
    given = small_prompt(tmp_path / "prompt", model.base).export_state()
    words = [("initial.values", "prompt"), ("initial.prompt", str(tmp_path / "prompt"))]
    if method == "adapter_prefix":
        with pytest.raises(ConfigError, match=r"initial.prompt = .*is missing"):
            started(config_of(base, data, *words, ("tuning.method", method)))
        return
    found = started(config_of(base, data, *words))
    shared = min(6, next(iter(given.values())).shape[1])
    assert all(torch.equal(found[n][:, :shared], t[:, :shared]) for n, t in given.items())


def test_a_prompt_of_another_base_is_refused_by_name(
    base: Path, data: Path, tmp_path: Path
) -> None:
    model = build_model(config_of(base, data))
    with torch.no_grad():
        model.base.encoder.layer_norm.bias.add_(1)
    small_prompt(tmp_path / "prompt", model.base, name="stranger")
    words = [("initial.values", "prompt"), ("initial.prompt", str(tmp_path / "prompt"))]
    with pytest.raises(RegistryError, match=r"prompt 'stranger' was made for base"):
        started(config_of(base, data, *words))
    with pytest.raises(RegistryError, match=r"is no prompt artifact"):
        started(config_of(base, data, words[0], ("initial.prompt", str(tmp_path))))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([("initial.values", "prompt")], "initial.values = prompt needs the folder"),
        ([("initial.prompt", "there")], "initial.prompt = 'there' needs values = prompt"),
        ([ACTIVATIONS, ("initial.samples", "0")], "samples must be at least 1"),
        ([ACTIVATIONS, ("tuning.method", "adapter")], "needs tuning.method = prefix or adapter_pr"),
        ([ACTIVATIONS, ("tuning.prefix.projection_dim", "8")], "projection_dim = null, not 8"),
        ([ACTIVATIONS, ("engine.zero_stage", "3")], "needs engine.zero_stage below 3"),
        (
            [ACTIVATIONS, ("tuning.prefix.per_task", "true"), ("data.tasks", "[vqa]")],
            "tuning.prefix.per_task = false",
        ),
    ],
)
def test_impossible_settings_are_refused(
    base: Path, data: Path, overrides: list[Override], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of(base, data, *overrides)
