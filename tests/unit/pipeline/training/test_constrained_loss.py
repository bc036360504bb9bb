"""Training on constrained answers: the loss of real batches of several tasks."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint import TOKENIZER_FILE, load_config
from model.losses import LossOutput, label_smoothed_loss
from model.ofa.config import OFAConfig
from model.tokenizer import OFATokenizer
from model.trie import Trie
from pipeline.errors import ConfigError
from pipeline.training.data import Batch, Collator, ShardReader
from pipeline.training.objective import Objective
from tests.support.small_world import prepared_world
from tests.support.training_run import small_base

SIZE = 32
TASKS = ("caption", "detection", "entailment", "grounding", "vqa")


@dataclass(frozen=True)
class Setting:
    """Data, and what makes batches of them with and without constraints."""

    data: Path
    tokenizer: OFATokenizer
    config: OFAConfig

    def batch(
        self,
        tasks: tuple[str, ...],
        constrained: tuple[str, ...],
        answers: tuple[str, ...] = (),
    ) -> Batch:
        """Two samples of each task, mixed."""
        collate = Collator(
            self.tokenizer, self.config, SIZE, answers=answers, constrained=constrained
        )
        with ShardReader(self.data) as reader:
            rows = [
                [row for row, task in enumerate(reader.tasks) if task == name][:2] for name in tasks
            ]
            return collate([reader.read(row) for pair in zip(*rows, strict=True) for row in pair])


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    data = prepared_world(tmp_path_factory.mktemp("data"), scenes=4)
    base = small_base(tmp_path_factory.mktemp("base") / "base", data)
    tokenizer = OFATokenizer.from_file(base / TOKENIZER_FILE)
    return Setting(data, tokenizer, load_config(str(base)))


def logits_of(batch: Batch, config: OFAConfig) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(
        *batch.target_BT.shape, config.vocab.size, generator=generator, requires_grad=True
    )


def rows_of(batch: Batch, task: str) -> Tensor:
    return torch.tensor([row for row, name in enumerate(batch.tasks) if name == task])


def by_the_goldens(batch: Batch, logits: Tensor, setting: Setting, task: str) -> LossOutput:
    """The loss of one task's rows by the functions that are compared with the goldens."""
    rows = rows_of(batch, task)
    vocab = setting.config.vocab
    constraint: dict[str, object] = {}
    if task == "grounding":
        constraint = {"allowed_range": (vocab.bin_first, vocab.size)}
    if task == "entailment":
        trie = Trie(setting.tokenizer.encode(f" {word}") for word in ("yes", "no", "maybe"))
        constraint = {"constraint_mask_BTV": trie.mask(batch.target_BT[rows], vocab.size)}
    return label_smoothed_loss(
        logits[rows],
        batch.target_BT[rows],
        epsilon=0.1,
        confidence_B=batch.confidence_B[rows],
        **constraint,  # type: ignore[arg-type]
    )


def test_each_row_of_a_mixed_batch_has_its_own_constraint(setting: Setting) -> None:
    batch = setting.batch(TASKS, ("grounding", "entailment"))
    logits = logits_of(batch, setting.config)
    found = Objective(label_smoothing=0.1).loss(logits, batch)
    parts = [by_the_goldens(batch, logits, setting, task) for task in TASKS]
    assert found.loss_sum.item() == pytest.approx(sum(p.loss_sum.item() for p in parts), rel=1e-6)
    assert found.nll_sum.item() == pytest.approx(sum(p.nll_sum.item() for p in parts), rel=1e-6)
    assert found.sample_size == batch.tokens == sum(p.sample_size for p in parts)


def test_rows_of_other_tasks_are_not_affected(setting: Setting) -> None:
    free, held = setting.batch(TASKS, ()), setting.batch(TASKS, ("grounding", "entailment"))
    gradients = []
    for batch in (free, held):
        logits = logits_of(batch, setting.config)
        Objective(label_smoothing=0.1).loss(logits, batch).loss_sum.backward()
        assert logits.grad is not None
        gradients.append(logits.grad)
    for task in TASKS:
        rows = rows_of(held, task)
        same = torch.allclose(gradients[0][rows], gradients[1][rows], atol=1e-7)
        assert same == (task not in ("grounding", "entailment"))


def test_a_batch_of_one_range_computes_over_that_range_alone(setting: Setting) -> None:
    batch = setting.batch(("grounding",), ("grounding",))
    vocab = setting.config.vocab
    assert batch.allowed == (vocab.bin_first, vocab.size)
    logits = logits_of(batch, setting.config)
    found = Objective(label_smoothing=0.1).loss(logits, batch)
    expected = by_the_goldens(batch, logits, setting, "grounding")
    assert found.loss_sum.item() == pytest.approx(expected.loss_sum.item(), rel=1e-6)


@pytest.mark.parametrize("alpha", [None, 1.5])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.6])
def test_dropped_tokens_and_both_passes_are_counted_as_without_constraints(
    setting: Setting, ratio: float, alpha: float | None
) -> None:
    objective = Objective(label_smoothing=0.1, drop_worst_ratio=ratio, r_drop_alpha=alpha)
    for tasks in (TASKS, ("grounding",), ("caption", "entailment")):
        free, held = setting.batch(tasks, ()), setting.batch(tasks, ("grounding", "entailment"))
        prepared = objective.prepared(held)
        found = objective.loss(logits_of(prepared, setting.config), prepared)
        assert found.sample_size == objective.tokens(held) == objective.tokens(free)
        assert bool(torch.isfinite(found.loss_sum))


def test_open_answers_cannot_be_constrained(setting: Setting) -> None:
    with pytest.raises(ConfigError, match="names 'caption', whose answers may hold any token"):
        setting.batch(("caption",), ("caption",))


def test_closed_answers_constrain_the_questions_that_have_one_of_them(setting: Setting) -> None:
    with ShardReader(setting.data) as reader:
        first = reader.record(reader.tasks.index("vqa"))
    known = first.answers[-1].text
    batch = setting.batch(("vqa",), ("vqa",), answers=(known, "never said"))
    ids = setting.tokenizer.encode(f" {known}")
    assert batch.target_BT[0, : len(ids)].tolist() == ids
    assert batch.confidence_B[0] == pytest.approx(first.answers[-1].confidence)
    assert isinstance(batch.allowed, Tensor)
    begins = [
        setting.tokenizer.encode(f" {text}")[0] for text in dict.fromkeys((known, "never said"))
    ]
    at_first = batch.allowed[(batch.allowed[:, 0] == 0) & (batch.allowed[:, 1] == 0)]
    assert set(at_first[:, 2].tolist()) == set(begins)
    foreign = setting.batch(("vqa",), ("vqa",), answers=("never said",))
    assert foreign.allowed is None
    assert foreign.target_BT.equal(setting.batch(("vqa",), ()).target_BT)
    logits = logits_of(batch, setting.config)
    assert bool(torch.isfinite(Objective(label_smoothing=0.1).loss(logits, batch).loss_sum))


def test_constraints_arrive_in_loader_processes(setting: Setting) -> None:
    answers = ("yes", "no", "a rather long answer of many words " * 5)
    collate = Collator(
        setting.tokenizer,
        setting.config,
        SIZE,
        answers=answers,
        constrained=("vqa", "grounding", "entailment"),
    )
    sent = pickle.loads(pickle.dumps(collate))
    with ShardReader(setting.data) as reader:
        records = [reader.read(row) for row in range(len(reader))]
    here, there = collate(records), sent(records)
    assert isinstance(here.allowed, Tensor)
    assert here.allowed.equal(there.allowed)
