"""Rows of a batch with a prompt each: what each gives alone, in passes, gradients and searches."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.errors import CheckpointError
from model.generation import GenerationOptions, generate
from model.losses import label_smoothed_loss
from model.ofa.frozen import Savings
from model.ofa.prompts import Prompts, stack_prompts
from model.tuning import PrefixConfig, TunedModel, TuningConfig, build_tuned_model
from tests.support.golden_micro import base, ids, image_inputs, prompts

NAMES = ("caption", "vqa", "grounding")
EQUAL = PrefixConfig(length=5, init_std=0.5, per_task=True)
UNEQUAL = replace(EQUAL, task_lengths={"vqa": 2, "grounding": 7})
LENGTHS = pytest.mark.parametrize("prefix", [EQUAL, UNEQUAL], ids=["equal", "unequal"])


def bank(prefix: PrefixConfig, savings: Savings | None = None) -> TunedModel:
    """Three prompts whose values differ."""
    model = build_tuned_model(copy.deepcopy(base()), TuningConfig(prefix=prefix), NAMES)
    if savings is not None:
        model.base.freeze(savings)
    for number, name in enumerate(NAMES):
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in model.alone(name).method.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape))
    return model.eval()


def inputs() -> tuple[Tensor, ...]:
    """The recorded rows, and behind them the same once more, so that there are six."""
    images, present = image_inputs()
    recorded = (ids("inputs/src_tokens"), images, present, ids("inputs/prev_output_tokens"))
    return tuple(twice(each) for each in recorded)


def twice(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows])


def rows_of_prompts(batch: int) -> Tensor:
    """Neighbours with the same prompt and with others, and not in the order of the prompts."""
    assert batch == 6
    return torch.tensor([2, 0, 0, 1, 2, 1])


@torch.no_grad()
@LENGTHS
@pytest.mark.parametrize("savings", [Savings(), Savings.none()], ids=["saving", "plain"])
def test_each_row_says_what_its_prompt_alone_would(prefix: PrefixConfig, savings: Savings) -> None:
    model, given = bank(prefix, savings), inputs()
    index = rows_of_prompts(len(given[0]))
    mixed = model(*given, index)
    for prompt, name in enumerate(NAMES):
        rows = index == prompt
        torch.testing.assert_close(mixed[rows], model.alone(name)(*given)[rows])
    other = model(*given, index.roll(1))
    assert (other - mixed).abs().max() > 1e-2


@torch.no_grad()
def test_rows_are_as_alone_in_half_precision() -> None:
    model, given = bank(UNEQUAL), inputs()
    index = rows_of_prompts(len(given[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(*given, index)
        for prompt, name in enumerate(NAMES):
            rows = index == prompt
            alone = model.alone(name)(*given)[rows]
            assert alone.dtype == torch.bfloat16
            # Eight bits of mantissa, through four layers.
            torch.testing.assert_close(mixed[rows], alone, atol=0.1, rtol=0.05)


@LENGTHS
@pytest.mark.parametrize("recompute", [False, True])
def test_a_prompt_learns_from_its_own_rows_alone(prefix: PrefixConfig, recompute: bool) -> None:
    given, target = inputs(), twice(ids("inputs/target"))
    index = rows_of_prompts(len(given[0]))
    model = bank(prefix).train()
    model.base.recompute_activations(recompute)
    label_smoothed_loss(model(*given, index), target, epsilon=0.1).loss_sum.backward()
    for prompt, name in enumerate(NAMES):
        rows = index == prompt
        alone = bank(prefix).alone(name).train()
        logits = alone(*(each[rows] for each in given))
        label_smoothed_loss(logits, target[rows], epsilon=0.1).loss_sum.backward()
        for ours, theirs in zip(
            model.alone(name).method.parameters(), alone.method.parameters(), strict=True
        ):
            assert theirs.grad is not None
            assert theirs.grad.abs().max() > 1e-4
            assert ours.grad is not None
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_traced_layers_give_the_same() -> None:
    # As engine.compile traces them, without a compiler for what is traced.
    given, index = inputs(), rows_of_prompts(6)
    found = []
    for traced in (False, True):
        model = bank(UNEQUAL).train()
        if traced:
            for layer in [*model.base.encoder.layers, *model.base.decoder.layers]:
                layer.compile(backend="aot_eager")
        logits = model(*given, index)
        logits.sum().backward()
        gradients = [p.grad for p in model.method.parameters() if p.grad is not None]
        found.append([logits.detach(), *gradients])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_prompt_without_rows_has_a_gradient_of_zero() -> None:
    given = inputs()
    model = bank(UNEQUAL).train()
    model(*given, torch.zeros(len(given[0]), dtype=torch.int64)).sum().backward()
    for name in NAMES:
        gradients = [p.grad for p in model.alone(name).method.parameters()]
        assert all(grad is not None for grad in gradients)
        assert any(bool(grad.any()) for grad in gradients if grad is not None) == (
            name == "caption"
        )


@torch.no_grad()
@LENGTHS
@pytest.mark.parametrize("beams", [1, 3])
def test_a_mixed_search_finds_what_each_prompt_alone_finds(
    prefix: PrefixConfig, beams: int
) -> None:
    model = bank(prefix)
    source, images, present, _ = inputs()
    index = rows_of_prompts(len(source))
    options = GenerationOptions(beam_size=beams, max_length=8)
    mixed = generate(
        model.base,
        source,
        images,
        present,
        prompts=everything(model).select(index),
        options=options,
    )
    answers = set()
    for prompt, name in enumerate(NAMES):
        alone = generate(
            model.base,
            source,
            images,
            present,
            prompts=model.alone(name).prompts(),
            options=options,
        )
        answers |= {tuple(found[0].tokens) for found in alone}
        for row in (index == prompt).nonzero().flatten().tolist():
            assert [h.tokens for h in mixed[row]] == [h.tokens for h in alone[row]]
            assert [h.score for h in mixed[row]] == pytest.approx(
                [h.score for h in alone[row]], abs=1e-4
            )
    assert len(answers) > 1


def everything(model: TunedModel) -> Prompts:
    found = model.prompts()
    assert found is not None
    return found


@torch.no_grad()
def test_a_prompt_without_a_stack_shares_a_batch_with_one_that_has_both() -> None:
    both, encoder = prompts("prefix_both"), prompts("prefix_enc")
    assert both is not None
    assert encoder is not None
    given = inputs()
    index = torch.arange(len(given[0])) % 2
    mixed = base()(*given, stack_prompts([both, encoder]).select(index))
    for place, alone in enumerate((both, encoder)):
        rows = index == place
        torch.testing.assert_close(mixed[rows], base()(*given, alone)[rows])


def test_prompts_that_cannot_share_a_batch_are_refused() -> None:
    config = TuningConfig(prefix=PrefixConfig(length=2))
    first, second, adapters = (
        everything(build_tuned_model(copy.deepcopy(base()), each))
        for each in (
            config,
            replace(config, prefix=PrefixConfig(length=2, layers=[1])),
            TuningConfig(method="adapter"),
        )
    )
    with pytest.raises(ValueError, match="different layers"):
        stack_prompts([first, second])
    with pytest.raises(ValueError, match="not different adapters"):
        stack_prompts([first, adapters])


def test_each_begins_with_what_it_would_have_alone() -> None:
    config = TuningConfig(prefix=replace(UNEQUAL, projection_dim=8))
    torch.manual_seed(4)
    model = build_tuned_model(copy.deepcopy(base()), config, NAMES)
    for name in NAMES:
        torch.manual_seed(4)
        alone = build_tuned_model(copy.deepcopy(base()), config.alone(name))
        ours, theirs = model.alone(name).trainable_state(), alone.trainable_state()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert set(model.trainable_state()) == {f"{name}.{key}" for name in NAMES for key in theirs}


@pytest.mark.parametrize("names", [NAMES, NAMES[:1]], ids=["three", "one"])
def test_dropout_falls_on_each_row_by_itself(names: tuple[str, ...]) -> None:
    prefix = replace(EQUAL, dropout=0.5)
    model = build_tuned_model(copy.deepcopy(base()), TuningConfig(prefix=prefix), names)
    index = torch.zeros(2, dtype=torch.int64)
    given = [twice(each[:1]) for each in inputs()]
    model.train()
    first, second = model(*given, index)
    assert (first - second).abs().max() > 1e-3
    model.eval()
    torch.testing.assert_close(*model(*given, index))


def test_which_row_has_which_prompt_must_be_said() -> None:
    with pytest.raises(ValueError, match="which of 3 prompts"):
        bank(EQUAL)(*inputs())


def test_several_prompts_have_no_artifact_together() -> None:
    model = bank(EQUAL)
    with pytest.raises(CheckpointError, match="exported alone"):
        model.export_state()
    with pytest.raises(CheckpointError, match="loaded alone"):
        model.load_exported({})
    exported = model.alone("vqa").export_state()
    other = build_tuned_model(copy.deepcopy(base()), TuningConfig(prefix=PrefixConfig(length=5)))
    other.load_exported(exported)
    with torch.no_grad():
        assert torch.equal(other.eval()(*inputs()), model.alone("vqa").eval()(*inputs()))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs tuning\.method=prefix, not adapter_prefix"):
        TuningConfig(method="adapter_prefix", prefix=EQUAL)
    with pytest.raises(ValueError, match=r"task_lengths: needs tuning\.prefix\.per_task=true"):
        PrefixConfig(task_lengths={"vqa": 3})
    with pytest.raises(ValueError, match=r"task_lengths\.vqa: 0 is not at least 1"):
        replace(EQUAL, task_lengths={"vqa": 0})
    with pytest.raises(ValueError, match="needs the names of the tasks"):
        build_tuned_model(copy.deepcopy(base()), TuningConfig(prefix=EQUAL))
    with pytest.raises(ValueError, match=r"task_lengths\.grounding: no prompt of that name"):
        build_tuned_model(copy.deepcopy(base()), TuningConfig(prefix=UNEQUAL), ["vqa"])
