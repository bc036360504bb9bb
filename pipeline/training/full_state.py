"""What an engine has learnt and remembers, as named tensors that are alike for all engines.

`parameter/<name>`, AdamW's `exp_avg/<name>` and `exp_avg_sq/<name>`, and `average/<name>` where the
run keeps averages, of the parameter's shape; `step/<name>`, the updates that it has had, and the
number of all steps, without dimensions. All float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.errors import CheckpointError

PARAMETER = "parameter"
AVERAGE = "average"
STEP = "step"
STEPS = "engine/steps"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running means, as torch names them."""


def check_fit(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], *, averaged: bool
) -> None:
    """Compares a state with what a run needs.

    Args:
        tensors: The state.
        shapes: Of each trained parameter, by its name.
        averaged: Whether the run keeps averages.

    Raises:
        CheckpointError: names, shapes or types are others than the run's.
    """
    kinds = (PARAMETER, *MOMENTS, *([AVERAGE] if averaged else []))
    wanted = {f"{kind}/{name}": shape for name, shape in shapes.items() for kind in kinds}
    wanted |= {f"{STEP}/{name}": torch.Size() for name in shapes}
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - tensors.keys())]
    problems += [
        f"{name} is unexpected" for name in sorted(tensors.keys() - wanted.keys() - {STEPS})
    ]
    for name in sorted(wanted.keys() & tensors.keys()):
        found = tensors[name]
        if found.shape != wanted[name]:
            problems.append(f"{name} has shape {list(found.shape)}, expected {list(wanted[name])}")
        elif found.dtype != torch.float32:
            problems.append(f"{name} is {found.dtype}, expected torch.float32")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"the saved tensors don't fit this run: {'; '.join(problems[:3])}{more}"
        )
