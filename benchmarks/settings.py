"""The flags that all benchmarks share, the models they build and the batches they run on."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.ofa import OFA, PRESETS, OFAConfig

_MICRO = dataclasses.replace(
    PRESETS["ofa-tiny"],
    name="ofa-micro",
    d_model=64,
    ffn_dim=128,
    encoder_layers=2,
    decoder_layers=2,
    attention_heads=2,
    resnet_blocks=(1, 1, 1),
    resnet_width=8,
    vocab=dataclasses.replace(PRESETS["ofa-tiny"].vocab, text_count=400, code_count=4),
    image_bucket_size=8,
)
"""Small enough to try a benchmark out; its times say nothing."""

ARCHITECTURES = {"micro": _MICRO} | {
    name.removeprefix("ofa-"): preset for name, preset in PRESETS.items()
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, and how often. Sizes are in pixels, lengths in tokens."""

    arch: str
    image_size: int
    batch: int
    prompt_length: int
    src_len: int
    tgt_len: int
    padding: int
    threads: int
    device: str
    dtype: str
    repeats: int
    arms: tuple[str, ...]
    json: Path | None

    @property
    def config(self) -> OFAConfig:
        """The architecture."""
        return ARCHITECTURES[self.arch]

    @property
    def torch_dtype(self) -> torch.dtype:
        """What is computed in: below float32 under autocast, over float32 weights."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    def autocast(self) -> torch.autocast:
        """The precision of the arms, as training sets it."""
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16")

    def __str__(self) -> str:
        return (
            f"{self.arch}, {self.image_size} px, batch {self.batch}, prompts of"
            f" {self.prompt_length}, source {self.src_len} (padding {self.padding}), target"
            f" {self.tgt_len}, {self.device}, {self.threads} threads, {self.dtype},"
            f" {self.repeats} rounds"
        )


@dataclass(frozen=True)
class Inputs:
    """A batch of random content; B samples, S source and T target tokens."""

    source_ids_BS: Tensor
    images_BCHW: Tensor
    image_present_B: Tensor
    decoder_ids_BT: Tensor
    target_BT: Tensor


def parse(description: str, argv: Sequence[str] | None) -> Settings:
    """Read the flags; wrong ones end the program as argparse does."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--arch", choices=ARCHITECTURES, default="tiny", help="size of the base")
    for flag, default, said in (
        ("image-size", 256, "side of the images, pixels"),
        ("batch", 4, "samples"),
        ("prompt-length", 64, "prompt entries of each layer"),
        ("src-len", 20, "tokens of the source"),
        ("tgt-len", 16, "tokens of the target"),
        ("padding", 0, "of the source's tokens, padding in every second sample"),
        ("threads", len(os.sched_getaffinity(0)), "CPU threads"),
        ("repeats", 5, "rounds in which every arm runs once"),
    ):
        parser.add_argument(f"--{flag}", type=int, default=default, help=said)
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda or cuda:N (default: cuda where there is one)",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--arms", nargs="+", default=(), help="only these arms")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    values = vars(parser.parse_args(argv))
    if min(values[name] for name in ("image_size", "batch", "prompt_length", "repeats")) < 1:
        parser.error("sizes, batch and repeats must be at least 1")
    if not 0 <= values["padding"] <= values["src_len"] - 3:
        parser.error("--padding must leave three tokens of the source")
    if values["device"].startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here: use --device cpu")
    return Settings(**{**values, "arms": tuple(values["arms"])})


def build_base(settings: Settings) -> OFA:
    """Build a base of random weights, the same for every arm."""
    torch.manual_seed(0)
    base = OFA(settings.config)
    base.initialise()
    return base.eval().to(settings.device)


def build_inputs(settings: Settings) -> Inputs:
    """Draw a batch, the same for every arm."""
    generator = torch.Generator().manual_seed(1)
    vocab, batch = settings.config.vocab, settings.batch

    def text(length: int) -> Tensor:
        last = vocab.text_first + vocab.text_count
        return torch.randint(vocab.text_first, last, (batch, length), generator=generator)

    source_ids_BS = text(settings.src_len)
    source_ids_BS[:, 0], source_ids_BS[:, -1] = vocab.bos, vocab.eos
    if settings.padding:
        source_ids_BS[1::2, -settings.padding :] = vocab.pad
        source_ids_BS[1::2, -settings.padding - 1] = vocab.eos
    target_BT = text(settings.tgt_len)
    target_BT[:, -1] = vocab.eos
    decoder_ids_BT = torch.cat([torch.full((batch, 1), vocab.bos), target_BT[:, :-1]], dim=1)
    size = settings.image_size
    images_BCHW = torch.rand(batch, 3, size, size, generator=generator) * 2 - 1
    present_B = torch.ones(batch, dtype=torch.bool)
    tensors = (source_ids_BS, images_BCHW, present_B, decoder_ids_BT, target_BT)
    return Inputs(*(tensor.to(settings.device) for tensor in tensors))
