"""What a run reads: the batches that it learns from and the samples that it is validated on."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass

from model.checkpoint import TOKENIZER_FILE, resolve_base
from model.ofa.config import OFAConfig
from model.tokenizer import OFATokenizer
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.features.opening import open_features
from pipeline.training.closed_answers import close_answers
from pipeline.training.data import Collator
from pipeline.training.loader import (
    BatchMaker,
    Loader,
    build_order,
    check_cache,
    open_data_sets,
    pins_memory,
)
from pipeline.training.validation import Validator
from pipeline.training.world import World, ranks_here


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """One rank's part of a run's data."""

    loader: Loader
    validator: Validator | None
    """None where nothing is validated on."""
    epoch_length: int
    """Samples of one pass over the training data."""
    datasets: dict[str, str]
    """Digest of the manifest of each training data set."""


def open_inputs(
    config: RunConfig,
    base: OFAConfig,
    world: World,
    stack: contextlib.ExitStack,
    trunk: str | None = None,
) -> Inputs:
    """Opens the data sets of a run, which stay open as long as the stack.

    Args:
        config: The run.
        base: Architecture of its base.
        world: The ranks.
        stack: Closes the data.
        trunk: Fingerprint of the base's image trunk, where the run has features.

    Raises:
        ConfigError: no data are named, their streams cannot be dealt to the ranks, or features are
            of something else.
        DataError: data are missing or damaged.
    """
    data = config.data
    if not data.train:
        raise ConfigError("data.train names no data set to learn from")
    if data.streams % world.size:
        raise ConfigError(f"data.streams = {data.streams}: not a multiple of {world.size} ranks")
    tokenizer = OFATokenizer.from_file(resolve_base(config.base.path) / TOKENIZER_FILE)
    image_size = data.image_size or base.image_size
    readers = [stack.enter_context(reader) for reader in open_data_sets(data.train, data)]
    check_cache(readers, data, max(1, world.size // ranks_here()))
    digests = [reader.manifest.digest for reader in readers]
    features = open_features(config, image_size, trunk, digests)
    order = build_order(readers, data, config.seed)
    answers = close_answers(config, readers, world)
    collate = _collator(config, base, tokenizer, answers)
    loader = Loader(
        order,
        BatchMaker(readers, collate, config.seed, data.augmentation, features),
        rank=world.rank,
        ranks=world.size,
        batch_size=config.training.batch_size_per_rank,
        accumulation=config.training.gradient_accumulation,
        workers=data.loader_workers,
        kind=data.loader,
        timeout_s=data.loader_timeout_s,
        steps_ahead=data.prefetch_steps,
        pin=pins_memory(data.pin_memory, world.device),
    )
    validator = None
    if data.validation:
        held_out = open_data_sets(data.validation, data)
        for reader in held_out:
            stack.enter_context(reader)
        validator = Validator(held_out, tokenizer, collate, config, image_size, world, answers)
        _check_measured(config, {task for reader in held_out for task in reader.tasks})
    return Inputs(
        loader=stack.enter_context(loader),
        validator=validator,
        epoch_length=order.epoch_length,
        datasets={str(reader.folder): reader.manifest.digest for reader in readers},
    )


def _check_measured(config: RunConfig, tasks: Collection[str]) -> None:
    """Refuses a prompt that no validation could judge, before it is trained."""
    unseen = [name for name in config.prompt_names() if name not in tasks]
    if unseen:
        raise ConfigError(
            f"data.validation has no sample of {unseen[0]}, whose prompt it is to judge; add a data"
            " set that has some, or validate on none"
        )


def _collator(
    config: RunConfig, base: OFAConfig, tokenizer: OFATokenizer, answers: tuple[str, ...]
) -> Collator:
    return Collator(
        tokenizer,
        base,
        config.data.image_size or base.image_size,
        max_source_length=config.data.max_source_length,
        max_target_length=config.data.max_target_length,
        answers=answers,
        constrained=config.training.constrain_loss,
        prompt_names=config.prompt_names(),
    )
