"""How much of a base a rank holds whole, from loading it to the end of its training.

Run as a rank of `run_recipes`: it trains the recipes, watches the base of the last one, and writes
`held-<rank>.json` into that run's folder.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn

from model.tuning import TunedModel
from tests.support import rank_group


@dataclass
class Held:
    """Numbers of values of the base's parameters."""

    base: int = 0
    """Of the whole base."""
    largest: int = 0
    """Of the module with the most."""
    share: int = 0
    """That this rank holds all the time."""
    loading: int = 0
    """Most that were whole here while the base was loaded."""
    training: int = 0
    """Most that were whole here while it trained or validated."""


def main(recipes: Sequence[str]) -> None:
    """Trains the recipes; the last one is sharded."""
    from pipeline.config import RunConfig, load
    from pipeline.training import trainer
    from pipeline.training.run_folder import run_folder
    from pipeline.training.sharding import Sharding, is_sharded

    held, build, settle = Held(), trainer.build_model, Sharding.settle
    arrived: list[nn.Parameter] = []

    def watched_settle(self: Sharding, module: nn.Module) -> None:
        own = list(module.parameters(recurse=False))
        arrived.extend(own)
        held.largest = max(held.largest, sum(p.numel() for p in own if p.numel()))
        held.loading = max(held.loading, _whole(arrived))
        settle(self, module)

    def watched_build(*arguments: object) -> TunedModel:
        model: TunedModel = build(*arguments)
        parameters = list(model.base.parameters())
        if not is_sharded(parameters[0]):
            return model
        held.base = sum(vars(p)["ds_numel"] for p in parameters)
        held.share = sum(vars(p)["ds_tensor"].numel() for p in parameters)

        def look(module: nn.Module, inputs: object, output: object) -> None:
            held.training = max(held.training, _whole(parameters))

        # Before the hooks of the module itself, which release what it used.
        nn.modules.module.register_module_forward_hook(look)
        return model

    trainer.build_model, Sharding.settle = watched_build, watched_settle
    rank_group.main(recipes)
    folder = run_folder(load(RunConfig, [Path(recipes[-1])]))
    (folder / f"held-{os.environ['RANK']}.json").write_text(json.dumps(asdict(held)))


def _whole(parameters: Sequence[Tensor]) -> int:
    return sum(parameter.data.numel() for parameter in parameters)


if __name__ == "__main__":
    main(sys.argv[1:])
