"""Each tuning method changes what it says, keeps it, and leaves the rest of the base alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.checkpoint import fingerprint
from model.errors import CheckpointError
from model.losses import label_smoothed_loss
from model.ofa import OFA
from model.ofa.regularisation import Regularisation
from model.tuning import (
    AdapterConfig,
    BitfitConfig,
    PrefixConfig,
    TunedModel,
    TuningConfig,
    build_tuned_model,
    leaves_base_alone,
)
from tests.support.golden_micro import base, ids, image_inputs

TUNINGS: dict[str, TuningConfig] = {
    "prefix": TuningConfig(prefix=PrefixConfig(length=5)),
    "projected": TuningConfig(prefix=PrefixConfig(length=5, projection_dim=16)),
    "adapter": TuningConfig(method="adapter", adapter=AdapterConfig(dim=8)),
    "adapter_prefix": TuningConfig(
        method="adapter_prefix", prefix=PrefixConfig(length=3), adapter=AdapterConfig(dim=4)
    ),
    "bitfit": TuningConfig(method="bitfit"),
    "all_biases": TuningConfig(method="bitfit", bitfit=BitfitConfig(biases="all")),
    "finetune": TuningConfig(method="finetune"),
}
FROZEN = ["prefix", "projected", "adapter", "adapter_prefix"]
WITH_ARTIFACT = ["prefix", "adapter", "adapter_prefix", "bitfit", "all_biases"]


def tuned(name: str, seed: int = 0) -> TunedModel:
    torch.manual_seed(seed)
    return build_tuned_model(copy.deepcopy(base()), TUNINGS[name])


def logits_of(model: TunedModel) -> Tensor:
    logits: Tensor = model(ids("inputs/src_tokens"), *image_inputs(), decoder_ids())
    return logits


def decoder_ids() -> Tensor:
    return ids("inputs/prev_output_tokens")


def backward(model: TunedModel) -> None:
    loss = label_smoothed_loss(logits_of(model), ids("inputs/target"), epsilon=0.1)
    (loss.loss_sum / loss.sample_size).backward()


def learn(model: TunedModel) -> None:
    """One step with dropout and stochastic depth."""
    model.base.regularisation.dropout = 0.1
    model.base.regularisation.drop_path = 0.1
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    model.train()
    backward(model)
    optimizer.step()


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", FROZEN)
def test_a_frozen_base_keeps_its_bytes_and_its_names(name: str) -> None:
    model = tuned(name)
    names, before = list(base().state_dict()), fingerprint(base())
    trained = model.trainable_state()
    learn(model)
    assert list(model.base.state_dict()) == names
    assert fingerprint(model.base) == before
    assert changed(trained, model.trainable_state()) == set(trained)
    assert model.freezes_base
    assert model.trained_in_base() == frozenset()


@pytest.mark.parametrize("name", ["bitfit", "all_biases"])
def test_only_the_chosen_biases_of_the_base_change(name: str) -> None:
    model = tuned(name)
    before, trained = state_of(model.base), model.trained_in_base()
    rest = fingerprint(model.base, without=trained)
    learn(model)
    moved = changed(before, model.base.state_dict())
    # Image codes are not in the batch, and a key's bias changes no softmax.
    idle = {n for n in trained if "code_" in n or "decoder.image_pos_ln" in n or "k_proj" in n}
    assert trained - idle <= moved <= trained
    assert fingerprint(model.base, without=trained) == rest
    assert not any(m.training for m in model.base.modules() if isinstance(m, nn.BatchNorm2d))
    assert not model.freezes_base
    assert set(model.trainable_state()) == trained


def test_the_published_biases_are_those_of_layer_norms_and_feed_forward_blocks() -> None:
    blocks = ("self_attn_layer_norm", "final_layer_norm", "fc1", "fc2")
    expected = {f"{stack}.layer_norm.bias" for stack in ("encoder", "decoder")}
    for layer in range(2):
        expected |= {f"encoder.layers.{layer}.{block}.bias" for block in blocks}
        expected |= {f"decoder.layers.{layer}.{block}.bias" for block in blocks}
        expected.add(f"decoder.layers.{layer}.encoder_attn_layer_norm.bias")
    assert tuned("bitfit").trained_in_base() == expected
    every = {name for name, _ in base().named_parameters() if name.endswith(".bias")}
    assert tuned("all_biases").trained_in_base() == every
    assert any("embed_images" in name for name in every)


def test_fine_tuning_trains_the_whole_base_and_has_no_artifact() -> None:
    model = tuned("finetune")
    assert model.makes_base
    assert set(model.trainable_state()) == set(base().state_dict())
    counts = model.parameter_counts()
    assert counts.trainable == counts.base == sum(p.numel() for p in base().parameters())
    with pytest.raises(CheckpointError, match="saved as a base"):
        model.export_state()
    with pytest.raises(CheckpointError, match="loaded as a base"):
        model.load_exported({})


@pytest.mark.parametrize(
    ("name", "trainable"),
    [
        ("prefix", 2 * 2 * 2 * 5 * 64),
        ("adapter", 4 * (2 * 8 * 64 + 8 + 64)),
        ("adapter_prefix", 2 * 2 * 2 * 3 * 64 + 4 * (2 * 4 * 64 + 4 + 64)),
        ("bitfit", 2 * (2 * 64 + 256 + 64) + 2 * (3 * 64 + 256 + 64) + 2 * 64),
    ],
)
def test_trained_parameters_are_counted(name: str, trainable: int) -> None:
    assert tuned(name).parameter_counts().trainable == trainable


@pytest.mark.parametrize("name", list(TUNINGS))
def test_a_trained_state_continues_elsewhere(name: str) -> None:
    model, other = tuned(name), tuned(name, seed=1)
    learn(model)
    other.load_trainable_state(model.trainable_state())
    with torch.no_grad():
        assert torch.equal(logits_of(other.eval()), logits_of(model.eval()))


@pytest.mark.parametrize("name", WITH_ARTIFACT)
def test_what_is_exported_gives_the_same_on_another_copy_of_the_base(name: str) -> None:
    model, other = tuned(name), tuned(name, seed=1)
    learn(model)
    exported = model.export_state()
    other.load_exported(exported)
    with torch.no_grad():
        assert torch.equal(logits_of(other.eval()), logits_of(model.eval()))
    assert changed(exported, other.export_state()) == set()


@pytest.mark.parametrize("name", WITH_ARTIFACT)
def test_tensors_that_do_not_fit_are_named_and_nothing_is_taken(name: str) -> None:
    model = tuned(name)
    exported = model.export_state()
    first = next(iter(exported))
    zeros = {key: torch.zeros_like(tensor) for key, tensor in exported.items()}
    unfit: list[tuple[dict[str, Tensor], str]] = [
        ({key: tensor for key, tensor in zeros.items() if key != first}, f"{first} is missing"),
        (zeros | {"more": torch.zeros(1)}, "more is unexpected"),
        (zeros | {first: torch.zeros(1, 1)}, rf"{first} has shape \[1, 1\]"),
    ]
    for tensors, message in unfit:
        with pytest.raises(CheckpointError, match=message):
            model.load_exported(tensors)
    assert changed(exported, model.export_state()) == set()


def test_a_reparameterised_prompt_does_not_take_plain_values() -> None:
    plain = tuned("prefix").export_state()
    assert plain.keys() == tuned("projected").export_state().keys()
    with pytest.raises(CheckpointError, match="reparameterised"):
        tuned("projected").load_exported(plain)


def test_adapters_that_lead_nowhere_change_nothing() -> None:
    model = tuned("adapter")
    zeros = {n: t * 0 if "up_proj" in n else t for n, t in model.export_state().items()}
    with torch.no_grad():
        plain = base()(ids("inputs/src_tokens"), *image_inputs(), decoder_ids())
        model.eval()
        assert not torch.equal(logits_of(model), plain)
        model.load_exported(zeros)
        assert torch.equal(logits_of(model), plain)


def test_an_adapter_sees_what_dropout_left_and_is_skipped_with_its_branch() -> None:
    y = torch.ones(400, 3, 8)
    dropped = Regularisation(dropout=0.5).branch(y, True, lambda x: x + 1)
    assert set(dropped.unique().tolist()) == {1.0, 3.0}
    skipped = Regularisation(drop_path=0.5).branch(y, True, lambda x: x + 1)
    assert set(skipped.unique().tolist()) == {0.0, 4.0}


def test_methods_that_leave_the_base_alone_are_known_without_a_base() -> None:
    alone = {name for name, tuning in TUNINGS.items() if leaves_base_alone(tuning)}
    assert alone == set(FROZEN)


@pytest.mark.parametrize("name", ["prefix", "adapter", "adapter_prefix", "bitfit", "all_biases"])
def test_recomputed_activations_give_the_same_gradients(name: str) -> None:
    gradients: list[dict[str, Tensor]] = []
    for recompute in (False, True):
        model = tuned(name)
        model.base.regularisation.dropout = 0.2
        model.base.regularisation.drop_path = 0.2
        model.base.recompute_activations(recompute)
        calls = count_layers(model.base)
        model.train()
        torch.manual_seed(7)
        backward(model)
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        # Two layers in each stack, computed twice.
        assert len(calls) == (8 if recompute else 4)
        calls.clear()
        model.eval()
        logits_of(model)
        assert len(calls) == 4
    plain, recomputed = gradients
    assert plain
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(recomputed[key], plain[key]) for key in plain)


def count_layers(model: OFA) -> list[Any]:
    """A list that grows with each call of a layer."""
    calls: list[Any] = []
    for layer in [*model.encoder.layers, *model.decoder.layers]:
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls
