"""Pictures to pixels, exactly as the published models saw them.

Shapes: C = 3 channels (RGB), H = W = size.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_pixels(image: Image.Image, size: int) -> Tensor:
    """Resizes a picture to a square and scales it to -1..1.

    The aspect ratio is not kept and Pillow's bicubic filter is used, as in the published code;
    transparency is dropped, not blended.

    Args:
        image: any mode that Pillow converts to RGB.
        size: side of the square in pixels.

    Returns:
        float32 [C, H, W].
    """
    square = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    pixels_HWC = torch.from_numpy(np.array(square, dtype=np.uint8))
    # float32 throughout and in this order: the reference rounds in the same places.
    scaled_CHW = pixels_HWC.permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    return scaled_CHW.sub(0.5).div(0.5)
