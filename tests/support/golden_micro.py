"""The reference's micro model with its prompts and cases, as `model.verify` reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.ofa.model import OFA
from model.ofa.prompts import Prompts
from model.verify import Check, Finding, Subjects, all_checks, read_fixtures

FOLDER = Path(__file__).parent.parent / "parity" / "fixtures" / "ofa_micro"
FIXTURES = read_fixtures(FOLDER)
LAYERS = FIXTURES.config.encoder_layers
BIN_RANGE = (269, 369)
CHECKS: dict[str, Check] = {check.name: check for check in all_checks(FIXTURES)}


def read_json(name: str) -> Any:
    """A file of the folder as it stands, past the reader of `model.verify`."""
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


@cache
def tensors() -> dict[str, Tensor]:
    """The recorded tensors as they stand in the file."""
    return load_file(FOLDER / "cases.safetensors")


@cache
def subjects(dtype: str = "fp32") -> Subjects:
    return Subjects(FIXTURES, dtype=dtype)


@cache
def findings(name: str, dtype: str = "fp32") -> list[Finding]:
    """What a check computed, beside what was recorded."""
    return CHECKS[name].findings(subjects(dtype))


def computable(prefix: str = "", among: Collection[str] | None = None) -> list[str]:
    """Names of the checks that can be made with the tuning methods that there are."""
    return [
        name
        for name, check in CHECKS.items()
        if name.startswith(prefix)
        and (among is None or check.case in among)
        and (check.variant is None or subjects().missing(check.variant) is None)
    ]


def largest_error(finding: Finding) -> float:
    """The largest absolute difference where it counts."""
    difference = (finding.found - finding.expected).abs()
    return float((difference if finding.counts is None else difference[finding.counts]).max())


def base() -> OFA:
    return subjects().base()


@cache
@torch.no_grad()
def prompts(variant: str) -> Prompts | None:
    """The prompts of a variant: base, prefix_both, prefix_enc, prefix_dec or proj_both."""
    return subjects().of(variant).prompts()


def image_inputs() -> tuple[Tensor, Tensor]:
    return FIXTURES.images()


def ids(name: str) -> Tensor:
    return FIXTURES.ids(name)


def changeable_copy(folder: Path) -> Path:
    """A copy of the folder for tests that damage it; its large files are links until replaced."""
    folder.mkdir()
    for file in FOLDER.iterdir():
        if file.suffix == ".json":
            shutil.copy(file, folder)
        else:
            (folder / file.name).symlink_to(file)
    return folder


def replace_bytes(file: Path, data: bytes) -> None:
    """Writes a file of such a copy, and never through a link."""
    file.unlink()
    file.write_bytes(data)
