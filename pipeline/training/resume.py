"""Whether a run may be continued: what differs from the run that its checkpoint was made by.

The checkpoint carries the resolved configuration. What decides the result must be as it was, unless
the user insists; what only decides where and how fast it is computed may change freely.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.config import RunConfig
from pipeline.config_tree import build, plain
from pipeline.errors import CheckpointError, ConfigError
from pipeline.training.checkpoint import CHECKPOINTS, RunState
from pipeline.training.checkpoint_folder import (
    checkpoints_in,
    newest_checkpoint,
    opened,
    state_of,
)
from pipeline.training.subject import BUFFER

log = logging.getLogger(__name__)

FREE = (
    "output_dir",
    "base.path",
    "tracking.",
    "evaluation.",
    "engine.",
    "data.train",
    "data.cache_",
    "data.loader",
    "data.prefetch_steps",
    "data.pin_memory",
    "training.log_every_steps",
    "training.save_every_steps",
    "training.keep_last",
    "training.async_checkpoints",
    "training.step_timeout_s",
    "training.batch_size_per_rank",
    "training.gradient_accumulation",
)
"""Settings that change nothing of a result beyond rounding. Base and data are judged by their
digests, sizes of batches by the number of samples of a step."""
BOUND = ("engine.precision",)
"""Settings below a free section that do change it."""
_SELECTION = ("data.validation", "training.validation_samples", "training.best_", "training.ema_")
"""Settings that decide what a validation's value means."""


@dataclass(frozen=True, kw_only=True)
class Resume:
    """How a run is to be continued."""

    checkpoint: str | None = None
    """Name of its checkpoint; None for the newest."""
    force: bool = False
    """Go on although something differs."""


@dataclass(frozen=True)
class Difference:
    """Something that decides the result and is not as it was."""

    what: str
    before: str
    now: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.what} {self.before} -> {self.now}{self.hint}"


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """A checkpoint that fits a run."""

    place: Path
    state: RunState
    """As far as the run had come, under the settings of now."""
    tensors: dict[str, Tensor]


def chosen_checkpoint(run_dir: Path, resume: Resume) -> Path | None:
    """The checkpoint that a run continues from; None where it has none yet.

    Raises:
        ConfigError: there is no checkpoint of that name.
        CheckpointError: `latest` points at nothing.
    """
    if resume.checkpoint is None:
        return newest_checkpoint(run_dir)
    found = checkpoints_in(run_dir / CHECKPOINTS)
    for place in found:
        if place.name == resume.checkpoint:
            return place
    there = ", ".join(place.name for place in found) or "none"
    raise ConfigError(
        f"--resume={resume.checkpoint}: {run_dir} has no such checkpoint; it has {there}"
    )


def continuation(
    run_dir: Path, config: RunConfig, now: RunState, resume: Resume, *, told: bool
) -> Continuation | None:
    """What a run goes on with; None where it has no checkpoint yet.

    Args:
        run_dir: Folder of the run.
        config: The settings now.
        now: The run as it would begin, with its base and its data.
        resume: How to go on.
        told: Say what differs where resume insists, as one rank should.

    Raises:
        ConfigError: something that decides the result differs, and resume does not insist.
        CheckpointError: the checkpoint is damaged.
    """
    place = chosen_checkpoint(run_dir, resume)
    if place is None:
        return None
    saved, tensors = opened(place)
    differences = settings_differences(saved, config, now.ranks, place)
    differences += input_differences(saved, now)
    if not resume.force:
        refuse(place, differences)
    for difference in differences if told else ():
        log.warning("--force continues %s in spite of: %s", place.name, difference)
    state = continued(saved, now, differences)
    return Continuation(place=place, state=state, tensors=adapted(tensors, config))


def check_settings(run_dir: Path, config: RunConfig, ranks: int, resume: Resume) -> None:
    """Refuses to continue a run with other settings, before any work begins.

    Raises:
        ConfigError: settings differ, and resume does not insist.
        CheckpointError: the checkpoint is damaged.
    """
    place = chosen_checkpoint(run_dir, resume)
    if place is not None and not resume.force:
        refuse(place, settings_differences(state_of(place), config, ranks, place))


def refuse(place: Path, differences: list[Difference]) -> None:
    """Says what differs and how to go on.

    Raises:
        ConfigError: something differs.
    """
    if differences:
        said = "; ".join(map(str, differences))
        raise ConfigError(
            f"{place} cannot be continued like this: {said}. Take back what changed, give the run"
            " another name, or go on with --resume --force"
        )


