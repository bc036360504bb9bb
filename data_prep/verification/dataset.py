"""A whole dataset: the files that the manifest names, and the shards, several at once."""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from data_prep.errors import DataError
from data_prep.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    QUARANTINE_NAME,
    Manifest,
    manifest_bytes,
)
from data_prep.verification.problems import Problems
from data_prep.verification.shard import ShardCheck, ShardFindings, check_shard
from data_prep.verification.tables import Index, check_quarantine, read_index


@dataclass
class Verification:
    """What came of verifying a dataset; problems.total is 0 when it is as it was prepared."""

    folder: str
    digest: str | None = None
    shards: int = 0
    samples: int = 0
    images: int = 0
    bytes: int = 0
    problems: Problems = field(default_factory=Problems)


def verify_dataset(
    folder: Path,
    *,
    decode: bool = False,
    workers: int = 1,
    on_start: Callable[[int], None] = lambda total: None,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Verification:
    """Reads everything in a dataset again and compares it with the manifest.

    Args:
        folder: Folder of the dataset.
        decode: Whether every image is decoded whole, and not its header alone.
        workers: Processes that check shards; 1 checks them in this one.
        on_start: Told the bytes of all shards, before the first is read.
        on_bytes: Told the bytes of a shard when it is done.
    """
    result = Verification(folder=str(folder))
    problems = result.problems
    try:
        manifest, wrong = Manifest.examine(manifest_bytes(folder), MANIFEST_NAME)
    except DataError as error:
        problems.add(MANIFEST_NAME, str(error).removeprefix(f"{MANIFEST_NAME}: "))
        return result
    problems.add_all(MANIFEST_NAME, wrong)
    result.digest = manifest.digest
    _check_files(folder, manifest, problems)
    check_quarantine(folder, manifest, problems)
    index = read_index(folder, manifest, problems)
    on_start(sum(shard.bytes for shard in manifest.shards))
    for findings in _all_findings(_checks(folder, manifest, index, decode), workers):
        result.shards += 1
        result.samples += findings.samples
        result.images += findings.images
        result.bytes += findings.bytes
        problems.extend(findings.problems)
        on_bytes(findings.bytes)
    return result


def _check_files(folder: Path, manifest: Manifest, problems: Problems) -> None:
    """Finds files that the manifest does not name; hidden ones belong to preparation."""
    named = {MANIFEST_NAME, INDEX_NAME, QUARANTINE_NAME, *(s.name for s in manifest.shards)}
    for path in sorted(folder.iterdir()):
        if path.name not in named and not path.name.startswith("."):
            problems.add(path.name, "the manifest does not name this file")


def _checks(
    folder: Path, manifest: Manifest, index: Index | None, decode: bool
) -> Iterator[ShardCheck]:
    for number, info in enumerate(manifest.shards):
        if Path(info.name).name != info.name:
            continue  # a forged name that leads elsewhere; the manifest's problems say so
        yield ShardCheck(
            folder=str(folder),
            number=number,
            info=info,
            rows=None if index is None else tuple(index.rows(number)),
            shard_size=manifest.shard_size,
            shared=manifest.store_images == "once_per_shard",
            decode=decode,
        )


def _all_findings(checks: Iterator[ShardCheck], workers: int) -> Iterator[ShardFindings]:
    """Runs the checks, in order for one worker, else in the order in which they end."""
    if workers == 1:
        yield from map(check_shard, checks)
        return
    pool = ProcessPoolExecutor(
        workers,
        # Not fork: the parent may have threads (progress bar, Arrow), whose locks it would copy.
        mp_context=get_context("forkserver"),
        # Ctrl-C reaches all processes of a terminal; the parent alone has something to say.
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        yield from _in_pool(checks, pool, 2 * workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_pool(
    checks: Iterator[ShardCheck], pool: ProcessPoolExecutor, most: int
) -> Iterator[ShardFindings]:
    """Runs the checks with few in flight, since each carries its index rows."""
    running: dict[Future[ShardFindings], ShardCheck] = {}
    broken = False
    while True:
        for check in islice(checks, 0 if broken else most - len(running)):
            try:
                running[pool.submit(check_shard, check)] = check
            except BrokenProcessPool:
                broken = True
                yield _unchecked(check)
                break
        if not running:
            break
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            check = running.pop(future)
            try:
                yield future.result()
            except BrokenProcessPool:
                broken = True
                yield _unchecked(check)
    for check in checks:
        yield _unchecked(check)


def _unchecked(check: ShardCheck) -> ShardFindings:
    findings = ShardFindings(bytes=check.info.bytes)
    findings.problems.add(
        check.info.name,
        "was not checked: a process that checks shards was killed; "
        "try again with fewer --workers if memory ran out",
    )
    return findings
