"""The embedded world: a data set in real formats that any machine makes, byte for byte the same.

A world is a folder of JPEGs and annotation files. Every scene is a function of (seed, domain,
split, index), so the work is dealt to processes freely; the folder appears under its name only when
it is complete.
"""

import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.errors import DataError
from data_prep.world.annotations import ReferWriter, SceneRows, SplitWriter, scene_rows
from data_prep.world.drawing import jpeg_bytes
from data_prep.world.scene import MAX_SCENES_PER_SPLIT, make_scene, scene_random
from data_prep.world.vocabulary import (
    DOMAINS,
    EXPRESSIONS,
    SPLITS,
    Domain,
    Expressions,
    Split,
)

WORLD_FORMAT = "prefixworks.world/1"
_RECORD_NAME = "world.json"
_CHUNK = 200


@dataclass(frozen=True, kw_only=True)
class WorldPlan:
    """What decides every byte of a world, apart from the version of Pillow's JPEG encoder."""

    domain: Domain
    scenes: dict[Split, int]
    seed: int
    expressions: Expressions = "varied"
    format: str = WORLD_FORMAT


def plan_world(
    *, domain: str, scenes: Mapping[str, int], seed: int, expressions: str = "varied"
) -> WorldPlan:
    """Checks the parameters of a world.

    Raises:
        DataError: the domain, a split or the kind of expressions is unknown, or a number of scenes
            is out of range.
    """
    spoken = next((known for known in EXPRESSIONS if known == expressions), None)
    if spoken is None:
        raise DataError(f"expressions {expressions!r} are unknown: use {' or '.join(EXPRESSIONS)}")
    known_domain = next((known for known in DOMAINS if known == domain), None)
    if known_domain is None:
        raise DataError(f"domain {domain!r} is unknown: use one of {', '.join(DOMAINS)}")
    unknown = sorted(set(scenes) - set(SPLITS))
    if unknown:
        raise DataError(f"split {unknown[0]!r} is unknown: use {', '.join(SPLITS)}")
    counts = {split: scenes[split] for split in SPLITS if split in scenes}
    for split, count in counts.items():
        if not 0 < count <= MAX_SCENES_PER_SPLIT:
            raise DataError(f"{count} scenes for {split}: must be 1 to {MAX_SCENES_PER_SPLIT}")
    if not counts:
        raise DataError("a world needs scenes for at least one split")
    return WorldPlan(domain=known_domain, scenes=counts, seed=seed, expressions=spoken)


def write_world(
    folder: str | os.PathLike[str],
    *,
    domain: str,
    scenes: Mapping[str, int],
    seed: int,
    expressions: str = "varied",
    processes: int | None = None,
) -> bool:
    """Writes a world, or finds that the same one is already there.

    Args:
        folder: where the world goes; it must not exist, or hold the world of the same parameters.
        domain: `upstream` or `downstream`.
        scenes: number of scenes for each of `train`, `val`, `test`; a split that is left out is not
            written.
        seed: any integer.
        expressions: `varied` phrasings of what is referred to, or `full` descriptions only.
        processes: how many processes draw; the bytes do not depend on it. None takes the usable
            cores.

    Returns:
        True when the world was written, False when it was complete already.

    Raises:
        DataError: the parameters are wrong, the folder holds something else, or it cannot be
            written.
    """
    plan = plan_world(domain=domain, scenes=scenes, seed=seed, expressions=expressions)
    target = Path(folder).absolute()
    if target.exists():
        _check_same(target, plan)
        return False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial_folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise DataError(f"cannot write the world to {target}: {error}") from error
    try:
        _write_all(partial_folder, plan, processes or len(os.sched_getaffinity(0)))
        partial_folder.chmod(0o755)
        partial_folder.rename(target)
    except OSError as error:
        raise DataError(f"cannot write the world to {target}: {error}") from error
    finally:
        # After the rename there is nothing left under this name.
        shutil.rmtree(partial_folder, ignore_errors=True)
    return True


def read_world_plan(folder: str | os.PathLike[str]) -> WorldPlan:
    """The parameters that a world was written with.

    Raises:
        DataError: the folder is not a complete world of this format.
    """
    path = Path(folder) / _RECORD_NAME
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{folder} is not a complete world: cannot read {_RECORD_NAME}") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict) or record.get("format") != WORLD_FORMAT:
        raise DataError(f"{path} does not describe a world of format {WORLD_FORMAT}")
    try:
        return plan_world(
            domain=record["domain"],
            scenes=record["scenes"],
            seed=record["seed"],
            # Worlds from before there was a choice.
            expressions=record.get("expressions", "varied"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} lacks a usable field: {error}") from error


def _check_same(target: Path, plan: WorldPlan) -> None:
    found = read_world_plan(target)
    if found != plan:
        raise DataError(
            f"{target} holds another world ({_in_words(found)}; asked for {_in_words(plan)}):"
            " choose another folder or remove it"
        )


def _in_words(plan: WorldPlan) -> str:
    scenes = ", ".join(f"{count} {split}" for split, count in plan.scenes.items())
    spoken = "" if plan.expressions == "varied" else f", {plan.expressions} expressions"
    return f"{plan.domain}, {scenes}, seed {plan.seed}{spoken}"


def _write_all(folder: Path, plan: WorldPlan, processes: int) -> None:
    refer = ReferWriter(folder / "refer", plan.domain)
    for split, count in plan.scenes.items():
        (folder / "images" / split).mkdir(parents=True)
        writer = SplitWriter(folder, plan.domain, split)
        for rows in _make_scenes(folder, plan, split, count, processes):
            writer.add(rows)
            refer.add(rows)
        writer.close()
    refer.close()
    record = json.dumps(asdict(plan), indent=2, sort_keys=True)
    (folder / _RECORD_NAME).write_text(record + "\n", encoding="utf-8")


def _make_scenes(
    folder: Path, plan: WorldPlan, split: Split, count: int, processes: int
) -> Iterator[SceneRows]:
    """Draws the scenes of a split and yields their rows in order."""
    chunks = [range(first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK)]
    make = partial(_make_chunk, folder / "images" / split, plan, split)
    if processes == 1 or len(chunks) == 1:
        for chunk in chunks:
            yield from make(chunk)
        return
    # Spawn: the caller may hold threads (torch, Ray), which a fork would not survive.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(chunks)), mp_context=context) as pool:
        for rows in pool.map(make, chunks):
            yield from rows


def _make_chunk(images: Path, plan: WorldPlan, split: Split, chunk: range) -> list[SceneRows]:
    rows = []
    for index in chunk:
        rng = scene_random(plan.seed, plan.domain, split, index)
        scene = make_scene(rng, plan.domain, split, index)
        (images / scene.file_name).write_bytes(jpeg_bytes(scene))
        rows.append(scene_rows(rng, scene, plan.expressions))
    return rows
