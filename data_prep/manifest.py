"""The manifest: what a prepared dataset holds, and whether that adds up.

It is written last, so that its presence means a complete dataset. It names every other file by its
SHA-256, hence its own digest is one name for all of a dataset's bytes. Earlier formats stay
readable: a training run that is resumed has to find the same dataset under the same digest.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from data_prep.errors import DataError
from data_prep.fields import JsonFields, canonical_json, field_names, load_object
from data_prep.schema import SCHEMA_VERSION, check_version

MANIFEST_NAME: Final = "manifest.json"
INDEX_NAME: Final = "index.parquet"
QUARANTINE_NAME: Final = "quarantine.parquet"
MANIFEST_VERSION: Final = 2
_FORMAT: Final = "prefixworks.manifest/"
_SHARD_NAME: Final = re.compile(r"shard-[0-9]{6,12}\.tar")


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One tar file: its name, its samples in all and by task, its bytes and its SHA-256.

    tasks is None only in a manifest of format 1, which does not say.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    tasks: dict[str, int] | None

    @classmethod
    def from_json(cls, record: object, where: str, version: int = MANIFEST_VERSION) -> Self:
        """Reads what json.loads gave; DataError when it does not describe a shard."""
        fields = JsonFields(record, where, _SHARD if version > 1 else _SHARD_1)
        return cls(
            name=fields.text("name"),
            samples=fields.integer("samples"),
            bytes=fields.integer("bytes"),
            sha256=fields.text("sha256"),
            tasks=fields.counts("tasks") if version > 1 else None,
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared dataset holds.

    It has no timestamps and no absolute paths of the output: the same input gives the same bytes.

    Attributes:
        name: Name of the dataset.
        seed: Seed of the order of samples.
        shard_size: Records of the input that a shard was made from.
        samples: Samples in all shards.
        shards: The shards in order.
        tasks: Samples per task.
        counts: in, out, quarantined; in = out + quarantined.
        sources: What was read: reader, split, options, and the digest of its annotations.
        image: The image policy.
        store_images: 'repeated' where every sample has its image beside it, 'once_per_shard'
            where samples of one shard share the bytes of equal images.
        index: Name and SHA-256 of the index.
        quarantine: Name and SHA-256 of the quarantine file, and its rows per reason.
        version: Version of the manifest's format that it was read from.
    """

    name: str
    seed: int
    shard_size: int
    samples: int
    shards: tuple[ShardInfo, ...]
    tasks: dict[str, int]
    counts: dict[str, int]
    sources: tuple[dict[str, Any], ...]
    image: dict[str, Any]
    store_images: str
    index: dict[str, Any]
    quarantine: dict[str, Any]
    version: int = MANIFEST_VERSION

    @property
    def schema_version(self) -> int:
        """Version of the sample schema; what is read is always of the present version."""
        return SCHEMA_VERSION

    @property
    def config_digest(self) -> str:
        """'sha256:<hex>' of the settings that decide the bytes, and of nothing else.

        The digests of the annotation files are among the sources, so two datasets of one config
        digest differ only where their images do.
        """
        settings = {
            "seed": self.seed,
            "shard_size": self.shard_size,
            "sources": list(self.sources),
            "image": self.image,
            "store_images": self.store_images,
        }
        return _digest(settings)

    @property
    def digest(self) -> str:
        """'sha256:<hex>' of the manifest, hence of every shard, index row and quarantine row."""
        return _digest(self._body())

    def _body(self) -> dict[str, Any]:
        # vars() and not asdict(): of ten thousand shards its deep copies take seconds.
        body = dict(vars(self))
        del body["version"]
        body["shards"] = [dict(vars(shard)) for shard in self.shards]
        body["sources"] = list(self.sources)
        if self.version > 1:
            body["config_digest"] = self.config_digest
        else:
            del body["store_images"]
            for shard in body["shards"]:
                del shard["tasks"]
        return {"format": f"{_FORMAT}{self.version}", "schema_version": SCHEMA_VERSION, **body}

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values, with its format and digest."""
        return {**self._body(), "digest": self.digest}

    @classmethod
    def from_json(cls, record: bytes | str | Mapping[str, Any], where: str = "manifest") -> Self:
        """Reads a manifest from JSON text or from what json.loads gave.

        Raises:
            DataError: It is not JSON, of an unknown format, incomplete, its digest does not fit
                its content, or its counts contradict each other.
        """
        manifest, problems = cls.examine(record, where)
        if problems:
            raise DataError(f"{where}: {problems[0]}")
        return manifest

    @classmethod
    def examine(
        cls, record: bytes | str | Mapping[str, Any], where: str = "manifest"
    ) -> tuple[Self, list[str]]:
        """Reads a manifest that may contradict itself, and says everything that is wrong with it.

        Raises:
            DataError: It is no manifest at all, or a field has a wrong type.
        """
        record = load_object(record, where)
        version = _version(record, where)
        check_version(record, where)
        fields = JsonFields(record, where, _MANIFEST if version > 1 else _MANIFEST_1)
        manifest = cls(
            name=fields.text("name"),
            seed=fields.integer("seed"),
            shard_size=fields.integer("shard_size"),
            samples=fields.integer("samples"),
            shards=tuple(
                ShardInfo.from_json(shard, f"{where}.shards[{i}]", version)
                for i, shard in enumerate(fields.items("shards"))
            ),
            tasks=fields.counts("tasks"),
            counts=fields.counts("counts"),
            sources=tuple(fields.items("sources")),
            image=fields.mapping("image"),
            store_images=fields.text("store_images") if version > 1 else "repeated",
            index=_file(fields.mapping("index"), f"{where}.index"),
            quarantine=_file(fields.mapping("quarantine"), f"{where}.quarantine", "reasons"),
            version=version,
        )
        try:
            manifest.to_json()
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: a value that JSON cannot hold: {error}") from error
        problems = []
        if fields.text("digest") != manifest.digest:
            problems.append("its digest does not fit its content; it was edited or cut")
        elif version > 1 and fields.text("config_digest") != manifest.config_digest:
            problems.append("its config_digest does not fit its settings")
        return manifest, problems + list(_contradictions(manifest))


def _version(record: Mapping[str, Any], where: str) -> int:
    known = {f"{_FORMAT}{version}": version for version in range(1, MANIFEST_VERSION + 1)}
    found = record.get("format")
    if not isinstance(found, str) or found not in known:
        raise DataError(f"{where}: format {found!r:.80}, this code reads {', '.join(known)}")
    return known[found]


def _file(record: dict[str, Any], where: str, *counts: str) -> dict[str, Any]:
    """Checks what the manifest says of another file."""
    fields = JsonFields(record, where, frozenset(("name", "sha256", *counts)))
    fields.text("name")
    fields.text("sha256")
    for name in counts:
        fields.counts(name)
    return record


def _contradictions(manifest: Manifest) -> Iterator[str]:
    counts = manifest.counts
    if counts.keys() != {"in", "out", "quarantined"}:
        yield f"counts are of in, out and quarantined, found {sorted(counts)}"
    elif counts["in"] != counts["out"] + counts["quarantined"]:
        yield "counts do not balance: {in} in, {out} out, {quarantined} quarantined".format(
            **counts
        )
    rows = sum(manifest.quarantine["reasons"].values())
    if counts.get("quarantined") != rows:
        yield f"{counts.get('quarantined')} quarantined, but {rows} with a reason"
    in_shards = sum(shard.samples for shard in manifest.shards)
    of_tasks = sum(manifest.tasks.values())
    if not manifest.samples == counts.get("out") == in_shards == of_tasks:
        yield (
            f"{manifest.samples} samples, but {counts.get('out')} out, "
            f"{in_shards} in the shards and {of_tasks} of the tasks"
        )
    names = Counter(shard.name for shard in manifest.shards)
    for name, times in names.items():
        if times > 1 or not _SHARD_NAME.fullmatch(name):
            yield f"{name!r:.80} cannot be the name of a shard" + " twice" * (times > 1)
    for role, name in (("index", INDEX_NAME), ("quarantine", QUARANTINE_NAME)):
        found = getattr(manifest, role)["name"]
        if found != name:
            yield f"the {role} is called {found!r:.80}, expected {name}"
    yield from _task_contradictions(manifest)


def _task_contradictions(manifest: Manifest) -> Iterator[str]:
    if manifest.version == 1:
        return
    total: Counter[str] = Counter()
    for shard in manifest.shards:
        tasks = shard.tasks or {}
        total.update(tasks)
        if sum(tasks.values()) != shard.samples:
            yield f"{shard.name}: {shard.samples} samples, but {sum(tasks.values())} of the tasks"
    if dict(total) != manifest.tasks:
        yield f"tasks {manifest.tasks}, but {dict(sorted(total.items()))} in the shards"


def _digest(record: object) -> str:
    return "sha256:" + hashlib.sha256(canonical_json(record)).hexdigest()


_SHARD = field_names(ShardInfo)
_SHARD_1 = _SHARD - {"tasks"}
_MANIFEST = field_names(Manifest, "format", "schema_version", "digest", "config_digest") - {
    "version"
}
_MANIFEST_1 = _MANIFEST - {"config_digest", "store_images"}


def read_manifest(folder: str | Path) -> Manifest:
    """Reads the manifest of a prepared dataset.

    Args:
        folder: Its folder, or its location in an object store.

    Raises:
        DataError: There is none (the folder is missing or preparation did not end), or it is
            corrupt or newer than this code. StoreError, a DataError, when an object store cannot
            be reached.
    """
    if isinstance(folder, str) and "://" in folder:
        # Only here, so that looking at a folder loads no client of a store.
        from data_prep.stores import file_location, open_input

        location = file_location(folder, MANIFEST_NAME)
        with open_input(location) as file:
            return Manifest.from_json(file.read(), location)
    path = Path(folder) / MANIFEST_NAME
    return Manifest.from_json(manifest_bytes(folder), str(path))


def manifest_bytes(folder: str | Path) -> bytes:
    """The manifest's text as it is on disk; DataError when there is none."""
    path = Path(folder) / MANIFEST_NAME
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist: not a prepared dataset, or its preparation did not end"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
