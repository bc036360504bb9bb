"""The engine without DeepSpeed: what continues it, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint import TOKENIZER_FILE
from model.tokenizer import OFATokenizer
from pipeline.config import RunConfig, load
from pipeline.errors import CheckpointError
from pipeline.training.data import Batch, Collator, ShardReader
from pipeline.training.subject import build_model
from pipeline.training.torch_engine import TorchEngine
from pipeline.training.world import World
from tests.support.small_world import prepared_world
from tests.support.training_run import ROOT, small_base, write_recipe

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_world(tmp_path_factory.mktemp("data"), scenes=3)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return write_recipe(
        folder / "run.yaml",
        small_base(folder / "base", data),
        data,
        engine={"backend": "torch", "zero_stage": 0, "processes": 1},
        training={"ema_decay": 0.5},
    )


@pytest.fixture(scope="module")
def batch(recipe: Path, data: Path) -> Batch:
    config = load(RunConfig, [recipe])
    tokenizer = OFATokenizer.from_file(Path(config.base.path) / TOKENIZER_FILE)
    collate = Collator(tokenizer, build_model(config).base.config, 48)
    with ShardReader(data) as reader:
        return collate([reader.read(position) for position in range(4)])


def engine_of(recipe: Path, *overrides: tuple[str, str]) -> TorchEngine:
    config = load(RunConfig, [recipe], overrides)
    engine = TorchEngine(build_model(config), config, ALONE)
    engine.train()
    return engine


def step(engine: TorchEngine, batch: Batch) -> None:
    torch.manual_seed(7)
    engine.backward(engine.forward(batch).logsumexp(-1).mean())
    assert engine.step(0.01) is not None


def state_of(engine: TorchEngine) -> dict[str, Tensor]:
    return engine.full_state()


def test_a_state_continues_to_the_same_bits(recipe: Path, batch: Batch) -> None:
    first = engine_of(recipe)
    step(first, batch)
    step(first, batch)
    second = engine_of(recipe)
    second.take_full_state(state_of(first))
    for engine in (first, second):
        step(engine, batch)
    ours, theirs = state_of(second), state_of(first)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    kinds = {key.split("/", 1)[0] for key in ours}
    assert kinds == {"parameter", "exp_avg", "exp_avg_sq", "step", "average", "engine"}
    assert ours["step/method.encoder.embedding.weight"] == 3.0


def test_the_state_of_a_run_that_has_not_begun_is_its_start(recipe: Path, batch: Batch) -> None:
    first, second = engine_of(recipe), engine_of(recipe, ("seed", "5"))
    second.take_full_state(state_of(first))
    for engine in (first, second):
        step(engine, batch)
    ours, theirs = state_of(second), state_of(first)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_state_of_another_prompt_is_refused_and_changes_nothing(recipe: Path) -> None:
    engine = engine_of(recipe)
    before = state_of(engine)
    with pytest.raises(CheckpointError, match=r"encoder\.embedding.weight has shape"):
        engine.take_full_state(state_of(engine_of(recipe, ("tuning.prefix.length", "5"))))
    after = state_of(engine)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_it_needs_no_deepspeed(recipe: Path) -> None:
    script = (
        "import sys; sys.modules['deepspeed'] = None\n"
        "from pathlib import Path\n"
        "from pipeline.config import RunConfig, load\n"
        "from pipeline.training.trainer import train\n"
        f"print(train(load(RunConfig, [Path({str(recipe)!r})])).final_step)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "6"
