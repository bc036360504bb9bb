"""A fixture folder in memory: every file read and checked before anything is computed.

Dimensions: B batch, S source tokens, T target tokens, C, H, W image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import torch
from torch import Tensor

from model.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_into, load_weights
from model.errors import CheckpointError
from model.ofa import OFA, OFAConfig
from model.verify.cases import Cases, ForwardCase, Variant
from model.verify.reading import (
    read_beam,
    read_candidates,
    read_config,
    read_forward,
    read_gradient,
    read_ids,
    read_loss,
    read_variant,
)
from model.verify.record import Record

CASES_FILE = "cases.safetensors"
LOSSES_FILE = "losses.json"
BEAM_FILE = "beam.json"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Inputs:
    """One batch for the model."""

    source_ids_BS: Tensor
    images_BCHW: Tensor | None
    image_present_B: Tensor | None
    decoder_ids_BT: Tensor
    code_mask_B: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """Return the batch on a device."""

        def moved(part: Tensor | None) -> Tensor | None:
            return None if part is None else part.to(device)

        return type(self)(
            self.source_ids_BS.to(device),
            moved(self.images_BCHW),
            moved(self.image_present_B),
            self.decoder_ids_BT.to(device),
            moved(self.code_mask_B),
        )


@dataclass(frozen=True, kw_only=True)
class Fixtures:
    """What a reference computed, and what it computed it from."""

    folder: Path
    config: OFAConfig
    variants: Mapping[str, Variant]
    cases: Cases
    tensors: Mapping[str, Tensor]
    """Inputs and outputs by name, `<group>/<tensor>`."""
    weights: Mapping[str, Mapping[str, Tensor]]
    """Weights by file, under the reference's names."""

    def base(self) -> OFA:
        """Return the base, frozen, in float32 on the CPU.

        Raises:
            CheckpointError: the weights don't fit the configuration.
        """
        model = OFA(self.config)
        load_into(model, dict(self.weights[WEIGHTS_FILE]), self.folder / WEIGHTS_FILE)
        return model.eval().freeze()

    def tensor(self, name: str) -> Tensor:
        """Return a recorded tensor.

        Raises:
            CheckpointError: there is none of this name.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.folder / CASES_FILE} has no tensor {name}")
        return self.tensors[name]

    def ids(self, name: str) -> Tensor:
        """Return recorded ids `[batch, tokens]` as int64.

        Raises:
            CheckpointError: they are missing, of another shape or outside the vocabulary.
        """
        ids = self.tensor(name)
        size = self.config.vocab.size
        whole = not ids.is_floating_point() and ids.dim() == 2
        if not whole or (ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < size):
            raise CheckpointError(
                f"{self.folder / CASES_FILE}: {name} must be rows of ids from 0 to {size - 1}"
            )
        return ids.long()

    def positions(self, name: str, length: int) -> Tensor:
        """Return recorded positions in a sequence as int64.

        Raises:
            CheckpointError: they are missing, or lie outside the sequence.
        """
        places = self.tensor(name).long()
        if places.dim() != 1 or not all(0 <= place < length for place in places.tolist()):
            raise CheckpointError(
                f"{self.folder / CASES_FILE}: {name} must be positions below {length}"
            )
        return places

    def images(self) -> tuple[Tensor, Tensor]:
        """Return the common images `[B, 3, H, W]` and which samples have one `[B]`."""
        images = self.tensor("inputs/patch_images").float()
        present = self.tensor("inputs/patch_masks").bool()
        if images.dim() != 4 or images.shape[1] != 3 or present.shape != images.shape[:1]:
            raise CheckpointError(
                f"{self.folder / CASES_FILE}: inputs/patch_images must be [batch, 3, rows, columns]"
                " and inputs/patch_masks must have one value for each"
            )
        return images, present

    def batch(self, source: str, decoder: str) -> Inputs:
        """Return named source and decoder ids with the common images.

        Raises:
            CheckpointError: they don't belong to one batch.
        """
        return self._checked(source, Inputs(self.ids(source), *self.images(), self.ids(decoder)))

    def inputs_of(self, case: ForwardCase) -> Inputs:
        """Return the inputs of a forward case.

        A case with tokens of its own takes as many of the last images, all of them present.

        Raises:
            CheckpointError: they are missing or don't belong to one batch.
        """
        place = case.name if case.own_tokens else "inputs"
        source_BS = self.ids(f"{place}/src_tokens")
        images, present = self.images() if case.has_images else (None, None)
        if case.own_tokens and images is not None:
            images, present = images[-len(source_BS) :], None
        target = "codes" if case.codes != "none" else place
        codes_B = None
        if case.codes != "none":
            codes_B = torch.ones(len(source_BS), dtype=torch.bool)
            if case.codes == "alternate":
                codes_B[1::2] = False
        decoder_BT = self.ids(f"{target}/prev_output_tokens")
        return self._checked(case.name, Inputs(source_BS, images, present, decoder_BT, codes_B))

    def _checked(self, name: str, inputs: Inputs) -> Inputs:
        rows = {len(inputs.source_ids_BS), len(inputs.decoder_ids_BT)}
        if inputs.images_BCHW is not None:
            rows.add(len(inputs.images_BCHW))
        if len(rows) > 1:
            raise CheckpointError(
                f"{self.folder / CASES_FILE}: sources, images and targets of {name} are batches"
                f" of {', '.join(map(str, sorted(rows)))}"
            )
        return inputs


def read_fixtures(folder: Path) -> Fixtures:
    """Read a fixture folder. Nothing is unpickled.

    Raises:
        CheckpointError: the folder or a file of it is missing or damaged, or says something that
            this version doesn't know.
    """
    if not folder.is_dir():
        raise CheckpointError(f"no fixture folder at {folder}")
    described = Record.from_file(folder / CONFIG_FILE)
    config = read_config(described.child("config"))
    tensors = load_weights(folder / CASES_FILE)
    variants = _each(described.child("config").child("variants"), read_variant)
    names = {WEIGHTS_FILE, *(name for variant in variants.values() for name in variant.files)}
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{folder / CONFIG_FILE}: {name!r} is no file of the folder")
    cases = _read_cases(folder, described, config, frozenset(tensors))
    _check_variants(folder, cases, variants)
    return Fixtures(
        folder=folder,
        config=config,
        variants=variants,
        cases=cases,
        tensors=tensors,
        weights={
            name: {
                key: value.float() if value.is_floating_point() else value
                for key, value in load_weights(folder / name).items()
            }
            for name in sorted(names)
        },
    )


def _read_cases(
    folder: Path, described: Record, config: OFAConfig, tensor_names: frozenset[str]
) -> Cases:
    losses, beams = Record.from_file(folder / LOSSES_FILE), Record.from_file(folder / BEAM_FILE)
    vqa, vocab = losses.child("vqa"), config.vocab
    spoken = vqa.child("answers")
    answers = {name: read_ids(spoken, name, vocab) for name in spoken.values}
    return Cases(
        forward=_each(described.child("cases"), lambda n, r: read_forward(n, r, tensor_names)),
        losses=_each(losses.child("losses"), lambda n, r: read_loss(n, r, vocab)),
        gradients=_each(losses.child("gradients"), lambda n, r: read_gradient(n, r, vocab)),
        beams=_each(beams, lambda n, r: read_beam(n, r, answers, vocab)),
        candidates=_each(vqa.child("allcand"), lambda n, r: read_candidates(n, r, answers)),
        answers=answers,
    )


def _each(record: Record, read: Callable[[str, Record], _T]) -> dict[str, _T]:
    return {name: read(name, child) for name, child in record.children().items()}


def _check_variants(folder: Path, cases: Cases, variants: Mapping[str, Variant]) -> None:
    """Refuse cases of variants that the folder doesn't describe, and a folder without cases."""
    groups = (cases.forward, cases.losses, cases.gradients, cases.beams, cases.candidates)
    used = {case.name: case.variant for group in groups for case in group.values()}
    if not used:
        raise CheckpointError(f"{folder} holds no cases")
    for name, variant in used.items():
        if variant is not None and variant not in variants:
            raise CheckpointError(f"{folder}: case {name} is of an unknown variant {variant!r}")
