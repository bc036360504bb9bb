"""Sources as preparation sees them: where they lie, and what names their content."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.config import PrepareConfig, SourceConfig
from data_prep.errors import DataError
from data_prep.readers.inputs import input_files
from data_prep.shard_job import SourceFacts
from data_prep.stores import (
    absolute_location,
    input_name,
    input_sha256,
    open_input,
    open_store,
    parent_location,
)


def unreachable(source: SourceConfig) -> Iterator[str]:
    """What of a source is not where the recipe says; opens each file and reads none."""
    try:
        if source.images is not None:
            open_store(absolute_location(source.images))
    except DataError as error:
        yield f"images: {error}"
    for role, pattern in source.files().items():
        try:
            for path in input_files(pattern):
                open_input(path).close()
        except DataError as error:
            yield f"{role}: {error}"


def check_sources(config: PrepareConfig) -> None:
    """Looks for the sources of all datasets, so that none fails after hours of work for others.

    Raises:
        DataError: One is not where the recipe says.
    """
    for name, dataset in config.datasets.items():
        for source in dataset.sources:
            for problem in unreachable(source):
                raise DataError(f"{name}, {source.source_name}/{source.split}: {problem}")


def copied(source: SourceConfig) -> bool:
    """Whether a source's images are copied before shards are made, since no range reaches them."""
    return source.reader == "table" and source.images is None


def facts_of(source: SourceConfig, ledger: Path) -> SourceFacts:
    """What a worker has to know of a source; ledger is where images of tables were copied to."""
    if source.images is not None:
        images = absolute_location(source.images)
    elif copied(source):
        images = str(ledger.absolute())
    else:
        images = parent_location(input_files(str(source.annotations))[0])
    return SourceFacts(
        name=source.source_name,
        split=source.split,
        images=images,
        use_premise=source.use_premise,
    )


def described(source: SourceConfig) -> dict[str, Any]:
    """A source for the manifest: by content and not by path, so that it fits any machine."""
    files = {}
    for role, pattern in source.files().items():
        paths = input_files(pattern)
        for number, path in enumerate(paths):
            key = role if len(paths) == 1 else f"{role}[{number}]"
            files[key] = {"name": input_name(path), "sha256": input_sha256(path)}
    return {
        "name": source.source_name,
        "reader": source.reader,
        "split": source.split,
        "image_name": source.image_name,
        "use_premise": source.use_premise,
        "restval": source.restval,
        "task": source.task,
        "columns": source.columns,
        "files": files,
    }
