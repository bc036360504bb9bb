"""Images that cameras do not make: malformed, hostile or unusual, byte by byte."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def noise(size: tuple[int, int] = (96, 64), mode: str = "RGB") -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    return Image.fromarray(values[..., 0] if bands == 1 else values, mode)


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def after_start(content: bytes, *segments: bytes) -> bytes:
    """A JPEG with more segments directly behind its start."""
    return content[:2] + b"".join(segments) + content[2:]


def frame_changed(content: bytes, at: int, new: bytes) -> bytes:
    """A JPEG with bytes of its frame replaced; at counts from the frame's marker."""
    start = content.index(b"\xff\xc0") + at
    return content[:start] + new + content[start + len(new) :]


def chunk(kind: bytes, data: bytes) -> bytes:
    checked = kind + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(width: int, height: int, *more: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG that promises pixels, holds the given chunks and next to no pixel."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + b"".join(more) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def png_with(*chunks: bytes) -> bytes:
    """A whole PNG with more chunks before its pixels."""
    content = encoded(noise(), "PNG")
    return content[:33] + b"".join(chunks) + content[33:]


def tiff(entries: list[tuple[int, int, int, int]], tail: bytes = b"") -> bytes:
    """A TIFF of one directory; entries are (tag, type, count, value or offset)."""
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return head + rows + struct.pack("<I", 0) + tail


def grey_tiff(width: int, height: int, *more: tuple[int, int, int, int]) -> bytes:
    entries = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1)),
        *((262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height)),
        (279, 4, 1, 100),
    ]
    return tiff(sorted([*entries, *more]), bytes(200))


def webp_canvas(width: int, height: int) -> bytes:
    body = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    data = b"WEBP" + b"VP8X" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(data)) + data


def bmp(width: int, height: int, bits: int = 24) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 100, 0, 0, 54) + info + bytes(100)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def holed(content: bytes, start: int, length: int = 10) -> bytes:
    return content[:start] + b"\xa5" * length + content[start + length :]


def tag_bomb() -> bytes:
    """EXIF whose 4,000 entries all name the same 60 kB."""
    rows = b"".join(
        struct.pack("<HHII", 0x9000 + i, 7, 12_000, 8 + 2 + 4_000 * 12) for i in range(4_000)
    )
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 4_000) + rows + bytes(4) + bytes(12_000)


def mpf(content: bytes) -> bytes:
    """A JPEG as phones write it: with a second picture behind it that an MPF segment announces."""
    sink = BytesIO()
    Image.open(BytesIO(content)).save(sink, "MPO", save_all=True, append_images=[noise()])
    return sink.getvalue()


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG that passes over its pixels again and again to say nothing.

    Each further scan refines the lowest AC coefficients of the first component by runs of blocks
    without any: in the Huffman table of the file's own last scan every run is one code.
    """
    content = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    blocks = (side // 8) ** 2
    head, end = content[:-2], content[-2:]
    # One code of one bit for a run of 2^14 + 14 bits blocks.
    table = segment(0xC4, bytes([0x10, 1, *[0] * 15, 0xE0]))
    scan = segment(0xDA, bytes([1, 1, 0, 1, 63, 0]))
    bits = ""
    while blocks > 0:
        run = min(blocks, 2**15 - 1)
        if run < 2**14:
            break
        bits += "0" + format(run - 2**14, "014b")
        blocks -= run
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return head + table + (scan + coded) * scans + end
