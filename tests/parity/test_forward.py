"""The model against the reference: every stored activation and prompt gradient."""

from __future__ import annotations

import re

import pytest
import torch

from model.ofa import OFA, PRESETS
from model.verify import Finding
from tests.support.golden_micro import (
    FIXTURES,
    base,
    computable,
    findings,
    largest_error,
    subjects,
    tensors,
)

ATOL = 2e-5
GRADIENT_RTOL = 1e-5
LOSS_RTOL = 1e-5
PASSES = computable(among=FIXTURES.cases.forward)
STEPPED = [name for name in PASSES if not name.startswith("codes")]
GRADIENTS = computable("gradient ")
# What the computation starts from: there is nothing to compare it with.
INPUTS = re.compile(
    r"inputs/(?!resnet_features).*|loss/.*|codes/.*|rdrop_fn/.*|buckets/image_ids"
    r"|vqa_\w+/(conf|prefix_tokens|target)"
    r"|\w+/(src_tokens|prev_output_tokens|encoder_positions|logit_positions)"
)


def of_file(finding: Finding) -> bool:
    """Whether the expected values are those of the file, and not of our own making."""
    recorded = tensors()[finding.recorded]
    return torch.equal(
        finding.expected, recorded.to(finding.expected.dtype).view_as(finding.expected)
    )


@pytest.mark.parametrize("name", PASSES)
def test_activations_equal_the_reference(name: str) -> None:
    found = findings(name)
    assert {f"{name}/logits", f"{name}/encoder_out"} <= {f.recorded for f in found}
    for finding in found:
        assert of_file(finding)
        assert largest_error(finding) <= ATOL, finding.what


def test_the_passes_are_all_here() -> None:
    assert set(PASSES) >= {"base", "prefix_both", "prefix_enc", "prefix_dec", "proj_both"}
    assert set(PASSES) >= {"single_nopad", "text_long", "codes_all", "codes_mixed"}


@pytest.mark.parametrize("name", STEPPED)
def test_steps_with_a_cache_equal_one_pass(name: str) -> None:
    (finding,) = [f for f in findings(name) if f.what == "logits step by step"]
    assert of_file(finding)
    assert largest_error(finding) <= ATOL


def test_padding_does_not_count() -> None:
    targets = tensors()["inputs/prev_output_tokens"]
    (logits,) = [f for f in findings("base") if f.what == "logits"]
    assert logits.counts is not None
    assert torch.equal(logits.counts, targets != 1)
    (hidden,) = [f for f in findings("base") if f.what == "encoder output"]
    assert hidden.counts is not None
    assert torch.equal(hidden.counts, tensors()["base/encoder_padding_mask"] == 0)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_equal_the_reference(name: str) -> None:
    found = findings(name)
    of_parameters = [f for f in found if f.recorded.startswith(f"grad_{name.split()[1]}/")]
    assert of_parameters
    for finding in of_parameters:
        assert of_file(finding)
        error = (finding.found - finding.expected).norm() / finding.expected.norm()
        assert error <= GRADIENT_RTOL, f"{finding.what}: {error:.2e}"
    (loss,) = [f for f in found if f.what == "loss"]
    assert loss.found.item() == pytest.approx(loss.expected.item(), rel=LOSS_RTOL)
    assert all(parameter.grad is None for parameter in base().parameters())
    assert not subjects().base().training


def test_the_gradients_are_all_here() -> None:
    assert {name.split()[1] for name in GRADIENTS} >= {
        *("prefix_both", "prefix_enc", "prefix_dec", "proj_both"),
        *("prefix_both_range", "prefix_both_bntrain"),
    }


def test_batch_norm_moves_as_in_the_reference_where_it_is_allowed_to() -> None:
    moved = [f for f in findings("gradient prefix_both_bntrain") if "/after/" in f.recorded]
    assert len(moved) == 3
    before = dict(base().named_buffers())
    for finding in moved:
        assert largest_error(finding) <= ATOL
        assert not torch.allclose(before[finding.what], finding.found)


def test_the_image_trunk_equals_the_reference() -> None:
    (finding,) = findings("image trunk")
    assert of_file(finding)
    assert largest_error(finding) <= ATOL


def test_buckets() -> None:
    found = findings("buckets")
    assert {f.recorded for f in found} == {
        "buckets/token_bucket_by_distance",
        "buckets/image_bucket_sub",
    }
    for finding in found:
        assert torch.equal(finding.found, tensors()[finding.recorded].long())


def test_everything_that_is_recorded_is_compared() -> None:
    compared = {f.recorded for name in computable() for f in findings(name)}
    left = {name for name in tensors() if not INPUTS.fullmatch(name)} - compared
    cannot = {name for name, v in FIXTURES.variants.items() if subjects().missing(name)}
    assert {name for name in left if not any(variant in name for variant in cannot)} == set()


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
