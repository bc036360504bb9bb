"""Location bins equal the reference's, in both directions and to the last bit."""

import json
from pathlib import Path
from typing import Any

import pytest

from model.boxes import bins_to_box, box_to_bins

FIXTURES = Path(__file__).parent / "fixtures" / "text"
CASES: list[dict[str, Any]] = json.loads((FIXTURES / "boxes.json").read_text())["boxes"]
BIN_COUNT = 1000


@pytest.mark.parametrize("case", CASES, ids=[f"{n}-{c['image']}" for n, c in enumerate(CASES)])
def test_box_to_bins_and_back(case: dict[str, Any]) -> None:
    scale = (case["image_wh"], case["patch_image_size"], case["max_image_size"], BIN_COUNT)
    assert box_to_bins(case["box"], *scale) == case["bins"]
    assert bins_to_box(case["bins"], *scale) == case["decoded_box"]
