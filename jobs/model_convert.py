"""`prefixworks model convert`: a base folder of a checkpoint of another layout.

prefixworks model convert OFA-Sys/ofa-large data/bases/ofa_large
prefixworks model convert ofa_large.pt data/bases/ofa_large --vocab utils/BPE --dtype bf16
prefixworks model convert data/bases/ofa_large data/bases/ofa_large_bf16 --dtype bf16
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from jobs.byte_progress import byte_progress
from jobs.cli import run_stage
from jobs.model_inspect import count_parameters
from model.layouts.conversion import base_fingerprint, convert
from model.layouts.reading import Checkpoint, open_checkpoint
from model.layouts.vocabulary import demand_tokenizer
from model.ofa import nearest_preset
from model.tensor_files import stored_bytes
from pipeline.errors import ConfigError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def build_parser() -> argparse.ArgumentParser:
    """The command line of `prefixworks model convert`."""
    parser = argparse.ArgumentParser(
        prog="prefixworks model convert",
        description="Make a base folder of a checkpoint, whole or not at all.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="file of fairseq, folder of Hugging Face or of a base, or owner/name[@revision] on the"
        " hub",
    )
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="folder to make")
    parser.add_argument(
        "--vocab",
        metavar="DIR",
        type=Path,
        help="folder with dict.txt, encoder.json and vocab.bpe, or with vocab.json and merges.txt"
        " (default: beside the weights)",
    )
    parser.add_argument(
        "--dtype", choices=list(DTYPES), help="of the weights on disk (default: the checkpoint's)"
    )
    parser.add_argument(
        "--name", help="of the base (default: its own, its preset's, else that of the source)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and do nothing")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command; errors are raised for the `prefixworks` command to print."""
    arguments = build_parser().parse_args(argv)
    output: Path = arguments.output
    if output.exists():
        raise ConfigError(f"output: {output} exists; choose another folder or remove it")
    checkpoint = open_checkpoint(arguments.source, name=arguments.name)
    tokenizer = demand_tokenizer(arguments.vocab or checkpoint.folder, checkpoint.config.vocab)
    dtype = DTYPES.get(arguments.dtype)
    size = stored_bytes(checkpoint.tensors, dtype)
    print(_plan(checkpoint, size, arguments.dtype))
    if arguments.dry_run:
        print(f"would write  {output}")
        return 0
    with byte_progress("writing", size) as advance:
        convert(checkpoint, tokenizer, output, dtype=dtype, advance=advance)
    with byte_progress("fingerprint", stored_bytes(checkpoint.tensors)) as advance:
        fingerprint = base_fingerprint(checkpoint, dtype=dtype, advance=advance)
    print(f"wrote        {output}\nfingerprint  {fingerprint}\ntokenizer    {tokenizer.digest}")
    return 0


def _plan(checkpoint: Checkpoint, size: int, dtype: str | None) -> str:
    preset, differing = nearest_preset(checkpoint.config)
    kind = f"like {preset}" if not differing else f"nearest to {preset}"
    lines = [
        f"checkpoint   {checkpoint.path} ({checkpoint.layout.value})",
        f"base         {checkpoint.config.name}, {kind},"
        f" {count_parameters(checkpoint.config):,} parameters",
        f"weights      {size:,} bytes, {dtype or 'dtypes as they are'}",
    ]
    return "\n".join(lines + [f"note         {note}" for note in checkpoint.notes])


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
