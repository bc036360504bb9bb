"""The shape of an OFA: widths, depths, position tables and the layout of its vocabulary.

The published sizes are in `PRESETS`; a checkpoint folder carries its own `config.json`, so nothing
else in the project assumes a size.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class VocabLayout:
    """Where each kind of token sits: specials, text, mask, image codes, bins, in this order."""

    text_count: int
    """Number of text tokens; the first has id 4."""
    code_count: int
    """Number of discrete image codes."""
    bin_count: int
    """Number of location bins a coordinate is rounded to."""

    bos = 0
    pad = 1
    eos = 2
    unk = 3
    text_first = 4

    @property
    def mask(self) -> int:
        """Id of `<mask>`."""
        return self.text_first + self.text_count

    @property
    def code_first(self) -> int:
        """Id of `<code_0>`."""
        return self.mask + 1

    @property
    def bin_first(self) -> int:
        """Id of `<bin_0>`."""
        return self.code_first + self.code_count

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.bin_first + self.bin_count


OFA_VOCAB = VocabLayout(text_count=50_260, code_count=8_192, bin_count=1_000)
"""The vocabulary that every published OFA shares."""


@dataclass(frozen=True, kw_only=True)
class OFAConfig:
    """Architecture of one OFA. Lengths are in tokens, image sizes in pixels."""

    name: str
    """Short name, part of the lineage of every prompt trained on this base."""
    d_model: int
    """Width of both stacks."""
    ffn_dim: int
    """Inner width of the feed-forward layers."""
    encoder_layers: int
    decoder_layers: int
    attention_heads: int
    resnet_blocks: tuple[int, int, int]
    """Bottleneck blocks in each of the three ResNet stages."""
    resnet_width: int = 64
    """Channels of the stem; the trunk ends with sixteen times as many."""
    vocab: VocabLayout = field(default=OFA_VOCAB)
    image_size: int = 480
    """Side of the square that images are resized to, unless a recipe says otherwise."""
    max_image_size: int = 512
    """Length that the last location bin stands for."""
    image_bucket_size: int = 42
    """Side of the largest feature map that the image position tables cover."""
    token_bucket_size: int = 256
    """Half of it is the distance up to which relative positions are exact."""
    max_positions: int = 1024
    """Longest text; the tables hold two rows more."""
    code_grid_size: int = 16
    """Side of the grid of image codes that the decoder can write."""

    def __post_init__(self) -> None:
        if self.d_model % self.attention_heads:
            raise ValueError(
                f"d_model {self.d_model} is no multiple of {self.attention_heads} attention_heads"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.attention_heads

    @property
    def attention_scale(self) -> float:
        """Factor on queries: the published models halve the usual variance, (2 head_dim)^-1/2."""
        return float((2 * self.head_dim) ** -0.5)

    @property
    def image_channels(self) -> int:
        """Channels at the end of the ResNet trunk."""
        return self.resnet_width * 16

    @property
    def position_rows(self) -> int:
        """Rows of each table of absolute text positions."""
        return self.max_positions + 2

    @property
    def image_position_rows(self) -> int:
        """Rows of each table of absolute image positions; row 0 stands for "no image position"."""
        return self.image_bucket_size**2 + 1

    @property
    def token_buckets(self) -> int:
        """Rows of each table of relative text positions."""
        return 2 * self.token_bucket_size - 1

    @property
    def image_buckets(self) -> int:
        """Rows of each table of relative image positions; the last three belong to id 0."""
        return (2 * self.image_bucket_size - 1) ** 2 + 3

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; the inverse of `from_dict`."""
        values = dataclasses.asdict(self)
        values["resnet_blocks"] = list(self.resnet_blocks)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> OFAConfig:
        """Build a configuration from `to_dict`'s output.

        Raises:
            ValueError: a field is unknown, missing or impossible.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown fields of an OFA configuration: {', '.join(unknown)}")
        try:
            vocab = VocabLayout(**values["vocab"]) if "vocab" in values else OFA_VOCAB
            blocks = tuple(int(n) for n in values["resnet_blocks"])
            return cls(**{**values, "vocab": vocab, "resnet_blocks": blocks})
        except (KeyError, TypeError) as error:
            raise ValueError(f"incomplete OFA configuration: {error}") from error


def _preset(
    name: str, width: int, depth: tuple[int, int], heads: int, blocks: tuple[int, int, int]
) -> OFAConfig:
    return OFAConfig(
        name=name,
        d_model=width,
        ffn_dim=4 * width,
        encoder_layers=depth[0],
        decoder_layers=depth[1],
        attention_heads=heads,
        resnet_blocks=blocks,
    )


PRESETS: dict[str, OFAConfig] = {
    "ofa-tiny": _preset("ofa-tiny", 256, (4, 4), 4, (3, 4, 6)),
    "ofa-medium": _preset("ofa-medium", 512, (4, 4), 8, (3, 4, 23)),
    "ofa-base": _preset("ofa-base", 768, (6, 6), 12, (3, 4, 23)),
    "ofa-large": _preset("ofa-large", 1024, (12, 12), 16, (3, 8, 36)),
    "ofa-huge": _preset("ofa-huge", 1280, (24, 12), 16, (3, 8, 36)),
}
"""The published sizes (arXiv 2202.03052)."""

_NO_ARCHITECTURE = frozenset({"name", "image_size", "max_image_size"})


def nearest_preset(config: OFAConfig) -> tuple[str, tuple[str, ...]]:
    """Return the published size that differs in the fewest fields, and these fields.

    Names and image sizes don't count, since the weights don't depend on them; of several presets
    the one nearest in width is taken.
    """

    def differing(preset: OFAConfig) -> tuple[str, ...]:
        names = [field.name for field in dataclasses.fields(config)]
        return tuple(
            name
            for name in names
            if name not in _NO_ARCHITECTURE and getattr(config, name) != getattr(preset, name)
        )

    name = min(
        PRESETS,
        key=lambda name: (
            len(differing(PRESETS[name])),
            abs(math.log(config.d_model / PRESETS[name].d_model)),
        ),
    )
    return name, differing(PRESETS[name])
