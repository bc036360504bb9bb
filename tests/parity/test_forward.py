"""The model against the reference: every stored activation and prompt gradient.

Dimensions: B batch, S source tokens, T target tokens, D width.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.checkpoint import load_into
from model.losses import label_smoothed_loss
from model.ofa import OFA, PRESETS, LayerPrompt, OFAConfig, Prompts, VocabLayout
from model.ofa.positions import image_buckets, token_buckets
from model.tuning import AdapterConfig, PrefixConfig, TuningConfig, build_tuned_model
from tests.support import golden_micro

FIXTURES = Path(__file__).parent / "fixtures" / "ofa_micro"
ATOL = 2e-5
GRADIENT_RTOL = 1e-5
BF16_LARGEST = 0.2
"""Largest error of a logit under bf16; the logits reach 11."""
BF16_RELATIVE = 0.015
"""Root mean square of the errors, as a share of the logits' standard deviation."""


def golden_config() -> OFAConfig:
    config = json.loads((FIXTURES / "config.json").read_text())["config"]
    vocab = {name: config["vocab"][name] for name in ("text_count", "code_count", "bin_count")}
    names = ["d_model", "ffn_dim", "encoder_layers", "decoder_layers", "attention_heads"]
    names += ["resnet_width", "image_bucket_size", "token_bucket_size"]
    config["d_model"] = config["embed_dim"]
    return OFAConfig(
        name="golden",
        resnet_blocks=tuple(config["resnet_layers"]),
        vocab=VocabLayout(**vocab),
        image_size=config["image_height"],
        **{name: config[name] for name in names},
    )


def golden_model() -> OFA:
    model = OFA(golden_config())
    file = FIXTURES / "model.safetensors"
    load_into(model, load_file(file), file)
    return model.eval()


@pytest.fixture(scope="module")
def cases() -> dict[str, Tensor]:
    tensors = load_file(FIXTURES / "cases.safetensors")
    return {
        name: tensor.long() if tensor.dtype == torch.int32 else tensor
        for name, tensor in tensors.items()
    }


@pytest.fixture(scope="module")
def model() -> OFA:
    return golden_model().freeze()


def prompts_of(variant: str, cases: dict[str, Tensor]) -> Prompts | None:
    if variant == "base":
        return None
    if variant.startswith("adapter"):
        adapters = golden_micro.prompts("adapter")
        assert adapters is not None
        with_prefix = prompts_of("prefix_both", cases) if variant == "adapter_prefix" else None
        return dataclasses.replace(
            with_prefix or Prompts(),
            encoder_adapters=adapters.encoder_adapters,
            decoder_adapters=adapters.decoder_adapters,
        )
    origin = "proj_both" if variant.startswith("proj") else "prefix_both"

    def stack(name: str) -> tuple[LayerPrompt, ...]:
        return tuple(
            LayerPrompt(layer[0], layer[1]) for layer in cases[f"{origin}/{name}_prompt_kv"]
        )

    return Prompts(
        encoder=None if variant == "prefix_dec" else stack("encoder"),
        decoder=None if variant == "prefix_enc" else stack("decoder"),
    )


def largest_error(found: Tensor, expected: Tensor, where: Tensor | None = None) -> float:
    difference = (found - expected).abs()
    return float((difference if where is None else difference[where]).max())


@pytest.mark.parametrize(
    "variant",
    ["base", "prefix_both", "prefix_enc", "prefix_dec", "proj_both", "adapter", "adapter_prefix"],
)
@torch.no_grad()
def test_activations_equal_the_reference(
    variant: str, model: OFA, cases: dict[str, Tensor]
) -> None:
    prompts = prompts_of(variant, cases)
    source = model.encode(
        cases["inputs/src_tokens"],
        cases["inputs/patch_images"],
        cases["inputs/patch_masks"].bool(),
        prompts,
        keep_layer_inputs=True,
    )
    targets = cases["inputs/prev_output_tokens"]
    logits_BTV, decoder_inputs = model.decode(targets, source, prompts)
    real_BN, real_BT = ~source.padding_BN, targets != model.config.vocab.pad
    assert torch.equal(source.padding_BN, cases[f"{variant}/encoder_padding_mask"].bool())
    assert largest_error(source.hidden_BND, cases[f"{variant}/encoder_out"], real_BN) <= ATOL
    assert largest_error(logits_BTV, cases[f"{variant}/logits"], real_BT) <= ATOL
    if f"{variant}/position_embeddings" in cases:
        positions_BND = source.positions_ND.expand_as(source.hidden_BND)
        assert (
            largest_error(positions_BND, cases[f"{variant}/position_embeddings"], real_BN) <= ATOL
        )
        for index, hidden in enumerate(source.layer_inputs):
            assert (
                largest_error(hidden, cases[f"{variant}/encoder_hidden.{index}"], real_BN) <= ATOL
            )
        for index, hidden in enumerate(decoder_inputs):
            assert (
                largest_error(hidden, cases[f"{variant}/decoder_hidden.{index}"], real_BT) <= ATOL
            )


