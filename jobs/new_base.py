"""`prefixworks new-base`: the start of a base that is to be pretrained from random weights.

prefixworks new-base --output=data/bases/micro --datasets='[data/prepared/upstream_train]'

It learns a tokenizer from the texts of prepared datasets and writes it beside an architecture.
Weights are left to `prefixworks train` with `base.random_init`: the run's seed decides them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import webdataset as wds

from data_prep.manifest import read_manifest
from data_prep.schema import Sample
from model.checkpoint import CONFIG_FILE, TOKENIZER_FILE
from model.ofa.config import OFAConfig, VocabLayout
from model.tokenizer import OFATokenizer, train_tokenizer
from pipeline.config import parse
from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of the new base; the defaults are those of a micro base that trains on two cores."""

    d_model: int = 192
    """Width of both stacks."""
    ffn_dim: int = 768
    """Inner width of the feed-forward layers."""
    encoder_layers: int = 3
    decoder_layers: int = 3
    attention_heads: int = 6
    resnet_blocks: tuple[int, int, int] = (1, 1, 1)
    """Bottleneck blocks in each stage of the image trunk."""
    resnet_width: int = 32
    """Channels of the trunk's stem."""
    image_size: int = 96
    """Side in pixels of the square that images are resized to."""
    max_image_size: int = 96
    """Length in pixels that the last location bin stands for."""
    image_bucket_size: int = 8
    """Side of the largest feature map; a feature covers 16 pixels."""
    token_bucket_size: int = 64
    """Half of it is the distance up to which relative text positions are exact."""
    max_positions: int = 128
    """Longest text in tokens."""
    code_grid_size: int = 1
    """Side of the grid of image codes."""

    def of_base(self, name: str, vocab: VocabLayout) -> OFAConfig:
        """Returns the configuration of a base of these sizes.

        Raises:
            ValueError: the sizes don't fit each other.
        """
        return OFAConfig.from_dict({**asdict(self), "name": name, "vocab": asdict(vocab)})


@dataclass(frozen=True, kw_only=True)
class NewBaseConfig:
    """What to write and where."""

    output: str
    """Folder of the new base; it must not exist."""
    datasets: list[str]
    """Folders of prepared datasets whose texts the tokenizer learns from."""
    name: str = "ofa-micro"
    """Name of the base, part of the lineage of every prompt trained on it."""
    text_count: int = 600
    """Most text tokens; at least 256, the bytes."""
    bin_count: int = 48
    """Location bins a coordinate."""
    code_count: int = 0
    """Discrete image codes."""
    architecture: Architecture = field(default_factory=Architecture)
    """Sizes of the model."""


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    config, dry_run = parse(
        NewBaseConfig,
        argv,
        prog="prefixworks new-base",
        description="Write the tokenizer and the architecture of a base to pretrain.",
    )
    output = Path(config.output)
    if output.exists():
        raise ConfigError(f"output: {output} exists; choose another folder or remove it")
    samples = sum(read_manifest(folder).samples for folder in config.datasets)
    if dry_run:
        print(f"would learn a tokenizer from {samples} samples and write {output}")
        return 0
    try:
        tokenizer = train_tokenizer(
            texts_of(config.datasets),
            text_count=config.text_count,
            bin_count=config.bin_count,
            code_count=config.code_count,
        )
        shape = config.architecture.of_base(config.name, tokenizer.layout)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    write_new_base(output, shape, tokenizer)
    print(f"{output}: {tokenizer.layout.text_count} text tokens from {samples} samples")
    return 0


def texts_of(datasets: Sequence[str]) -> Iterator[str]:
    """Yields every text that a model meets in prepared datasets, each with its leading blank.

    Raises:
        DataError: a dataset is missing, or one of its samples is not valid.
    """
    for folder in datasets:
        for shard in read_manifest(folder).shards:
            file = (Path(folder) / shard.name).as_posix()
            for record in wds.WebDataset(file, shardshuffle=False, empty_check=False):
                sample = Sample.from_json(record["json"])
                yield sample.instruction
                targets = [*sample.references, *(answer.text for answer in sample.answers)]
                targets += [box.label for box in sample.boxes if box.label is not None]
                targets += [sample.label] if sample.label is not None else []
                yield from (f" {target}" for target in targets)


def write_new_base(output: Path, config: OFAConfig, tokenizer: OFATokenizer) -> None:
    """Writes the folder, whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
        new = Path(temporary) / "base"
        new.mkdir()
        (new / CONFIG_FILE).write_text(json.dumps(config.to_dict(), indent=2) + "\n")
        tokenizer.save(new / TOKENIZER_FILE)
        for file in new.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        new.rename(output)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
