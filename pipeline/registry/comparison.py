"""Several versions side by side: what they scored, how they were made, what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.registry.record import PromptRecord
from pipeline.tracking.provenance import flatten


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Versions side by side, each table with one column a version."""

    metrics: dict[str, list[float | None]]
    """All scores."""
    measured_on: list[list[str]]
    """For each version, name and digest of the data that the scores are of."""
    facts: dict[str, list[str | None]]
    """What differs of method, base, size and data."""
    settings: dict[str, list[str | None]]
    """What differs of the resolved configuration, by dotted path."""

    @property
    def comparable(self) -> bool:
        """Whether all scores were measured on the same data."""
        return bool(self.measured_on[0]) and all(
            data == self.measured_on[0] for data in self.measured_on
        )


def compare(records: Sequence[PromptRecord]) -> Comparison:
    """Puts records side by side.

    Args:
        records: Two or more.
    """
    names = sorted({name for record in records for name in record.meta.metrics})
    return Comparison(
        metrics={name: [record.meta.metrics.get(name) for record in records] for name in names},
        measured_on=[[f"{u.name} {u.digest}" for u in record.measured_on] for record in records],
        facts=_differing([_facts(record) for record in records]),
        settings=_differing([flatten(record.meta.config) for record in records]),
    )


def _facts(record: PromptRecord) -> dict[str, str]:
    meta = record.meta
    facts = {
        "method": meta.method,
        "tasks": ",".join(task.name for task in meta.tasks),
        "base": f"{meta.base.name} {meta.base.fingerprint}",
        "tokenizer": meta.tokenizer_digest,
        "image_size": str(meta.image_size),
        "trainable_parameters": str(meta.trainable_parameters),
        "prompt_digest": record.digest,
        "licence": meta.licence,
    }
    if record.length is not None:
        facts["length"] = str(record.length)
    facts |= {f"library.{name}": version for name, version in meta.libraries.items()}
    for role in sorted({use.role for use in meta.data}):
        uses = [use for use in meta.data if use.role == role]
        facts[f"data.{role}"] = ", ".join(f"{use.name} {use.digest}" for use in uses)
    return facts


def _differing(columns: Sequence[Mapping[str, str]]) -> dict[str, list[str | None]]:
    names = sorted({name for column in columns for name in column})
    rows = {name: [column.get(name) for column in columns] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}
