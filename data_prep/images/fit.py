"""The end that all formats share: size, turn, encode."""

from io import BytesIO

from cykooz_resizer import FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image

from data_prep.config import ImagePolicy
from data_prep.images.pixels import to_rgb
from data_prep.images.stored import TURNS, StoredImage, stored

_FILTERS = {"bicubic": FilterType.catmull_rom, "lanczos": FilterType.lanczos3}
"""Catmull-Rom is what Pillow calls bicubic; both filters widen with the reduction, hence do not
alias."""
_RESIZER = Resizer()
_DRAFT_MARGIN = 2
"""A JPEG decoder may shrink by 2, 4 or 8 as long as this many times the wanted size is left."""


def fitted_size(size: tuple[int, int], policy: ImagePolicy) -> tuple[int, int]:
    """Width and height that an image of a size is stored in, before it is turned."""
    scale = policy.max_side / max(size)
    if policy.store == "keep" or (scale > 1 and not policy.upscale):
        return size
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def draft(image: Image.Image, fitted: tuple[int, int]) -> None:
    """Lets the decoder of a much larger JPEG shrink while it decodes, which costs less."""
    if fitted != image.size:
        image.draft(None, (_DRAFT_MARGIN * fitted[0], _DRAFT_MARGIN * fitted[1]))


def encode_fitted(
    image: Image.Image,
    original: tuple[int, int],
    orientation: int,
    name: str,
    policy: ImagePolicy,
) -> StoredImage:
    """Makes the stored JPEG of an image that had to change; decodes it if that was not done yet.

    Args:
        image: The image as its file has it, perhaps shrunk by its decoder.
        original: Its width and height in the file.
        orientation: EXIF orientation, 1 to 8.
        name: Its name, for the record.
        policy: Size and quality.

    Raises:
        Rejected: Its pixels have no meaning as colours.
    """
    fitted = fitted_size(original, policy)
    pixels = to_rgb(image, name)
    if pixels.size != fitted:
        pixels = _resized(pixels, fitted, policy.resample)
    if orientation in TURNS:
        pixels = pixels.transpose(TURNS[orientation])
    sink = BytesIO()
    # Nothing of the file's metadata is handed on: what it says of turning was done.
    pixels.save(sink, "JPEG", quality=policy.quality, exif=b"", icc_profile=None)
    return stored(sink.getvalue(), "JPEG", pixels.size, original, name, orientation)


def _resized(image: Image.Image, size: tuple[int, int], resample: str) -> Image.Image:
    """An RGB image in another size.

    Not by Pillow: the same filter with vector instructions takes a seventh of the time, and all
    sets of instructions give the same pixels.
    """
    result = Image.new("RGB", size)
    options = ResizeOptions(resize_alg=ResizeAlg.convolution(_FILTERS[resample]), use_alpha=False)
    _RESIZER.resize_pil(image, result, options)
    return result
