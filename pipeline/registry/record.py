"""What a prompt says about itself: the contents of `prompt.json`.

The record holds everything needed to decide whether a prompt fits a base and where it came from,
and nothing that differs between two savings of the same prompt: no times, no host names, no paths.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from pipeline.errors import RegistryError

PROMPT_FORMAT = "prefixworks.prompt/1"
"""Name and version of the format; a reader refuses any version that it does not know."""

Kind = TypeVar("Kind")


@dataclass(frozen=True, kw_only=True)
class TaskUse:
    """One task that the prompt was trained for."""

    name: str
    instruction: str
    """The source text, leading blank included, with `{text}` where the request's text goes."""
    metric: str
    """The task's headline metric, such as `grounding/acc_at_0.5`."""


@dataclass(frozen=True, kw_only=True)
class BaseIdentity:
    """The base that the prompt belongs to, as it was before the training."""

    name: str
    fingerprint: str
    """`sha256:<hex>` over parameters and buffers."""


@dataclass(frozen=True, kw_only=True)
class DataUse:
    """A prepared dataset that the run read."""

    role: str
    """`train`, `validation` or `evaluation`."""
    name: str
    digest: str
    samples: int


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Type, shape and content of one tensor, to notice damage before a prediction."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class PromptMeta:
    """What the trainer knows of a prompt; the tensors' own facts are added when it is saved."""

    name: str
    """Human name of the prompt, usually the run's name."""
    method: str
    """Tuning method, such as `prefix`."""
    tuning: dict[str, Any]
    """The tuning configuration as plain values, with any reparameterisation already folded."""
    tasks: tuple[TaskUse, ...]
    base: BaseIdentity
    tokenizer_digest: str
    image_size: int
    """Side in pixels of the square that images are resized to."""
    depth: dict[str, int]
    """Layers of the base's two stacks: `encoder`, `decoder`."""
    trainable_parameters: int
    """Numbers that training adjusted (the artifact may hold more or fewer once folded)."""
    answers: tuple[str, ...] = ()
    """The only answers to questions; none where they are open."""
    data: tuple[DataUse, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved run configuration."""
    metrics: dict[str, float] = field(default_factory=dict)
    libraries: dict[str, str] = field(default_factory=dict)
    """Versions of the libraries that the training used."""
    licence: str = "Apache-2.0"


@dataclass(frozen=True, kw_only=True)
class PromptRecord:
    """The whole of `prompt.json`."""

    meta: PromptMeta
    tensors: dict[str, TensorEntry]
    digest: str
    """`sha256:<hex>` over the tensors' names, types, shapes and contents."""

    @property
    def parameters(self) -> int:
        """Numbers in the artifact's tensors."""
        return sum(math.prod(entry.shape) for entry in self.tensors.values())

    @property
    def length(self) -> int | None:
        """Length of the prompts in positions; None for a method that has none."""
        keys = [entry for name, entry in self.tensors.items() if name.endswith(".key")]
        return max((key.shape[-2] for key in keys if len(key.shape) == 3), default=None)

    @property
    def headline(self) -> tuple[str, float] | None:
        """Name and value of the first task's metric, where it was measured."""
        for task in self.meta.tasks:
            if task.metric in self.meta.metrics:
                return task.metric, self.meta.metrics[task.metric]
        return None

    @property
    def measured_on(self) -> tuple[DataUse, ...]:
        """The data of the scores: the evaluation's, else the validation's."""
        for role in ("evaluation", "validation"):
            uses = tuple(use for use in self.meta.data if use.role == role)
            if uses:
                return uses
        return ()

    @property
    def own_digest(self) -> str:
        """`sha256:<hex>` of `prompt.json` itself: equal only where all of the record is equal."""
        return f"sha256:{hashlib.sha256(self.to_json().encode()).hexdigest()}"

    def to_json(self) -> str:
        """Renders the record; equal records give equal text."""
        meta = asdict(self.meta)
        values = {
            "format": PROMPT_FORMAT,
            "digest": self.digest,
            "tensors": {name: asdict(entry) for name, entry in self.tensors.items()},
            **meta,
        }
        try:
            return json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise RegistryError(f"prompt {self.meta.name!r} cannot be recorded: {error}") from error

    @classmethod
    def from_json(cls, text: str, source: str) -> PromptRecord:
        """Reads a record.

        Args:
            text: Contents of `prompt.json`.
            source: Name of the file, for messages.

        Raises:
            RegistryError: not JSON, another or a newer format, a field missing or of a wrong type.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise RegistryError(f"{source} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise RegistryError(f"{source} holds no prompt record")
        _check_format(values.get("format"), source)
        return _record(_Fields(values, source))


def _check_format(found: object, source: str) -> None:
    if found == PROMPT_FORMAT:
        return
    family, _, version = PROMPT_FORMAT.partition("/")
    if isinstance(found, str) and found.startswith(f"{family}/"):
        number = found.removeprefix(f"{family}/")
        if number.isdigit() and int(number) > int(version):
            raise RegistryError(
                f"{source} has the newer format {found}; this version reads {PROMPT_FORMAT}:"
                " update prefixworks"
            )
    raise RegistryError(f"{source} has the unknown format {found!r}; expected {PROMPT_FORMAT}")


class _Fields:
    """Typed access to the fields of one JSON object, with messages that name the path."""

    def __init__(self, values: Mapping[str, Any], source: str, path: str = "") -> None:
        self.values, self.source, self.path = values, source, path

    def get(self, name: str, kind: type[Kind]) -> Kind:
        where = f"{self.path}{name}"
        if name not in self.values:
            raise RegistryError(f"{self.source} has no field {where!r}")
        value = self.values[name]
        # bool is an int in Python, and no field here is a truth value.
        if not isinstance(value, kind) or isinstance(value, bool):
            raise RegistryError(
                f"{self.source}: field {where!r} is {type(value).__name__}, not {kind.__name__}"
            )
        return value

    def optional_texts(self, name: str) -> tuple[str, ...]:
        items = self.get(name, list) if name in self.values else []
        for number, item in enumerate(items):
            if not isinstance(item, str):
                raise RegistryError(f"{self.source}: {self.path}{name}[{number}] is no text")
        return tuple(items)

    def inner(self, name: str) -> _Fields:
        return _Fields(self.get(name, dict), self.source, f"{self.path}{name}.")

    def each(self, name: str) -> list[_Fields]:
        items = self.get(name, list)
        for number, item in enumerate(items):
            if not isinstance(item, dict):
                raise RegistryError(f"{self.source}: {self.path}{name}[{number}] is no object")
        return [
            _Fields(item, self.source, f"{self.path}{name}[{n}].") for n, item in enumerate(items)
        ]

    def numbers(self, name: str) -> dict[str, float]:
        inner = self.inner(name)
        values: dict[str, float] = {}
        for key in inner.values:
            number = inner.values[key]
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                raise RegistryError(f"{self.source}: {inner.path}{key} is no number")
            values[key] = float(number)
        return values

    def integers(self, name: str) -> dict[str, int]:
        inner = self.inner(name)
        return {key: inner.get(key, int) for key in inner.values}

    def texts(self, name: str) -> dict[str, str]:
        inner = self.inner(name)
        return {key: inner.get(key, str) for key in inner.values}


def _record(fields: _Fields) -> PromptRecord:
    base = fields.inner("base")
    meta = PromptMeta(
        name=fields.get("name", str),
        method=fields.get("method", str),
        tuning=fields.get("tuning", dict),
        tasks=tuple(
            TaskUse(
                name=task.get("name", str),
                instruction=task.get("instruction", str),
                metric=task.get("metric", str),
            )
            for task in fields.each("tasks")
        ),
        base=BaseIdentity(name=base.get("name", str), fingerprint=base.get("fingerprint", str)),
        tokenizer_digest=fields.get("tokenizer_digest", str),
        image_size=fields.get("image_size", int),
        depth=fields.integers("depth"),
        trainable_parameters=fields.get("trainable_parameters", int),
        # Records of before there were closed answers have no such field.
        answers=fields.optional_texts("answers"),
        data=tuple(
            DataUse(
                role=data.get("role", str),
                name=data.get("name", str),
                digest=data.get("digest", str),
                samples=data.get("samples", int),
            )
            for data in fields.each("data")
        ),
        config=fields.get("config", dict),
        metrics=fields.numbers("metrics"),
        libraries=fields.texts("libraries"),
        licence=fields.get("licence", str),
    )
    tensors = {
        name: _tensor_entry(fields.inner("tensors"), name) for name in fields.get("tensors", dict)
    }
    return PromptRecord(meta=meta, tensors=tensors, digest=fields.get("digest", str))


def _tensor_entry(tensors: _Fields, name: str) -> TensorEntry:
    entry = tensors.inner(name)
    shape = entry.get("shape", list)
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise RegistryError(f"{tensors.source}: {entry.path}shape is no list of sizes")
    return TensorEntry(
        dtype=entry.get("dtype", str), shape=tuple(shape), sha256=entry.get("sha256", str)
    )
