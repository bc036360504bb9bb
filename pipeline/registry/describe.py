"""The record's facts that come from the model and its tasks, so that no caller repeats them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.instructions import source_text
from model.tuning import TunedModel
from pipeline.registry.record import BaseIdentity, DataUse, PromptMeta, TaskUse
from pipeline.registry.tuning_values import folded
from pipeline.tasks.registry import get_task
from pipeline.tracking.provenance import library_versions

_PROBE = "xyzzy"
"""A word that text clean-up leaves alone, to find the place of the text in an instruction."""


def describe_prompt(
    model: TunedModel,
    *,
    name: str,
    tasks: Sequence[str],
    base_fingerprint: str,
    tokenizer_digest: str,
    image_size: int,
    answers: tuple[str, ...] = (),
    data: tuple[DataUse, ...] = (),
    config: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    licence: str = "Apache-2.0",
) -> PromptMeta:
    """Describes a tuned model for its artifact.

    Args:
        model: The tuned model.
        name: Name of the prompt.
        tasks: Names of the tasks that it was trained for.
        base_fingerprint: The base's fingerprint from before the training.
        tokenizer_digest: Digest of the base's tokenizer.
        image_size: Side in pixels that the training resized images to.
        answers: The only answers to questions; none where they are open.
        data: Datasets that the run read.
        config: The resolved run configuration.
        metrics: Scores by `namespace/name`.
        licence: SPDX name of the prompt's licence.
    """
    shape = model.base.config
    return PromptMeta(
        name=name,
        method=model.config.method,
        tuning=folded(model.config),
        tasks=tuple(describe_task(task) for task in tasks),
        base=BaseIdentity(name=shape.name, fingerprint=base_fingerprint),
        tokenizer_digest=tokenizer_digest,
        image_size=image_size,
        depth={"encoder": shape.encoder_layers, "decoder": shape.decoder_layers},
        trainable_parameters=model.parameter_counts().trainable,
        answers=answers,
        data=data,
        config=dict(config or {}),
        metrics=dict(metrics or {}),
        libraries=library_versions(),
        licence=licence,
    )


def describe_task(name: str) -> TaskUse:
    """A task's instruction, with `{text}` where the text goes, and its headline metric."""
    instruction = source_text(name, _PROBE).replace(_PROBE, "{text}")
    return TaskUse(name=name, instruction=instruction, metric=get_task(name).metric)
