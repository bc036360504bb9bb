"""First values of prompts, another's or the base's own, and how fast each layer leaves them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from model.errors import CheckpointError
from model.ofa import OFA
from model.tuning import PrefixConfig, TunedModel, TuningConfig, build_tuned_model
from model.tuning.initial import Examples, activated, resized
from tests.support.golden_micro import LAYERS, base, ids, image_inputs

LENGTH = 12


def tuned(seed: int = 0, **prefix: Any) -> TunedModel:
    torch.manual_seed(seed)
    config = TuningConfig(prefix=PrefixConfig(**{"length": LENGTH, **prefix}))
    return build_tuned_model(copy.deepcopy(base()), config)


def examples() -> Examples:
    return Examples(ids("inputs/src_tokens"), *image_inputs(), ids("inputs/prev_output_tokens"))


def apart(one_ND: Tensor, other_MD: Tensor) -> Tensor:
    """Distances `[N, M]`, without the rounding of a matrix product."""
    return torch.cdist(one_ND, other_MD, compute_mode="donot_use_mm_for_euclid_dist")


@contextmanager
def projections(model: OFA) -> Iterator[dict[str, Tensor]]:
    """Keys and values that each layer's self-attention computes, `[B, N, D]`, by name."""
    seen: dict[str, Tensor] = {}
    hooks = []
    for stack in ("encoder", "decoder"):
        for layer in range(LAYERS):
            attention = getattr(model, stack).layers[layer].self_attn
            for part, module in (("key", attention.k_proj), ("value", attention.v_proj)):
                name = f"{stack}.{layer}.{part}"

                def keep(_: Any, __: Any, out: Tensor, name: str = name) -> None:
                    seen.setdefault(name, out)

                hooks.append(module.register_forward_hook(keep))
    yield seen
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def test_entries_are_keys_and_values_of_visible_positions_the_same_in_all_layers() -> None:
    model = tuned(init_std=0.0)
    given = examples()
    with projections(model.base) as seen:
        model.base(*given)
    values = activated(model.base, model.export_state(), given, seed=1)
    padding = model.base.encode(*given[:3]).padding_BN
    visible = {"encoder": ~padding, "decoder": given.decoder_ids_BT != model.base.config.vocab.pad}
    assert not visible["encoder"].all(), "the recorded batch has padding"
    for stack in ("encoder", "decoder"):
        chosen = None
        for layer in reversed(range(LAYERS)):
            for part in ("key", "value"):
                name = f"{stack}.{layer}.{part}"
                rows_LD = values[name].transpose(0, 1).flatten(1)
                distance = apart(rows_LD, seen[name].flatten(0, 1))
                assert distance.amin(dim=1).max() < 1e-4
                if chosen is None:  # the highest layer: equal tokens differ there by context
                    chosen = distance.argmin(dim=1)
                    assert visible[stack].flatten()[chosen].all()
                assert distance[torch.arange(LENGTH), chosen].max() < 1e-4


@torch.no_grad()
def test_half_of_the_encoders_entries_are_of_images() -> None:
    model, given = tuned(init_std=0.0), examples()
    patches = model.base.encode(*given[:3]).padding_BN.shape[1] - given.source_ids_BS.shape[1]
    with projections(model.base) as seen:
        model.base(*given)
    values = activated(model.base, model.export_state(), given, seed=1)
    keys_BND = seen["encoder.0.key"]
    rows_LD = values["encoder.0.key"].transpose(0, 1).flatten(1)
    of_images = apart(rows_LD, keys_BND[:, :patches].flatten(0, 1)).amin(dim=1) < 1e-4
    assert int(of_images.sum()) == LENGTH // 2