def settings_differences(
    saved: RunState, config: RunConfig, ranks: int, place: Path
) -> list[Difference]:
    """What of the settings decides the result and is not as it was.

    Args:
        saved: State of the checkpoint.
        config: The settings now.
        ranks: Number of ranks now.
        place: The checkpoint, for errors.

    Raises:
        CheckpointError: its settings are of another version.
    """
    try:
        # Settings that are younger than the checkpoint get their defaults.
        former: RunConfig = build(RunConfig, saved.config)
    except ConfigError as error:
        raise CheckpointError(f"the settings in {place} are of another version: {error}") from error
    before, now = _flat(plain(former)), _flat(plain(config))
    found = [
        Difference(path, before.get(path, "nothing"), now.get(path, "nothing"))
        for path in sorted(before.keys() | now.keys())
        if before.get(path) != now.get(path) and not _free(path)
    ]
    if len(former.data.train) != len(config.data.train):
        found.append(Difference("data.train", before["data.train"], now["data.train"]))
    return found + _batch_difference(saved, config, ranks)


def input_differences(saved: RunState, now: RunState) -> list[Difference]:
    """What of the base and the training data is not as it was; known once they are open."""
    found = []
    if saved.base_fingerprint != now.base_fingerprint:
        found.append(Difference("the base", saved.base_fingerprint, now.base_fingerprint))
    before, present = list(saved.datasets.items()), list(now.datasets.items())
    for number in range(max(len(before), len(present))):
        old = before[number] if number < len(before) else ("", "nothing")
        new = present[number] if number < len(present) else ("", "nothing")
        if old[1] != new[1]:
            name = new[0] or old[0]
            found.append(Difference(f"the data in {name}", old[1], new[1]))
    return found


def continued(saved: RunState, now: RunState, differences: list[Difference]) -> RunState:
    """The state that a run goes on with: as far as it had come, under the settings of now."""
    went_on = replace(
        saved,
        total_steps=now.total_steps,
        base_fingerprint=now.base_fingerprint,
        datasets=now.datasets,
        ranks=now.ranks,
        zero_stage=now.zero_stage,
        global_batch=now.global_batch,
        config=now.config,
    )
    if any(difference.what.startswith(_SELECTION) for difference in differences):
        # Values of another kind do not compare.
        return replace(went_on, best=None, mark=None, stale=0, prompts={})
    return went_on


def adapted(tensors: Mapping[str, Tensor], config: RunConfig) -> dict[str, Tensor]:
    """The tensors of a checkpoint for a run that keeps other things beside the parameters.

    Averages begin anew where the checkpoint has none, and what the run does not keep is left out;
    with the settings of the checkpoint nothing changes.
    """
    kept = dict(tensors)
    if config.training.ema_decay is None:
        kept = {name: t for name, t in kept.items() if not name.startswith("average/")}
    elif not any(name.startswith("average/") for name in kept):
        names = [name for name in kept if name.startswith("parameter/")]
        kept |= {name.replace("parameter/", "average/", 1): kept[name] for name in names}
    if not config.tuning.train_batch_norm:
        kept = {name: t for name, t in kept.items() if not name.startswith(BUFFER)}
    return kept


def _free(path: str) -> bool:
    return path.startswith(FREE) and path not in BOUND


def _batch_difference(saved: RunState, config: RunConfig, ranks: int) -> list[Difference]:
    training, whole = config.training, saved.global_batch
    size, accumulation = training.batch_size_per_rank, training.gradient_accumulation
    if size * accumulation * ranks == whole:
        return []
    now = f"{size * accumulation * ranks} (training.batch_size_per_rank {size} x"
    now += f" training.gradient_accumulation {accumulation} x {ranks} ranks)"
    return [Difference("samples of a step", str(whole), now, f"; {_fitting(whole, size, ranks)}")]


def _fitting(whole: int, size: int, ranks: int) -> str:
    """Sizes with which so many ranks make steps of as many samples."""
    if whole % ranks:
        return f"{whole} samples do not divide by {ranks} ranks: take another number of ranks"
    share = whole // ranks
    size = size if share % size == 0 else share
    return (
        f"{ranks} ranks need training.batch_size_per_rank={size}"
        f" training.gradient_accumulation={share // size}"
    )


def _flat(tree: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(tree, dict) or not tree:
        return {prefix.removesuffix("."): json.dumps(tree)}
    return {
        path: value
        for key, branch in tree.items()
        for path, value in _flat(branch, f"{prefix}{key}.").items()
    }
