"""Pixels equal the reference's for every mode of picture."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from model.images import to_pixels

FIXTURES = Path(__file__).parent / "fixtures" / "text"
GOLDEN = load_file(FIXTURES / "images.safetensors")
# The captioning transform serves every task but grounding, whose own comes to the same.
NAMES = sorted(name for name in GOLDEN if name.startswith(("caption/", "refcoco/")))


@pytest.mark.parametrize("name", NAMES)
def test_pixels(name: str) -> None:
    _, picture, size = name.split("/")
    with Image.open(FIXTURES / "images" / f"{picture}.png") as image:
        pixels = to_pixels(image, int(size))
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, GOLDEN[name], rtol=0.0, atol=1e-6)


def test_fixtures_cover_every_mode() -> None:
    modes = set()
    for path in (FIXTURES / "images").glob("*.png"):
        with Image.open(path) as image:
            modes.add(image.mode)
    assert modes == {"RGB", "RGBA", "L"}
    assert len(NAMES) == 12
