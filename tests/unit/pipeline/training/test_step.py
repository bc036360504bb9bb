"""One optimizer step: its gradient, whatever the micro-batches, and what goes wrong in it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from model.checkpoint import TOKENIZER_FILE, load_base
from model.losses import label_smoothed_loss, symmetric_divergence
from model.tokenizer import OFATokenizer
from model.tuning import TunedModel, build_tuned_model
from model.tuning.config import PrefixConfig, TuningConfig
from pipeline.errors import TrainingError
from pipeline.training.backend import Engine
from pipeline.training.config import TrainingConfig
from pipeline.training.data import Batch, Collator, ShardReader
from pipeline.training.flops import StepFlops, count_flops
from pipeline.training.objective import Objective, objective_of
from pipeline.training.spans import Spans
from pipeline.training.step import NotFinite, train_step
from pipeline.training.window import StepSums
from pipeline.training.world import World
from tests.support.small_world import prepared_world
from tests.support.training_run import small_base

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


class PlainEngine:
    """The engine's verbs in plain PyTorch: gradients are kept, and no step is taken."""

    def __init__(self, model: TunedModel) -> None:
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        logits: Tensor = self.model(
            batch.source_ids_BS, batch.images_BCHW, batch.image_present_B, batch.decoder_ids_BT
        )
        return logits

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr: float, idle: Sequence[int]) -> float | None:
        grads = [p.grad for p in self.model.method.parameters() if p.grad is not None]
        return float(torch.stack([grad.norm() for grad in grads]).norm())


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_world(tmp_path_factory.mktemp("data"), scenes=3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, records: Path) -> Path:
    return small_base(tmp_path_factory.mktemp("base") / "base", records)


@pytest.fixture
def model(base: Path) -> TunedModel:
    torch.manual_seed(5)
    tuned = build_tuned_model(
        load_base(str(base)), TuningConfig(prefix=PrefixConfig(length=3, init_std=0.5))
    )
    return tuned.train()


@pytest.fixture
def batches(records: Path, base: Path) -> list[list[Batch]]:
    """The same six samples in one micro-batch, and in two of unequal size."""
    loaded = load_base(str(base))
    collate = Collator(OFATokenizer.from_file(base / TOKENIZER_FILE), loaded.config, 48)
    with ShardReader(records) as reader:
        samples = [reader.read(position) for position in range(6)]
    return [[collate(samples)], [collate(samples[:2]), collate(samples[2:])]]


def take_step(
    model: TunedModel, batches: Sequence[Batch], objective: Objective
) -> tuple[list[Tensor], StepSums]:
    """The gradients of a step and its sums."""
    model.zero_grad()
    sums = StepSums()
    train_step(
        cast(Engine, PlainEngine(model)),
        batches,
        lr=1.0,
        objective=objective,
        global_tokens=[float(sum(objective.tokens(batch) for batch in batches))],
        sums=sums,
        spans=Spans(),
        flops=StepFlops(),
        step=0,
        world=ALONE,
    )
    return [p.grad.clone() for p in model.method.parameters() if p.grad is not None], sums