def test_first_values_follow_from_the_seed_and_leave_the_mode_of_the_base() -> None:
    model, given = tuned(), examples()
    own = model.export_state()
    model.train()
    first, again, other = (activated(model.base, own, given, seed=s) for s in (1, 1, 2))
    assert model.base.training
    assert first.keys() == own.keys()
    assert all(torch.equal(first[name], again[name]) for name in own)
    assert not any(torch.equal(first[name], other[name]) for name in own)
    model.load_exported(first)
    assert all(torch.equal(first[name], tensor) for name, tensor in model.export_state().items())


def test_equal_tokens_do_not_stay_equal() -> None:
    given = examples()
    # One token a target: every entry of the decoder is of it.
    given = given._replace(decoder_ids_BT=given.decoder_ids_BT[:, :1])
    model = tuned(length=30)
    keys = activated(model.base, model.export_state(), given, seed=0)["decoder.0.key"]
    assert apart(keys, keys).add(torch.eye(30)).min() > 0


@pytest.mark.parametrize("layers", [None, [1]])
def test_a_prompt_of_another_length_is_cut_or_filled_up(layers: list[int] | None) -> None:
    for length in (5, LENGTH, 20):
        other, model = tuned(seed=1, length=length, layers=layers), tuned(layers=layers)
        own, given = model.export_state(), other.export_state()
        model.load_exported(resized(own, given))
        taken = min(length, LENGTH)
        for name, tensor in model.export_state().items():
            assert torch.equal(tensor[:, :taken], given[name][:, :taken])
            assert torch.equal(tensor[:, taken:], own[name][:, taken:])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"stacks": "encoder"}, r"decoder.0.key is missing"),
        ({"layers": [0]}, r"encoder.1.key is missing"),
    ],
)
def test_a_prompt_of_other_layers_is_refused(other: dict[str, Any], said: str) -> None:
    model = tuned()
    with pytest.raises(CheckpointError, match=said):
        model.load_exported(resized(model.export_state(), tuned(**other).export_state()))


def test_a_prompt_of_other_heads_is_refused() -> None:
    model = tuned()
    own = model.export_state()
    given = {name: tensor.repeat(2, 1, 1) for name, tensor in own.items()}
    with pytest.raises(CheckpointError, match=r"encoder.0.key has shape"):
        model.load_exported(resized(own, given))


def test_lower_layers_learn_at_their_own_rate() -> None:
    # Steps of equal size everywhere, as AdamW makes its first.
    moved = {}
    for decay in (1.0, 0.5):
        model = tuned(layer_lr_decay=decay)
        before = model.export_state()
        assert all(abs(float(t.std()) - 0.02) < 0.004 for t in before.values())
        trained = [p for p in model.parameters() if p.requires_grad]
        model.train()
        logits = model(*examples())
        logits.square().mean().backward()
        torch.optim.AdamW(trained, lr=1e-3, eps=1e-30, weight_decay=0.0).step()
        after = model.export_state()
        moved[decay] = {n: (after[n] - before[n]).abs().median().item() for n in before}
    for name, distance in moved[0.5].items():
        below = LAYERS - 1 - int(name.split(".")[1])
        assert moved[1.0][name] == pytest.approx(1e-3, rel=1e-2)
        assert distance == pytest.approx(1e-3 * 0.5**below, rel=1e-2)


def test_a_rate_of_each_layer_is_no_part_of_the_values() -> None:
    plain, scaled = tuned(), tuned(layer_lr_decay=0.3)
    assert plain.trainable_state().keys() == scaled.trainable_state().keys()
    own = plain.export_state()
    for name, tensor in scaled.export_state().items():
        torch.testing.assert_close(tensor, own[name], rtol=1e-6, atol=0)
    scaled.load_exported(tuned(seed=5).export_state())
    for name, tensor in scaled.export_state().items():
        torch.testing.assert_close(tensor, tuned(seed=5).export_state()[name], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ({"layer_lr_decay": 0.0}, "layer_lr_decay: 0.0 is not above 0"),
        ({"layer_lr_decay": 0.9, "projection_dim": 8}, "needs projection_dim null"),
    ],
)
def test_impossible_rates_are_refused(prefix: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PrefixConfig(**prefix)