@torch.no_grad()
def test_a_single_sample_without_padding(model: OFA, cases: dict[str, Tensor]) -> None:
    prompts = prompts_of("prefix_both", cases)
    source = model.encode(
        cases["single_nopad/src_tokens"], cases["inputs/patch_images"][2:3], None, prompts
    )
    logits_BTV, _ = model.decode(cases["single_nopad/prev_output_tokens"], source, prompts)
    assert largest_error(source.hidden_BND, cases["single_nopad/encoder_out"]) <= ATOL
    assert largest_error(logits_BTV, cases["single_nopad/logits"]) <= ATOL


@torch.no_grad()
def test_long_text_reaches_the_logarithmic_buckets(model: OFA, cases: dict[str, Tensor]) -> None:
    source = model.encode(cases["text_long/src_tokens"])
    logits_BTV, _ = model.decode(cases["text_long/prev_output_tokens"], source)
    hidden = source.hidden_BND[:, cases["text_long/encoder_positions"]]
    logits = logits_BTV[:, cases["text_long/logit_positions"]]
    assert largest_error(hidden, cases["text_long/encoder_out"]) <= ATOL
    assert largest_error(logits, cases["text_long/logits"]) <= ATOL


@pytest.mark.parametrize(("case", "mask"), [("codes_all", [1, 1, 1]), ("codes_mixed", [1, 0, 1])])
@torch.no_grad()
def test_image_codes(case: str, mask: list[int], model: OFA, cases: dict[str, Tensor]) -> None:
    logits_BTV = model(
        cases["inputs/src_tokens"],
        cases["inputs/patch_images"],
        cases["inputs/patch_masks"].bool(),
        cases["codes/prev_output_tokens"],
        code_mask_B=torch.tensor(mask, dtype=torch.bool),
    )
    assert largest_error(logits_BTV, cases[f"{case}/logits"]) <= ATOL


@pytest.mark.parametrize("variant", ["base", "prefix_both", "adapter", "adapter_prefix"])
@torch.no_grad()
def test_steps_with_a_cache_equal_one_pass(
    variant: str, model: OFA, cases: dict[str, Tensor]
) -> None:
    prompts = prompts_of(variant, cases)
    source = model.encode(
        cases["inputs/src_tokens"],
        cases["inputs/patch_images"],
        cases["inputs/patch_masks"].bool(),
        prompts,
    )
    targets = cases["inputs/prev_output_tokens"]
    cache = model.start_cache(source, prompts, rows_per_source=2)
    rows = targets.repeat_interleave(2, dim=0)
    swap = torch.tensor([1, 0, 3, 2, 5, 4])
    steps = []
    for step in range(targets.shape[1]):
        steps.append(model.decode_step(rows[:, step], cache))
        cache.reorder(swap)
    stepped = torch.stack(steps, dim=1)[::2]
    real_BT = targets != model.config.vocab.pad
    assert largest_error(stepped, cases[f"{variant}/logits"], real_BT) <= ATOL


