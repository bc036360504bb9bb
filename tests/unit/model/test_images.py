"""What the golden pictures do not show: range, order of channels, squeezing."""

import torch
from PIL import Image

from model.images import to_pixels


def test_range_and_channel_order() -> None:
    pixels = to_pixels(Image.new("RGB", (20, 10), (255, 0, 0)), 8)
    assert pixels.shape == (3, 8, 8)
    assert torch.equal(pixels[0], torch.ones(8, 8))
    assert torch.equal(pixels[1:], -torch.ones(2, 8, 8))


def test_a_wide_picture_is_squeezed_not_cropped() -> None:
    image = Image.new("RGB", (40, 10), (0, 0, 0))
    image.paste((255, 255, 255), (30, 0, 40, 10))
    pixels = to_pixels(image, 16)
    assert pixels[:, :, 15].min() > 0.9
    assert pixels[:, :, :8].max() < -0.9


def test_palette_and_grey_pictures_become_rgb() -> None:
    grey = Image.new("L", (9, 9), 128)
    expected = (128 / 255 - 0.5) / 0.5
    for image in (grey, grey.convert("P"), grey.convert("RGBA")):
        assert torch.allclose(to_pixels(image, 4), torch.full((3, 4, 4), expected), atol=1e-6)
