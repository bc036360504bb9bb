"""Paints a scene with Pillow and encodes it as JPEG."""

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data_prep.world.scene import Background, Scene, Thing

JPEG_QUALITY = 90
# Shapes are drawn this many times larger and averaged down: Pillow's own polygons have hard edges.
_OVERSAMPLING = 4


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB image of its size."""
    image = Image.fromarray(_paint_ground(scene.background, scene.width, scene.height))
    for thing in scene.things:
        _paint_thing(image, thing)
    return image


def jpeg_bytes(scene: Scene) -> bytes:
    """The drawn scene as a JPEG file; the same scene gives the same bytes."""
    buffer = io.BytesIO()
    draw(scene).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _paint_ground(ground: Background, width: int, height: int) -> NDArray[np.uint8]:
    first = np.array(ground.tones[0], dtype=np.float32)
    second = np.array(ground.tones[1], dtype=np.float32)
    mix = _mixture(ground, width, height)
    return np.asarray(first + mix[:, :, None] * (second - first)).round().astype(np.uint8)


def _mixture(ground: Background, width: int, height: int) -> NDArray[np.float32]:
    """Share of the second tone at each pixel, [height, width] within 0 and 1."""
    if ground.style == "plain":
        return np.zeros((height, width), dtype=np.float32)
    if ground.style == "noise":
        rng = np.random.default_rng(ground.seed)
        coarse = rng.random((height // 6 + 1, width // 6 + 1), dtype=np.float32)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
        fine = rng.random((height, width), dtype=np.float32)
        return np.float32(0.7) * np.asarray(smooth, dtype=np.float32) + np.float32(0.3) * fine
    rows = np.arange(height, dtype=np.float32)[:, None] * np.float32(math.sin(ground.angle))
    columns = np.arange(width, dtype=np.float32)[None, :] * np.float32(math.cos(ground.angle))
    along = rows + columns
    along -= along.min()
    if ground.style == "gradient":
        return (along / max(1.0, float(along.max()))).astype(np.float32)
    period = 10 + ground.seed % 16
    # Half strength: stripes as bright as the shapes would themselves look like shapes.
    return (np.floor(along / period) % 2 * 0.5).astype(np.float32)


def _paint_thing(image: Image.Image, thing: Thing) -> None:
    left, top = math.floor(thing.box[0]) - 1, math.floor(thing.box[1]) - 1
    width = math.ceil(thing.box[2]) + 1 - left
    height = math.ceil(thing.box[3]) + 1 - top
    mask = Image.new("L", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    pen = ImageDraw.Draw(mask)
    if thing.outline is None:
        x0, y0, x1, y1 = thing.box
        pen.ellipse([*_magnified(x0, y0, left, top), *_magnified(x1, y1, left, top)], fill=255)
    else:
        pen.polygon([_magnified(x, y, left, top) for x, y in thing.outline], fill=255)
    image.paste(thing.rgb, (left, top), mask.reduce(_OVERSAMPLING))


def _magnified(x: float, y: float, left: int, top: int) -> tuple[float, float]:
    # Pillow's coordinates name pixel centres: half a pixel of the large drawing is taken off.
    return (x - left) * _OVERSAMPLING - 0.5, (y - top) * _OVERSAMPLING - 0.5
