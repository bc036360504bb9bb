"""The cases of a fixture folder: what is computed, from which tensors, and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from model.generation import GenerationOptions


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A base with what is tuned on it."""

    name: str
    methods: tuple[str, ...] = ()
    """Tuning methods, as `model.tuning` calls them; none for the base alone."""
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Settings of each method, as its section of the tuning configuration calls them."""
    files: tuple[str, ...] = ()
    """Weights beside those of the base."""


@dataclass(frozen=True, kw_only=True)
class ForwardCase:
    """One pass through the model."""

    name: str
    variant: str
    has_images: bool
    own_tokens: bool
    """Whether the case stores its own batch instead of taking the common one."""
    codes: Literal["none", "all", "alternate"]
    """Which rows of the batch write image codes."""


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """Names of the tensors that a loss is computed from."""

    source: str = "inputs/src_tokens"
    decoder: str = "inputs/prev_output_tokens"
    target: str = "inputs/target"
    confidence: str | None = None
    constraint_mask: str | None = None


@dataclass(frozen=True, kw_only=True)
class LossCase:
    """A training loss with what came out: sums over `sample_size` tokens."""

    name: str
    variant: str | None
    """None for the loss of recorded log-probabilities."""
    inputs: LossInputs
    epsilon: float
    rdrop_alpha: float | None
    drop_worst_ratio: float
    ignore_prefix_size: int
    ignore_eos: bool
    allowed_range: tuple[int, int] | None
    loss_sum: float
    nll_sum: float
    sample_size: int


@dataclass(frozen=True, kw_only=True)
class GradientCase:
    """Gradients of the mean plain loss, smoothed by 0.1, with respect to what is tuned."""

    name: str
    variant: str
    inputs: LossInputs
    batch_norm_trains: bool
    allowed_range: tuple[int, int] | None
    parameters: tuple[str, ...]
    """Names as the reference has them."""
    loss_sum: float
    sample_size: int
    epsilon: float = 0.1


@dataclass(frozen=True)
class RecordedHypothesis:
    """An answer that the reference found; tokens end with eos and don't hold bos."""

    tokens: list[int]
    score: float
    token_scores: list[float]


@dataclass(frozen=True, kw_only=True)
class BeamCase:
    """A search and its answers, best first, for each source."""

    name: str
    variant: str
    source: str
    """Name of the tensor of source ids."""
    prefix: str | None
    """Name of the tensor of decoder prompts, which may be empty."""
    options: GenerationOptions
    hypotheses: list[list[RecordedHypothesis]]


@dataclass(frozen=True, kw_only=True)
class CandidateCase:
    """Scores of all answers, and the best answer of each source."""

    name: str
    variant: str
    place: str
    """Group of tensors with the inputs, such as `vqa_src`."""
    scores: str
    """Name of the tensor of scores."""
    predictions: list[str]


@dataclass(frozen=True, kw_only=True)
class Cases:
    """All cases of a folder, each by its name."""

    forward: Mapping[str, ForwardCase] = field(default_factory=dict)
    losses: Mapping[str, LossCase] = field(default_factory=dict)
    gradients: Mapping[str, GradientCase] = field(default_factory=dict)
    beams: Mapping[str, BeamCase] = field(default_factory=dict)
    candidates: Mapping[str, CandidateCase] = field(default_factory=dict)
    answers: Mapping[str, list[int]] = field(default_factory=dict)
    """Ids, without bos and eos, of the answers of candidates and tries."""
