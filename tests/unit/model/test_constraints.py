"""What may be said where: lists of allowed tokens mean the same as whole masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.constraints import Constraint, allowed_of_rows, allowed_tokens, allowed_twice
from model.losses import LossOutput, label_smoothed_loss
from model.trie import Trie

V = 20
EOS = 2
BINS = (14, 20)
ANSWERS = Trie([[5], [5, 6], [7, 8, 9]])
TARGETS = [[14, 19, 15, 16], [5, 6], [10, 11, 5], [7, 8, 9]]
ROWS: list[Constraint | None] = [BINS, ANSWERS, None, ANSWERS]


def labels(targets: list[list[int]]) -> Tensor:
    longest = max(map(len, targets)) + 1
    return torch.tensor([[*row, EOS, *[1] * (longest - len(row) - 1)] for row in targets])


def whole_mask(target_BT: Tensor) -> Tensor:
    """The same constraints as a mask, from the trie's own and a range's definition."""
    mask = torch.ones(*target_BT.shape, V, dtype=torch.bool)
    mask[0, :, 4 : BINS[0]] = False
    for row in (1, 3):
        mask[row] = ANSWERS.mask(target_BT[row : row + 1], V)[0]
    return mask


def logits_for(target_BT: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(*target_BT.shape, V, generator=generator, requires_grad=True)


def assert_equal(one: LossOutput, other: LossOutput) -> None:
    assert one.loss_sum.item() == pytest.approx(other.loss_sum.item(), rel=1e-6)
    assert one.nll_sum.item() == pytest.approx(other.nll_sum.item(), rel=1e-6)
    assert one.sample_size == other.sample_size


@pytest.mark.parametrize("drop", [0.0, 0.3])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [0, 1, 3], [1, 3]])
def test_a_list_means_the_same_as_a_mask(drop: float, twice: bool, rows: list[int]) -> None:
    """With row 2 some labels are free; without it none is."""
    allowed = allowed_tokens([TARGETS[row] for row in rows], [ROWS[row] for row in rows], EOS)
    target = labels(TARGETS)
    mask = whole_mask(target)[rows]
    target = target[rows]
    confidence = torch.tensor([1.0, 0.6, 1.0, 0.3])[rows]
    if twice:
        allowed = allowed_twice(allowed, len(rows))
        target, mask = torch.cat([target, target]), torch.cat([mask, mask])
        confidence = torch.cat([confidence, confidence])
    found, expected = (logits_for(target) for _ in range(2))
    assert isinstance(allowed, Tensor)
    one, other = (
        label_smoothed_loss(
            logits,
            target,
            epsilon=0.1,
            confidence_B=confidence,
            drop_worst_ratio=drop,
            rdrop_alpha=2.0 if twice else None,
            **constraint,
        )
        for logits, constraint in (
            (found, {"allowed_P3": allowed}),
            (expected, {"constraint_mask_BTV": mask}),
        )
    )
    assert_equal(one, other)
    one.loss_sum.backward()
    other.loss_sum.backward()
    torch.testing.assert_close(found.grad, expected.grad)


def test_rows_without_a_constraint_are_left_alone() -> None:
    target = labels(TARGETS)
    allowed = allowed_tokens(TARGETS, ROWS, EOS)
    assert isinstance(allowed, Tensor)
    free, held = (logits_for(target) for _ in range(2))
    label_smoothed_loss(free, target, epsilon=0.1).loss_sum.backward()
    label_smoothed_loss(held, target, epsilon=0.1, allowed_P3=allowed).loss_sum.backward()
    assert free.grad is not None
    assert held.grad is not None
    torch.testing.assert_close(held.grad[2], free.grad[2])
    assert not torch.allclose(held.grad[0], free.grad[0])
    # What no answer may hold learns nothing.
    assert held.grad[0, :, 4 : BINS[0]].abs().max() == 0
    assert held.grad[1, 0, [0, 1, 2, 3, 6]].abs().max() == 0


def test_a_range_that_all_rows_share_stays_a_range() -> None:
    assert allowed_tokens([[14, 15], [16]], [BINS, BINS], EOS) == BINS
    assert allowed_twice(BINS, 2) == BINS
    assert allowed_tokens([[14], [16]], [None, None], EOS) is None
    listed = allowed_tokens([[14, 15], [16]], [BINS, (15, 18)], EOS)
    assert isinstance(listed, Tensor)
    assert listed[listed[:, 0] == 1][:, 2].unique().tolist() == [0, 1, 2, 3, 15, 16, 17]


@pytest.mark.parametrize("rows", [[2], [3, 0], [0, 1, 2, 3], [1, 2]])
def test_some_rows_of_a_batch_keep_their_constraints(rows: list[int]) -> None:
    found = allowed_of_rows(allowed_tokens(TARGETS, ROWS, EOS), torch.tensor(rows))
    expected = allowed_tokens([TARGETS[row] for row in rows], [ROWS[row] for row in rows], EOS)
    assert allowed_of_rows(BINS, torch.tensor(rows)) == BINS
    if not isinstance(expected, Tensor):
        assert found is expected is None
        return
    assert isinstance(found, Tensor)
    assert sorted(found.tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("answer", [[8], [5, 6, 7], [7, 8], []])
def test_a_trie_is_lifted_from_an_answer_that_it_does_not_know(answer: list[int]) -> None:
    assert allowed_tokens([answer], [ANSWERS], EOS) is None
    listed = allowed_tokens([answer, [5]], [ANSWERS, ANSWERS], EOS)
    assert isinstance(listed, Tensor)
    assert listed.tolist() == [[1, 0, 5], [1, 0, 7], [1, 1, 2], [1, 1, 6]]


def test_a_list_goes_with_nothing_that_moves_labels() -> None:
    target = labels(TARGETS)
    listed = torch.tensor([[0, 0, 14]])
    for other in ({"ignore_eos": True}, {"ignore_prefix_size": 1}, {"allowed_range": BINS}):
        with pytest.raises(ValueError, match=r"allowed|exclude"):
            label_smoothed_loss(logits_for(target), target, epsilon=0.1, allowed_P3=listed, **other)  # type: ignore[arg-type]
