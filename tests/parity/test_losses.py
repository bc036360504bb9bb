"""Every loss of the reference, to 1e-5 relative."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model.losses import LossOutput, label_smoothed_loss, loss_of_log_probs, restrict
from tests.support.golden_micro import (
    BIN_RANGE,
    base,
    cases,
    ids,
    image_inputs,
    prompts,
    read_json,
)

LOSSES: dict[str, Any] = read_json("losses.json")["losses"]
ON_MODEL = [name for name, case in LOSSES.items() if "variant" in case]
ON_FUNCTION = [name for name, case in LOSSES.items() if "function" in case]


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    settings = {"epsilon": options.get("label_smoothing", options.get("epsilon", 0.0))}
    if options.get("use_rdrop"):
        settings["rdrop_alpha"] = options.get("reg_alpha", 1.0)
    if options.get("update_num", 1) > options.get("drop_worst_after", 0):
        settings["drop_worst_ratio"] = options.get("drop_worst_ratio", 0.0)
    return settings


def _fields(name: str) -> tuple[str, str, str]:
    """Names of source, decoder input and target."""
    if name.startswith("vqa_"):
        kind = "prev_output" if "prev_output" in name else name.split("_")[1]
        return f"vqa_{kind}/src_tokens", f"vqa_{kind}/prev_output_tokens", f"vqa_{kind}/target"
    if "range" in name:
        return "inputs/src_tokens", "loss/bin_prev_output_tokens", "loss/bin_target"
    return "inputs/src_tokens", "inputs/prev_output_tokens", "inputs/target"


def _constraints(name: str, target_name: str) -> dict[str, Any]:
    place = target_name.split("/")[0] if name.startswith("vqa_") else "loss"
    found: dict[str, Any] = {}
    if "conf" in name:
        found["confidence_B"] = cases()[f"{place}/conf"]
    if "trie" in name:
        found["constraint_mask_BTV"] = cases()[f"{place}/constraint_masks"].bool()
    if "range" in name:
        found["allowed_range"] = BIN_RANGE
    return found


def _loss(name: str) -> LossOutput:
    case = LOSSES[name]
    source, decoder, target = _fields(name)
    settings = _settings(case["options"]) | _constraints(name, target)
    settings["ignore_prefix_size"] = case["options"].get("ignore_prefix_size", 0)
    settings["ignore_eos"] = case["options"].get("ignore_eos", False)
    with torch.no_grad():
        logits = base()(ids(source), *image_inputs(), ids(decoder), prompts(case["variant"]))
    labels = ids(target)
    if "rdrop_alpha" in settings:
        logits, labels = torch.cat([logits, logits]), torch.cat([labels, labels])
        for key in ("confidence_B", "constraint_mask_BTV"):
            if key in settings:
                settings[key] = torch.cat([settings[key], settings[key]])
    return label_smoothed_loss(logits, labels, **settings)


def _close(found: Tensor, expected: float) -> None:
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ON_MODEL)
def test_loss_equals_the_reference(name: str) -> None:
    found = _loss(name)
    _close(found.loss_sum, LOSSES[name]["loss_sum"])
    _close(found.nll_sum, LOSSES[name]["nll_sum"])
    assert found.sample_size == LOSSES[name]["sample_size"]


@pytest.mark.parametrize("name", ON_FUNCTION)
def test_loss_of_given_log_probabilities_equals_the_reference(name: str) -> None:
    case = LOSSES[name]
    log_probs, target = cases()["rdrop_fn/lprobs"], ids("rdrop_fn/target")
    if "constraint_start" in case["options"]:
        log_probs, target = restrict(log_probs, ids("rdrop_fn/target_bins"), BIN_RANGE)
    found = loss_of_log_probs(log_probs, target, **_settings(case["options"]))
    _close(found.loss_sum, case["loss_sum"])
    _close(found.nll_sum, case["nll_sum"])
    assert found.sample_size == case["sample_size"]


def test_the_cases_are_all_here() -> None:
    assert len(ON_MODEL) + len(ON_FUNCTION) == len(LOSSES)
