"""The list of everything that a folder gives to compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from model.verify.cases import BeamCase
from model.verify.finding import Finding
from model.verify.fixtures import Fixtures
from model.verify.forward import activations, buckets, image_trunk
from model.verify.search import candidates, forced, searched, trie_masks
from model.verify.subjects import Subjects
from model.verify.training import gradients, losses


@dataclass(frozen=True)
class Check:
    """One case, or one side of it, that is computed on its own."""

    case: str
    variant: str | None
    """The variant that it needs; None where no tuning method is involved."""
    compute: Callable[[Subjects], Iterator[Finding]]
    side: str = ""
    """Which side of the case, where it has several."""
    needs_float32: str = ""
    """Why this side can only be asked for in float32."""
    undecided: str = ""
    """Why no machine need compute what the reference did."""

    @property
    def name(self) -> str:
        """Case and side."""
        return f"{self.case}, {self.side}" if self.side else self.case

    def skipped(self, subjects: Subjects) -> tuple[str, str] | None:
        """Return what isn't computed with these subjects, case or side, and why; else None."""
        missing = None if self.variant is None else subjects.missing(self.variant)
        if missing is not None:
            return self.case, missing
        needs_float32 = self.needs_float32 if subjects.dtype != "fp32" else ""
        reason = self.undecided or needs_float32
        return (self.name, reason) if reason else None

    def findings(self, subjects: Subjects) -> list[Finding]:
        """Compute the check.

        Raises:
            CheckpointError: the folder lacks an input, or holds something unknown.
        """
        with subjects.precision():
            return list(self.compute(subjects))


def all_checks(fixtures: Fixtures) -> list[Check]:
    """List what can be compared, cheap and basic things first."""
    cases, names = fixtures.cases, fixtures.tensors
    tries = sorted({n.split("/")[0] for n in names if n.endswith("/constraint_masks")})
    checks = []
    if "buckets/image_ids" in names:
        checks.append(Check("buckets", None, buckets))
    if "inputs/resnet_features" in names:
        checks.append(Check("image trunk", None, image_trunk))
    checks += [Check(f"trie {t}", None, partial(trie_masks, place=t)) for t in tries]
    for forward in cases.forward.values():
        checks.append(Check(forward.name, forward.variant, partial(activations, case=forward)))
    for loss in cases.losses.values():
        checks.append(Check(f"loss {loss.name}", loss.variant, partial(losses, case=loss)))
    for gradient in cases.gradients.values():
        title = f"gradient {gradient.name}"
        checks.append(Check(title, gradient.variant, partial(gradients, case=gradient)))
    for beam in cases.beams.values():
        checks += _checks_of_search(fixtures, beam)
    for answers in cases.candidates.values():
        title = f"candidates {answers.name}"
        checks.append(Check(title, answers.variant, partial(candidates, case=answers)))
    return checks


def _checks_of_search(fixtures: Fixtures, case: BeamCase) -> list[Check]:
    title = f"beam {case.name}"
    prompted = case.prefix is not None and fixtures.ids(case.prefix).shape[1] > 0
    # All tokens beside a preferred prompt get one score, and the beam has room for some of them.
    ties = "equal scores beside a preferred prompt are chosen among freely"
    return [
        Check(title, case.variant, partial(forced, case=case), side="forced"),
        Check(
            title,
            case.variant,
            partial(searched, case=case),
            side="search",
            needs_float32="below fp32 near ties of a search fall either way",
            undecided=ties if prompted and not case.options.forces_prefix else "",
        ),
    ]
