"""Pixels of any mode as 8-bit RGB, by rules that are the same for every format.

- Transparent pixels are laid over white.
- 16-bit pixels are scaled to 8 bits. So are 32-bit and floating-point pixels, by the smallest of
  the usual full scales (1, 255, 65535, 2^32 - 1) that holds their largest value.
- CMYK is converted without its profile; so is everything else, since the published models were
  trained on pixels whose ICC profiles had been ignored.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.quarantine import Reason, Rejected

_FULL_SCALES = (1.0, 255.0, 65_535.0, 4_294_967_295.0)
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_PLAIN_MODES = ("1", "L", "P", "RGBX", "CMYK", "YCbCr", "HSV")


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """A decoded image as 8-bit RGB; the image itself if it is that already.

    Raises:
        Rejected: Its pixels have no meaning as colours: negative, not finite, or of a colour
            space that is not converted here.
    """
    if image.mode in _DEEP_MODES:
        return _scaled(image, name).convert("RGB")
    if image.has_transparency_data:
        return _over_white(image)
    if image.mode == "RGB":
        return image
    if image.mode not in _PLAIN_MODES:
        raise Rejected(Reason.UNSUPPORTED_IMAGE, f"{name}: colours of mode {image.mode}")
    return image.convert("RGB")


def _scaled(image: Image.Image, name: str) -> Image.Image:
    pixels = np.asarray(image)
    if image.mode.startswith("I;16"):
        scale = 65_535.0
    else:
        low, high = float(pixels.min()), float(pixels.max())
        # A comparison with NaN is false, so that NaN ends here, too.
        if not (low >= 0 and high <= _FULL_SCALES[-1]):
            raise Rejected(
                Reason.UNSUPPORTED_IMAGE, f"{name}: pixels from {low:g} to {high:g} are no colours"
            )
        scales = _FULL_SCALES if image.mode == "F" else _FULL_SCALES[1:]
        scale = next(scale for scale in scales if high <= scale)
    return Image.fromarray(_to_8_bit(pixels, scale))


def _to_8_bit(pixels: NDArray[np.generic], scale: float) -> NDArray[np.uint8]:
    scaled = pixels.astype(np.float32) * np.float32(255.0 / scale)
    rounded: NDArray[np.uint8] = np.rint(scaled).clip(0, 255).astype(np.uint8)
    return rounded


def _over_white(image: Image.Image) -> Image.Image:
    colours = image.convert("RGBA")
    white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, colours).convert("RGB")
