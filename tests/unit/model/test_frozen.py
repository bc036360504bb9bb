"""A frozen base computes once what follows from its weights alone, and notices when they change."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from model.checkpoint import fingerprint
from model.ofa import OFA, PRESETS, OFAConfig, Prompts, Savings, VocabLayout
from model.ofa.bias import Bias, HiddenKeys, KeyMask, attention
from model.ofa.frozen import Memory
from model.tuning import PrefixConfig, TuningConfig, build_tuned_model

CONFIG = OFAConfig(
    name="small",
    d_model=32,
    ffn_dim=64,
    encoder_layers=3,
    decoder_layers=2,
    attention_heads=4,
    resnet_blocks=(1, 2, 1),
    resnet_width=4,
    vocab=VocabLayout(text_count=300, code_count=4, bin_count=10),
    image_bucket_size=6,
    max_positions=96,
)
PAD, EOS = 1, 2


def small_model() -> OFA:
    """A base whose every weight and statistic matters."""
    torch.manual_seed(5)
    model = OFA(CONFIG)
    model.initialise()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
            if isinstance(module, nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.2)
    return model.eval()


def inputs(length: int = 9, *, padding: int = 0, batch: int = 3) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    source = torch.randint(4, 300, (batch, length), generator=generator)
    source[:, 0], source[:, -1] = 0, EOS
    if padding:
        source[1, -padding:], source[1, -padding - 1] = PAD, EOS
    images = torch.randn(batch, 3, 48, 48, generator=generator)
    present = torch.ones(batch, dtype=torch.bool)
    decoder = torch.randint(4, 300, (batch, 5), generator=generator)
    return source, images, present, decoder


@torch.no_grad()
def logits_of(model: OFA, given: tuple[Tensor, ...], prompts: Prompts | None = None) -> Tensor:
    return model(*given, prompts)


@pytest.mark.parametrize("saving", [field.name for field in dataclasses.fields(Savings)])
def test_each_saving_leaves_results_as_they_are(saving: str) -> None:
    absent = inputs(padding=3)
    absent[2][2] = False
    spared = small_model().freeze()
    spending = small_model().freeze(Savings(**{saving: False}))
    bare = small_model()
    for given in (inputs(), inputs(padding=3), absent):
        expected = logits_of(bare, given)
        torch.testing.assert_close(logits_of(spared, given), expected, atol=2e-5, rtol=0)
        torch.testing.assert_close(logits_of(spending, given), expected, atol=2e-5, rtol=0)


def test_folding_leaves_weights_names_and_fingerprint_alone() -> None:
    model = small_model()
    before, names = fingerprint(model), list(model.state_dict())
    logits_of(model.freeze(), inputs())
    assert len(model._memory) == 3
    assert fingerprint(model) == before
    assert list(model.state_dict()) == names


def _load(model: OFA) -> OFA:
    other = small_model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
        other.encoder.embed_images.bn1.running_mean.add_(0.5)  # type: ignore[union-attr]
    model.load_state_dict(other.state_dict())
    return other


def _double(model: OFA) -> OFA:
    model.double()
    return small_model().double()


def _thaw(model: OFA) -> OFA:
    model.requires_grad_(True)
    other = small_model()
    for changed in (model, other):
        with torch.no_grad():
            for parameter in changed.parameters():
                parameter.mul_(1.1)
    return other


@pytest.mark.parametrize("change", [_load, _double, _thaw])
def test_what_was_remembered_ends_with_the_weights(change: Callable[[OFA], OFA]) -> None:
    model, given = small_model().freeze(), inputs()
    logits_of(model, given)
    expected = change(model)
    kind = next(expected.parameters()).dtype
    given = tuple(t.to(kind) if t.is_floating_point() else t for t in given)
    found = logits_of(model, given)
    torch.testing.assert_close(found, logits_of(expected, given), atol=2e-5, rtol=0)


def test_copies_remember_nothing() -> None:
    model = small_model().freeze()
    expected = logits_of(model, inputs())
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in copies:
        assert len(other._memory) == 0
        assert other.frozen
        assert torch.equal(logits_of(other, inputs()), expected)


def test_a_shape_does_not_depend_on_shapes_before_it() -> None:
    warm = small_model().freeze()
    for length in (70, 4, 33, 9):
        logits_of(warm, inputs(length))
    for length in (9, 40, 96):
        expected = logits_of(small_model().freeze(), inputs(length))
        assert torch.equal(logits_of(warm, inputs(length)), expected)


def test_too_long_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="97 source tokens exceed 96"):
        logits_of(small_model().freeze(), inputs(97))


def test_the_memory_forgets_what_was_used_least_recently() -> None:
    memory, made = Memory({"a": 2, "b": 1}), []

    def remember(key: int) -> int:
        return memory.recall("a", key, lambda: made.append(key) or key)

    memory.recall("b", 0, lambda: None)
    assert [remember(key) for key in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert made == [1, 2, 3, 2]
    assert len(memory) == 3


def test_training_can_use_what_prediction_remembered() -> None:
    model = build_tuned_model(small_model(), TuningConfig(prefix=PrefixConfig(length=3)))
    with torch.inference_mode():
        model(*inputs())
    model(*inputs()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.method.parameters())


def _recorded(model: nn.Module, *names: str) -> dict[str, bool]:
    """Whether the outputs of these modules carry a graph, in one forward pass."""
    found: dict[str, bool] = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: found.update({name: output.grad_fn is not None})
        )
    model(*inputs(padding=2))
    return found


def test_no_graph_below_the_first_prompted_layer() -> None:
    config = TuningConfig(prefix=PrefixConfig(length=3, layers=[1]))
    model = build_tuned_model(small_model(), config).train()
    layers = [f"base.encoder.layers.{index}" for index in range(3)]
    found = _recorded(model, "base.encoder.image_proj", *layers, "base.decoder.layers.0")
    assert found == {
        "base.encoder.image_proj": False,
        layers[0]: False,
        layers[1]: True,
        layers[2]: True,
        "base.decoder.layers.0": True,
    }


def test_prompts_of_the_decoder_leave_the_encoder_without_a_graph() -> None:
    config = TuningConfig(prefix=PrefixConfig(length=3, stacks="decoder"))
    model = build_tuned_model(small_model(), config).train()
    last = "base.encoder.layer_norm"
    assert _recorded(model, last, "base.decoder.layers.0") == {
        last: False,
        "base.decoder.layers.0": True,
    }


def _saved_for_backward(model: nn.Module, given: tuple[Tensor, ...]) -> dict[int, Tensor]:
    """What autograd keeps of a forward pass, weights left out, by storage."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(*given)
    return kept