@pytest.mark.parametrize("variant", ["base", "prefix_both"])
@torch.no_grad()
def test_bf16_stays_near_the_reference(variant: str, model: OFA, cases: dict[str, Tensor]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits_BTV = model(
            cases["inputs/src_tokens"],
            cases["inputs/patch_images"],
            cases["inputs/patch_masks"].bool(),
            cases["inputs/prev_output_tokens"],
            prompts_of(variant, cases),
        )
    real_BT = cases["inputs/prev_output_tokens"] != model.config.vocab.pad
    expected = cases[f"{variant}/logits"][real_BT]
    error = (logits_BTV[real_BT].float() - expected).abs()
    assert 1e-4 < float(error.max()) <= BF16_LARGEST
    assert float(error.square().mean().sqrt() / expected.std()) <= BF16_RELATIVE


STACKS = {"prefix_enc": "encoder", "prefix_dec": "decoder"}
WEIGHTS = {
    "proj_both": ["proj.safetensors"],
    "adapter_prefix": ["adapter.safetensors", "prefix.safetensors"],
}


def golden_name(ours: str) -> str:
    """The reference's name of one of our trained parameters."""
    name = ours.removeprefix("prefix.")
    stack, rest = name.removeprefix("adapter.").split(".", 1)
    if name.startswith("adapter."):
        layer, rest = rest.split(".", 1)
        return f"{stack}.layers.{layer}.adapter.{rest}"
    return f"{stack}.{stack}_prompt_encoder.{rest}"


@pytest.mark.parametrize(
    "variant", ["prefix_both", "prefix_enc", "prefix_dec", "proj_both", "adapter_prefix"]
)
def test_gradients_equal_the_reference(variant: str, cases: dict[str, Tensor]) -> None:
    prefix = PrefixConfig(
        length=5,
        stacks=STACKS.get(variant, "both"),  # type: ignore[arg-type]
        projection_dim=48 if variant == "proj_both" else None,
    )
    tuning = TuningConfig(
        method="adapter_prefix" if variant == "adapter_prefix" else "prefix",
        prefix=prefix,
        adapter=AdapterConfig(dim=8),
    )
    tuned = build_tuned_model(golden_model(), tuning)
    weights: dict[str, Tensor] = {}
    for file in WEIGHTS.get(variant, ["prefix.safetensors"]):
        weights |= load_file(FIXTURES / file)
    names = {name: golden_name(name) for name in tuned.trainable_state()}
    tuned.load_trainable_state({name: weights[golden].float() for name, golden in names.items()})
    tuned.train()
    logits_BTV = tuned(
        cases["inputs/src_tokens"],
        cases["inputs/patch_images"],
        cases["inputs/patch_masks"].bool(),
        cases["inputs/prev_output_tokens"],
    )
    loss = label_smoothed_loss(logits_BTV, cases["inputs/target"], epsilon=0.1)
    (loss.loss_sum / loss.sample_size).backward()
    golden_gradients = [name for name in cases if name.startswith(f"grad_{variant}/")]
    assert len(names) == len(golden_gradients)
    for name, parameter in tuned.method.named_parameters():
        expected = cases[f"grad_{variant}/{names[name]}"]
        assert parameter.grad is not None
        error = (parameter.grad - expected).norm() / expected.norm()
        assert error <= GRADIENT_RTOL, f"{name}: {error:.2e}"
    assert all(parameter.grad is None for parameter in tuned.base.parameters())


def test_buckets(cases: dict[str, Tensor]) -> None:
    distance = torch.arange(2047) - 1023
    origin = torch.zeros(1, dtype=torch.int64)
    found = token_buckets(distance, origin, bucket_size=256, max_positions=1024)[:, 0]
    assert torch.equal(found, cases["buckets/token_bucket_by_distance"])
    ids = cases["buckets/image_ids"]
    assert torch.equal(image_buckets(ids, ids, bucket_size=42), cases["buckets/image_bucket_sub"])


@pytest.mark.parametrize(
    ("name", "parameters", "trunk"),
    [
        ("ofa-tiny", 33_488_336, 8_543_296),
        ("ofa-medium", 92_892_000, 27_535_424),
        ("ofa-base", 182_238_536, 27_535_424),
        ("ofa-large", 472_977_152, 43_179_072),
        ("ofa-huge", 929_486_848, 43_179_072),
    ],
)
def test_sizes_of_the_presets(name: str, parameters: int, trunk: int) -> None:
    with torch.device("meta"):
        model = OFA(PRESETS[name])
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.encoder.embed_images.parameters()) == trunk
