"""The models that cases are computed with: the base and what each variant tunes on it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

import torch

from model.errors import CheckpointError
from model.layouts.fairseq import published_tuning_name
from model.ofa import OFA, Prompts
from model.tuning import TunedModel, TuningConfig, build_tuned_model
from model.verify.cases import Variant
from model.verify.finding import DTYPES
from model.verify.fixtures import Fixtures


@dataclass(frozen=True)
class Subject:
    """A base, with what is tuned on it where the variant tunes something."""

    base: OFA
    tuned: TunedModel | None = None

    def prompts(self) -> Prompts | None:
        """Return the prompts of one pass."""
        return None if self.tuned is None else self.tuned.prompts()

    def recorded_name(self, parameter: str) -> str:
        """Return the reference's name of a tuned parameter."""
        return published_tuning_name(parameter)


class Subjects:
    """The subjects of all variants of a folder, on one device and in one precision.

    Below float32 the model runs as training runs it: parameters stay float32 and autocast chooses
    the operations that compute in the shorter type.
    """

    def __init__(self, fixtures: Fixtures, device: str = "cpu", dtype: str = "fp32") -> None:
        """Loads the base.

        Args:
            fixtures: The folder.
            device: As torch names it.
            dtype: fp32, bf16 or fp16.

        Raises:
            CheckpointError: the weights don't fit the configuration.
        """
        self.fixtures = fixtures
        self.device = torch.device(device)
        self.dtype = dtype
        self._base = fixtures.base().to(self.device)
        self._subjects: dict[str, Subject] = {}

    def precision(self) -> AbstractContextManager[object]:
        """Return the context in which the models compute in the dtype."""
        torch_dtype = DTYPES[self.dtype]
        enabled = torch_dtype is not torch.float32
        return torch.autocast(self.device.type, dtype=torch_dtype, enabled=enabled)

    def base(self) -> OFA:
        """Return the frozen base in eval mode."""
        return self._base

    def missing(self, variant: str) -> str | None:
        """Return what keeps a variant from being computed, None where nothing does."""
        methods = self.fixtures.variants[variant].methods
        absent = [method for method in methods if method not in offered_methods()]
        if absent:
            return f"needs {', '.join(absent)}"
        if methods and _combined(methods) not in offered_methods():
            return f"needs {' and '.join(sorted(methods))} at once"
        return None

    def of(self, variant: str) -> Subject:
        """Return the subject of a variant in eval mode; all share one base.

        Raises:
            CheckpointError: its settings are not those of its methods here, or the recorded weights
                don't fit it.
        """
        if variant not in self._subjects:
            described = self.fixtures.variants[variant]
            tuned = self._tuned(described).to(self.device).eval() if described.methods else None
            self._subjects[variant] = Subject(self._base, tuned)
        return self._subjects[variant]

    def _tuned(self, variant: Variant) -> TunedModel:
        """Put the methods of a variant onto the base, with the recorded weights."""
        folder = self.fixtures.folder
        sections = get_type_hints(TuningConfig)
        settings: dict[str, Any] = {"method": _combined(variant.methods)}
        try:
            for method in variant.methods:
                settings[method] = sections[method](**variant.settings[method])
            tuned = build_tuned_model(self._base, TuningConfig(**settings))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{folder}: variant {variant.name}: {error}") from error
        weights = self.fixtures.weights
        recorded = {key: tensor for file in variant.files for key, tensor in weights[file].items()}
        state = {}
        for name in tuned.trainable_state():
            key = published_tuning_name(name)
            if key not in recorded:
                raise CheckpointError(f"{folder}: {', '.join(variant.files)} has no {key}")
            state[name] = recorded[key]
        tuned.load_trainable_state(state)
        return tuned


def offered_methods() -> tuple[str, ...]:
    """The tuning methods that this version has."""
    return get_args(get_type_hints(TuningConfig)["method"])


def _combined(methods: Sequence[str]) -> str:
    """The name under which the tuning configuration offers methods together."""
    return "_".join(sorted(methods))