@pytest.mark.parametrize("padding", [0, 3])
def test_nothing_of_a_bias_is_kept_for_each_sample(padding: int) -> None:
    length = 4
    model = build_tuned_model(small_model(), TuningConfig(prefix=PrefixConfig(length=length)))
    given = inputs(padding=padding)
    positions = 9 + 9
    one_bias = CONFIG.attention_heads * positions * (length + positions)
    largest = max(
        tensor.untyped_storage().nbytes() // 4
        for tensor in _saved_for_backward(model.train(), given).values()
        if tensor.dim() == 4 and tensor.shape[-1] > CONFIG.head_dim
    )
    rows = -(-9 // 32) * 32 + 9
    # One bias of the remembered shape, and not one for each of the three samples.
    assert one_bias <= largest <= CONFIG.attention_heads * rows * (rows + length + 8)
    whole = build_tuned_model(small_model(), TuningConfig(prefix=PrefixConfig(length=length)))
    whole.base.freeze(Savings(share_bias=False))
    kept = _saved_for_backward(whole.train(), given).values()
    assert any(tensor.shape[0] == 3 and tensor.shape[-1] == length + positions for tensor in kept)


def test_frozen_weights_need_no_inputs_for_their_gradients() -> None:
    given = inputs()
    prefix = build_tuned_model(small_model(), TuningConfig(prefix=PrefixConfig(length=4)))
    finetune = build_tuned_model(small_model(), TuningConfig(method="finetune"))

    def megabytes(model: nn.Module) -> float:
        kept = _saved_for_backward(model.train(), given).values()
        return sum(tensor.untyped_storage().nbytes() for tensor in kept) / 2**20

    assert megabytes(prefix) < 0.6 * megabytes(finetune)


def test_keys_of_a_mask_are_those_of_the_sample() -> None:
    torch.manual_seed(2)
    query, key, value = (torch.randn(4, 2, length, 8) for length in (3, 6, 6))
    values = torch.randn(1, 2, 3, 6)
    hidden = torch.zeros(4, 6, dtype=torch.bool)
    hidden[1, 4:] = True
    hidden[2, :2] = True
    mask = KeyMask.of(hidden)
    assert mask is not None
    assert mask.leading == (6, 4, None, 6)
    whole = values + torch.zeros(4, 1, 1, 6).masked_fill(hidden[:, None, None], float("-inf"))
    for tensor in (query, key, value):
        tensor.requires_grad_(True)
    found = attention(query, key, value, Bias(values, mask), 0.3)
    expected = attention(query, key, value, Bias(whole), 0.3)
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(found)
    ours = torch.autograd.grad(found, (query, key, value), slope)
    theirs = torch.autograd.grad(expected, (query, key, value), slope)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their)


def test_a_prompts_filler_is_hidden_in_front_of_the_padding() -> None:
    padding = torch.tensor([[False, False, False], [False, False, True]])
    visible = torch.tensor([[True, True], [True, False]])
    values = torch.zeros(1, 1, 3, 5)
    mask = HiddenKeys(padding, visible, shared=True).join(values, 2).mask
    assert mask is not None
    assert mask.hidden_BM.int().tolist() == [[0, 0, 0, 0, 0], [0, 1, 0, 0, 1]]
    assert mask.leading == (5, None)
    without_prompt = HiddenKeys(padding, visible, shared=True).join(values[..., :3], 0).mask
    assert without_prompt is not None
    assert without_prompt.leading == (3, 2)


def test_presets_have_room_for_their_largest_image() -> None:
    assert all(c.image_bucket_size * 16 >= c.max_image_size for c in PRESETS.values())
