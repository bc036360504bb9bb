"""Which tokens the labels of a batch are chosen among, where an answer may not be just anything.

A batch may hold rows of several tasks, so each row has a constraint of its own or none. A mask
[B, T, V] of that is large and nearly empty; what travels with a batch instead is the one range that
all of its rows share, or a list of the allowed tokens.

Dimensions: B batch, T target tokens, V vocabulary, N labelled tokens, P allowed tokens listed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.losses import SPECIALS
from model.trie import Trie

Constraint = Trie | tuple[int, int]
"""The only answers, or (first, end) ids that may be said beside the specials."""
Allowed = tuple[int, int] | Tensor
"""A range that all rows of a batch share; or int64 [P, 3], the row, place and id of each token that
may be said in the rows that are constrained."""


def allowed_tokens(
    targets: Sequence[Sequence[int]], constraints: Sequence[Constraint | None], eos: int
) -> Allowed | None:
    """What may be said at each label of a batch.

    Args:
        targets: Labels of each row, without eos; the row's place 0 is the first.
        constraints: Of each row. A trie that does not know a row's answer is lifted from that row,
            since what is taught there could not be said.
        eos: Id behind the last label.

    Returns:
        None where no row is constrained.
    """
    first = constraints[0] if constraints else None
    if isinstance(first, tuple) and all(constraint == first for constraint in constraints):
        return first
    parts = []
    for row, (labels, constraint) in enumerate(zip(targets, constraints, strict=True)):
        for place, ids in enumerate(_allowed_in([*labels, eos], constraint)):
            where = torch.tensor([row, place]).expand(len(ids), 2)
            parts.append(torch.cat([where, ids[:, None]], dim=1))
    return torch.cat(parts) if parts else None


def allowed_twice(allowed: Allowed | None, rows: int) -> Allowed | None:
    """What may be said in a batch of some rows that stands twice, one behind the other."""
    if not isinstance(allowed, Tensor):
        return allowed
    behind = torch.tensor([rows, 0, 0], device=allowed.device)
    return torch.cat([allowed, allowed + behind])


def allowed_of_rows(allowed: Allowed | None, row_R: Tensor) -> Allowed | None:
    """What may be said in a batch of some rows of another, in their new order."""
    if not isinstance(allowed, Tensor):
        return allowed
    entry_M, new_row_M = (allowed[:, :1] == row_R).nonzero(as_tuple=True)
    return torch.cat([new_row_M[:, None], allowed[entry_M, 1:]], dim=1) if len(entry_M) else None


def _allowed_in(labels: list[int], constraint: Constraint | None) -> list[Tensor]:
    """The ids [*] that may stand in the place of each label; empty where any may."""
    if isinstance(constraint, Trie):
        sets = [constraint.following(labels[:place]) for place in range(len(labels))]
        known = all(label in ids for label, ids in zip(labels, sets, strict=True))
        return [torch.tensor(ids) for ids in sets] if known else []
    if constraint is None:
        return []
    ids = torch.cat([torch.arange(SPECIALS), torch.arange(*constraint)])
    return [ids] * len(labels)
