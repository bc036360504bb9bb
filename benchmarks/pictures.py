"""JPEGs with the statistics of photographs: noise whose amplitude falls with its frequency.

Natural images have an amplitude spectrum of about 1/f (D. J. Field, 1987), which is what decides
how many bytes a JPEG needs and how long its coder works. Flat colours or white noise would make
either end of the scale.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 640, 480
QUALITY = 85
_MEAN, _CONTRAST = 118.0, 52.0
_COLOURFULNESS = 0.25


def write_pictures(folder: Path, count: int, processes: int) -> None:
    """Writes pictures 0..count-1 and one caption of each, in the layout of COCO."""
    images = folder / "images"
    names = [f"{number:012d}.jpg" for number in range(count)]
    images.mkdir(parents=True)
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(partial(_write_picture, images), range(count), chunksize=16))
    listed = [
        {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT}
        for number, name in enumerate(names)
    ]
    captions = [
        {"id": number, "image_id": number, "caption": f"Picture {number}."}
        for number in range(count)
    ]
    (folder / "captions.json").write_text(json.dumps({"images": listed, "annotations": captions}))


def _write_picture(folder: Path, number: int) -> None:
    sink = BytesIO()
    Image.fromarray(_picture(number)).save(sink, "JPEG", quality=QUALITY)
    (folder / f"{number:012d}.jpg").write_bytes(sink.getvalue())


def _picture(seed: int) -> NDArray[np.uint8]:
    """RGB pixels [height, width, 3]: one pattern of brightness, two weaker ones of colour."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = np.inf

    def pattern() -> NDArray[np.float64]:
        real, imaginary = rng.standard_normal((2, *frequency.shape))
        spectrum = (real + 1j * imaginary) / frequency
        plane: NDArray[np.float64] = np.fft.irfft2(spectrum, s=(HEIGHT, WIDTH))
        plane /= plane.std()
        return plane

    light, warm, green = pattern(), pattern(), pattern()
    mix = np.stack([light + _COLOURFULNESS * colour for colour in (warm, green, -warm)], axis=-1)
    pixels: NDArray[np.uint8] = np.clip(_MEAN + _CONTRAST * mix, 0, 255).astype(np.uint8)
    return pixels
