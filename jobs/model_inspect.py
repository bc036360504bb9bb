"""`prefixworks model inspect`: what a checkpoint is, whatever its layout.

prefixworks model inspect ofa_large.pt
prefixworks model inspect OFA-Sys/ofa-large --json
prefixworks model inspect data/bases/ofa_large

The fingerprint is that of the base which the checkpoint makes when it is converted as it is, so two
checkpoints that make the same base show the same one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.byte_progress import byte_progress
from jobs.cli import run_stage
from model.layouts.conversion import base_fingerprint
from model.layouts.reading import Checkpoint, open_checkpoint
from model.layouts.shapes import empty_model
from model.layouts.vocabulary import find_tokenizer
from model.ofa import OFAConfig, nearest_preset
from model.tensor_files import stored_bytes


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What is known of a checkpoint."""

    layout: str
    path: str
    files: tuple[str, ...]
    """Files with the weights."""
    file_bytes: int
    architecture: Mapping[str, Any]
    """The `config.json` of the base."""
    preset: str
    """The nearest published size."""
    differing: tuple[str, ...]
    """Fields of the architecture in which it differs from that."""
    parameters: int
    """Numbers that training could change; tied ones count once."""
    dtypes: Mapping[str, int]
    """Tensors of each dtype."""
    tensor_bytes: int
    fingerprint: str
    tokenizer: str | None
    """Digest of the tokenizer beside the weights."""
    notes: tuple[str, ...]
    """What conversion changes so that the tensors fit."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `prefixworks model inspect`."""
    parser = argparse.ArgumentParser(
        prog="prefixworks model inspect", description="Show what a checkpoint is."
    )
    parser.add_argument(
        "checkpoint",
        metavar="PATH",
        help="file of fairseq, folder of Hugging Face or of a base, or owner/name on the hub",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command; errors are raised for the `prefixworks` command to print."""
    arguments = build_parser().parse_args(argv)
    found = inspect(open_checkpoint(arguments.checkpoint))
    print(json.dumps(asdict(found), indent=2) if arguments.json else as_text(found))
    return 0


def inspect(checkpoint: Checkpoint) -> Inspection:
    """Reads all of a checkpoint once.

    Raises:
        CheckpointError: the tokenizer beside the weights is damaged, or another vocabulary's.
    """
    preset, differing = nearest_preset(checkpoint.config)
    tokenizer = find_tokenizer(checkpoint.folder, checkpoint.config.vocab)
    total = stored_bytes(checkpoint.tensors)
    with byte_progress("fingerprint", total) as advance:
        fingerprint = base_fingerprint(checkpoint, dtype=None, advance=advance)
    return Inspection(
        layout=checkpoint.layout.value,
        path=str(checkpoint.path),
        files=tuple(str(file) for file in checkpoint.files),
        file_bytes=sum(file.stat().st_size for file in checkpoint.files),
        architecture=checkpoint.config.to_dict(),
        preset=preset,
        differing=differing,
        parameters=count_parameters(checkpoint.config),
        dtypes=dict(
            Counter(
                str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.tensors.values()
            )
        ),
        tensor_bytes=total,
        fingerprint=fingerprint,
        tokenizer=None if tokenizer is None else tokenizer.digest,
        notes=checkpoint.notes,
    )


def count_parameters(config: OFAConfig) -> int:
    """Parameters of an architecture, without making them."""
    return sum(parameter.numel() for parameter in empty_model(config).parameters())


def as_text(found: Inspection) -> str:
    """The inspection for people."""
    shape, vocab = found.architecture, found.architecture["vocab"]
    blocks = ", ".join(map(str, shape["resnet_blocks"]))
    same = "equal" if not found.differing else f"differs in {', '.join(found.differing)}"
    lines = {
        "checkpoint": f"{found.path} ({found.layout})",
        "name": shape["name"],
        "nearest preset": f"{found.preset}, {same}",
        "stacks": f"{shape['encoder_layers']} + {shape['decoder_layers']} layers of width"
        f" {shape['d_model']} (ffn {shape['ffn_dim']}, {shape['attention_heads']} heads)",
        "image trunk": f"{blocks} blocks of width {shape['resnet_width']}",
        "positions": f"{shape['max_positions']} of text, image features up to"
        f" {shape['image_bucket_size']} x {shape['image_bucket_size']}",
        "vocabulary": f"{vocab['text_count']} text tokens, {vocab['code_count']} image codes,"
        f" {vocab['bin_count']} location bins",
        "parameters": f"{found.parameters:,}",
        "tensors": ", ".join(f"{count} {dtype}" for dtype, count in found.dtypes.items())
        + f"; {found.tensor_bytes:,} bytes",
        "files": f"{len(found.files)}; {found.file_bytes:,} bytes",
        "fingerprint": found.fingerprint,
        "tokenizer": found.tokenizer or "none beside the weights",
    }
    text = [f"{name:<15} {value}" for name, value in lines.items()]
    return "\n".join(text + [f"{'note':<15} {note}" for note in found.notes])


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
