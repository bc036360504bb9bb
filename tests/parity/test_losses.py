"""Every loss of the reference, to 1e-5 relative."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.golden_micro import FIXTURES, computable, findings, read_json, subjects

LOSSES: dict[str, Any] = read_json("losses.json")["losses"]
COMPUTED = [name.removeprefix("loss ") for name in computable("loss ")]
ON_MODEL = [name for name in COMPUTED if "function" not in LOSSES[name]]
ON_FUNCTION = [name for name in COMPUTED if "function" in LOSSES[name]]
RTOL = 1e-5


def _equals_the_reference(name: str) -> None:
    sums, size = findings(f"loss {name}")
    loss_sum, nll_sum = sums.found.tolist()
    assert loss_sum == pytest.approx(LOSSES[name]["loss_sum"], rel=RTOL)
    assert nll_sum == pytest.approx(LOSSES[name]["nll_sum"], rel=RTOL)
    assert size.found.item() == LOSSES[name]["sample_size"]


@pytest.mark.parametrize("name", ON_MODEL)
def test_loss_equals_the_reference(name: str) -> None:
    _equals_the_reference(name)


@pytest.mark.parametrize("name", ON_FUNCTION)
def test_loss_of_given_log_probabilities_equals_the_reference(name: str) -> None:
    _equals_the_reference(name)


def test_the_cases_are_all_here() -> None:
    without = {name for name in FIXTURES.variants if subjects().missing(name)}
    left = {name for name, case in LOSSES.items() if case.get("variant") in without}
    assert len(left) <= 1
    assert set(COMPUTED) == set(LOSSES) - left
    assert len(ON_FUNCTION) == 5
