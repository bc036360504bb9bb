"""Time, memory and arithmetic of one training step.

    python benchmarks/train_step.py --arch base --image-size 384 --batch 4 --prompt-length 64

Arms: every tuning method; `plain`, prompt tuning that spares nothing of what a frozen base could
spare; and prompt tuning with each saving switched off by itself.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

# Started by its path, a script sees its own folder only.
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.measure import Build, Row, Work, measure, report
from benchmarks.settings import Settings, build_base, build_inputs, parse
from model.losses import label_smoothed_loss
from model.ofa import Savings
from model.tuning import PrefixConfig, TuningConfig, build_tuned_model

_CLIP_NORM = 1.0
_GRADIENTS = "prefix without frozen weights"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    settings = parse("Time, memory and arithmetic of one training step.", argv)
    arms = known_arms()
    unknown = [name for name in settings.arms if name not in arms]
    if unknown:
        sys.exit(f"no arm {unknown[0]!r}; there are: {', '.join(arms)}")
    chosen = {name: arms[name] for name in settings.arms or arms}
    rows = measure(chosen, settings)
    report("Training step", rows, settings, _comparison(rows))


def known_arms() -> dict[str, Build]:
    """Return all arms by name."""
    methods = get_args(get_type_hints(TuningConfig)["method"])
    arms: dict[str, Build] = {method: functools.partial(_step, method) for method in methods}
    bare = functools.partial(_step, "prefix", savings=Savings.none(), freeze_weights=False)
    arms["plain"] = bare
    for field in dataclasses.fields(Savings):
        less = Savings(**{field.name: False})
        name = f"prefix without {field.name}"
        arms[name] = functools.partial(_step, "prefix", savings=less)
    arms[_GRADIENTS] = functools.partial(_step, "prefix", freeze_weights=False)
    return arms


def _step(
    method: str,
    settings: Settings,
    *,
    savings: Savings | None = None,
    freeze_weights: bool = True,
) -> Work:
    """One step as training takes it: loss, gradients, clipping, AdamW."""
    base = build_base(settings)
    prefix = PrefixConfig(length=settings.prompt_length)
    tuning: dict[str, Any] = {"method": method, "prefix": prefix}
    model = build_tuned_model(base, TuningConfig(**tuning)).to(settings.device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if savings is not None:
        base.freeze(savings)
    if not freeze_weights:
        # Where only the optimizer knows what is trained, autograd works for all weights.
        for parameter in base.parameters():
            parameter.requires_grad = True
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    inputs = build_inputs(settings)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        with settings.autocast():
            logits_BTV = model(
                inputs.source_ids_BS,
                inputs.images_BCHW,
                inputs.image_present_B,
                inputs.decoder_ids_BT,
            )
        loss = label_smoothed_loss(logits_BTV, inputs.target_BT, epsilon=0.1)
        (loss.loss_sum / loss.sample_size).backward()
        torch.nn.utils.clip_grad_norm_(trained, _CLIP_NORM)
        optimizer.step()

    return Work(run)


def _comparison(rows: list[Row]) -> list[str]:
    found = {row.arm: row for row in rows}
    if not {"prefix", "finetune"} <= found.keys():
        return []
    prefix, finetune = found["prefix"], found["finetune"]
    memory = prefix.peak_above_weights_mib / finetune.peak_above_weights_mib
    return [
        f"A prefix step is {finetune.median_s / prefix.median_s:.2f} times as fast as a finetune"
        f" step, with {memory:.0%} of its memory above the weights"
        f" and {prefix.flops / finetune.flops:.0%} of its arithmetic."
    ]


if __name__ == "__main__":
    main()