def logits_of(model: TunedModel, batch: Batch) -> Tensor:
    return PlainEngine(model).forward(batch)


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_how_samples_are_dealt_to_micro_batches_weighs_nothing(
    model: TunedModel, batches: list[list[Batch]], alpha: float | None
) -> None:
    objective = Objective(label_smoothing=0.1, r_drop_alpha=alpha)
    (whole, sums), (parts, other) = (take_step(model, b, objective) for b in batches)
    for ours, theirs in zip(parts, whole, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    assert (sums.counted, sums.tokens, sums.samples) == (other.counted, other.tokens, 6)
    assert sums.counted == (1 if alpha is None else 2) * sums.tokens


def test_equal_passes_of_r_drop_are_one_pass(model: TunedModel, batches: list[list[Batch]]) -> None:
    once, sums = take_step(model, batches[1], Objective(label_smoothing=0.1))
    twice, both = take_step(model, batches[1], Objective(label_smoothing=0.1, r_drop_alpha=3.0))
    for ours, theirs in zip(twice, once, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    assert both.loss / both.counted == pytest.approx(sums.loss / sums.counted, rel=1e-5)


def test_r_drop_adds_the_divergence_of_two_dropout_passes(
    model: TunedModel, batches: list[list[Batch]]
) -> None:
    model.base.regularisation.dropout = 0.3
    batch = batches[0][0]
    torch.manual_seed(11)
    _, sums = take_step(model, [batch], Objective(label_smoothing=0.1, r_drop_alpha=2.0))
    torch.manual_seed(11)
    with torch.no_grad():
        logits = logits_of(model, batch.twice())
    target = torch.cat([batch.target_BT, batch.target_BT])
    confidence = torch.cat([batch.confidence_B, batch.confidence_B])
    plain = label_smoothed_loss(logits, target, epsilon=0.1, confidence_B=confidence).loss_sum
    weights = confidence.repeat_interleave(target.shape[1])[target.flatten() != 1]
    log_probs = logits.flatten(0, 1)[target.flatten() != 1].log_softmax(-1) * weights[:, None]
    divergence = symmetric_divergence(log_probs)
    assert float(divergence) > 1e-3
    assert sums.loss == pytest.approx(float(plain + 2.0 * divergence), rel=1e-5)


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_the_worst_tokens_of_each_micro_batch_teach_nothing(
    model: TunedModel, batches: list[list[Batch]], alpha: float | None
) -> None:
    objective = Objective(label_smoothing=0.0, drop_worst_ratio=0.4, r_drop_alpha=alpha)
    found, sums = take_step(model, batches[1], objective)
    passes = 1 if alpha is None else 2
    model.zero_grad()
    kept = []
    for batch in batches[1]:
        labelled = batch.target_BT.flatten() != 1
        losses = torch.nn.functional.cross_entropy(
            logits_of(model, batch).flatten(0, 1)[labelled],
            batch.target_BT.flatten()[labelled],
            reduction="none",
        )
        losses = losses * batch.confidence_B.repeat_interleave(batch.target_BT.shape[1])[labelled]
        kept.append(losses.sort().values[: int(batch.tokens * 0.6)])
    loss = torch.cat(kept)
    loss.mean().backward()
    expected = [p.grad for p in model.method.parameters() if p.grad is not None]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    assert sums.counted == passes * len(loss) == sum(objective.tokens(b) for b in batches[1])
    assert sums.tokens == sum(batch.tokens for batch in batches[1])


def test_dropping_begins_after_so_many_steps() -> None:
    config = TrainingConfig(drop_worst_ratio=0.2, drop_worst_after_steps=3)
    ratios = [objective_of(config, step).drop_worst_ratio for step in range(6)]
    assert ratios == [0.0, 0.0, 0.0, 0.0, 0.2, 0.2]


def test_a_batch_whose_tokens_are_all_dropped_teaches_nothing(
    model: TunedModel, batches: list[list[Batch]]
) -> None:
    found, sums = take_step(
        model, batches[0], Objective(label_smoothing=0.1, drop_worst_ratio=0.999)
    )
    assert sums.counted == 0
    assert all(grad.abs().max() == 0 for grad in found)


def test_a_loss_that_is_not_finite_names_its_samples(
    model: TunedModel, batches: list[list[Batch]], tmp_path: Path
) -> None:
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(NotFinite, match=r"the loss is nan at step 1 on rank 0; its samples: ") as e:
        take_step(model, batches[1], Objective(label_smoothing=0.1))
    record = json.loads(e.value.write(tmp_path).read_text())
    assert record["uids"] == [uid for batch in batches[1] for uid in batch.uids]
    with pytest.raises(TrainingError, match="cannot be written"):
        e.value.write(tmp_path / "nowhere")


def test_the_operations_that_ran_are_those_of_the_passes(
    model: TunedModel, batches: list[list[Batch]]
) -> None:
    objective = Objective(label_smoothing=0.1)
    (batch,) = batches[0]

    def passes() -> None:
        objective.loss(logits_of(model, batch), batch).loss_sum.backward()

    passes()  # positions are computed once, and then remembered
    _, sums = take_step(model, batches[0], objective)
    assert sums.flops == count_flops(passes) > 0
    assert sums.source_tokens == int((batch.source_ids_BS != 1).sum())
    for parameter in model.base.parameters():
        parameter.requires_grad = True
    _, more = take_step(model, batches[0], objective)
    # Gradients of the weights cost as much as those of their inputs.
    assert more.flops > 1.2 * sums.flops
