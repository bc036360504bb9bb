"""Existing WebDataset shards: one sample a key, its members one after another in a tar.

Nothing is extracted: an image is a range of bytes of the tar, and stays there until it is read.
Names, links and devices in a foreign tar are therefore only texts here; what is no plain file, or
has a name that leads elsewhere, is rejected.

Without `task`, the json members are samples of this project's schema. With it, `columns` says
where each role is: a field of the json member, or a member of its own such as `.txt`.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO, Final

from data_prep.config import SourceConfig
from data_prep.errors import DataError
from data_prep.quarantine import Reason, Rejected, Rejection
from data_prep.readers.base import (
    ReadItem,
    SourceRecord,
    Workspace,
    guarded,
    identity_of,
    place,
    shown,
)
from data_prep.readers.inputs import input_files, opened, require_ranges
from data_prep.readers.rows import RowImage, row_record
from data_prep.roles import OPTIONAL_ROLES, roles_of
from data_prep.schema import Sample
from data_prep.stores import input_name, range_address

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Members that may be the image; the first one that a sample has is."""
MAX_TEXT_BYTES = 1 << 24
"""A larger json or text member is rejected unread."""

_NAME = re.compile(r"(?P<key>(?:.*/)?[^./][^./]*)(?P<extension>\.[^/]+)")


@dataclass
class _Parts:
    """The members of one key so far: ranges of images, contents of texts, and what is wrong."""

    key: str
    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    problem: Rejected | None = None


def read(config: SourceConfig, work: Workspace) -> Iterator[ReadItem]:
    """Yields a sample for every key, and a rejection for every member with a hostile name."""
    wanted = {".json"}
    for name in (config.columns or {}).values():
        if isinstance(name, str) and name.startswith("."):
            wanted.add(name)
    for path in input_files(str(config.annotations)):
        require_ranges(path)
        shared: dict[str, tuple[int, int]] = {}
        with opened(path) as file:
            try:
                for item in _groups(file, path, wanted, f"{config.source_name}/{config.split}"):
                    yield (
                        item if isinstance(item, Rejection) else _item(config, path, item, shared)
                    )
            except (tarfile.TarError, EOFError, ValueError) as error:
                raise DataError(f"{path} is not a plain tar archive: {error}") from error


def _groups(
    file: BinaryIO, path: str, wanted: set[str], prefix: str
) -> Iterator[_Parts | Rejection]:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        parts: _Parts | None = None
        last = -1
        while (member := tar.next()) is not None:
            # The archive remembers every member; there may be millions.
            tar.members = []  # type: ignore[attr-defined]
            if member.size < 0 or member.offset_data <= last:
                raise tarfile.ReadError(f"a member at byte {member.offset} leads backwards")
            last = member.offset_data
            if member.isdir():
                continue
            if (reason := _hostile(member.name)) is not None:
                yield Rejection(
                    uid=f"{prefix}/{member.name[:200]}",
                    position=place(path, shown(member.name)),
                    reason=Reason.BAD_IMAGE_NAME,
                    detail=reason,
                )
                continue
            found = _NAME.fullmatch(member.name)
            key = found["key"] if found else member.name
            if parts is None or parts.key != key:
                if parts is not None:
                    yield parts
                parts = _Parts(key)
            _collect(tar, member, parts, found["extension"].lower() if found else "", wanted)
        if parts is not None:
            yield parts
        _check_end(file, tar.offset)


def _check_end(file: BinaryIO, offset: int) -> None:
    """Raises where tarfile stops in silence: at a damaged header, or where the file was cut."""
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"it is damaged or cut off at byte {offset}")


def _hostile(name: str) -> str | None:
    if name.startswith("/") or "\\" in name or "\0" in name:
        return f"{shown(name)} is not a name inside the archive"
    return f"{shown(name)} leads out of the archive" if ".." in name.split("/") else None


def _collect(
    tar: tarfile.TarFile, member: tarfile.TarInfo, parts: _Parts, extension: str, wanted: set[str]
) -> None:
    if not member.isreg() or member.issparse():
        detail = f"{shown(member.name)} is a link, a device or no plain file"
        parts.problem = Rejected(Reason.BAD_IMAGE_NAME, detail)
    elif extension in parts.images or extension in parts.texts:
        detail = f"{shown(member.name)} is there twice"
        parts.problem = Rejected(Reason.MALFORMED_ANNOTATION, detail)
    elif extension in wanted:
        content = tar.extractfile(member) if member.size <= MAX_TEXT_BYTES else None
        if content is None:
            detail = f"{shown(member.name)} has {member.size} bytes"
            parts.problem = Rejected(Reason.MALFORMED_ANNOTATION, detail)
        else:
            parts.texts[extension] = content.read()
    else:
        parts.images[extension] = (member.offset_data, member.size)


def _item(
    config: SourceConfig, path: str, parts: _Parts, shared: dict[str, tuple[int, int]]
) -> ReadItem:
    where = place(path, parts.key)
    values: dict[str, Any] | None = None
    problem = parts.problem
    try:
        values = _values(parts)
    except Rejected as rejected:
        problem = problem or rejected
    uid_column = str((config.columns or {}).get("uid", "uid"))
    if config.task is None and values is not None:
        _share(parts, values, shared)
    found = identity_of((values or {}).get(uid_column))
    if config.task and "uid" not in (config.columns or {}):
        found = parts.key
    uid = f"{config.source_name}/{config.split}/{found or parts.key}"
    return guarded(uid, where, partial(_record, config, uid, where, path, parts, values, problem))


def _share(parts: _Parts, values: dict[str, Any], shared: dict[str, tuple[int, int]]) -> None:
    """Gives a sample without an image the one of its shard that has the SHA-256 it names."""
    image = values.get("image")
    digest = image.get("sha256") if isinstance(image, dict) else None
    if not isinstance(digest, str):
        return
    own = next((parts.images[e] for e in IMAGE_SUFFIXES if e in parts.images), None)
    if own is not None:
        shared[digest] = own
    elif digest in shared:
        parts.images[IMAGE_SUFFIXES[0]] = shared[digest]


def _values(parts: _Parts) -> dict[str, Any]:
    """Fields of the json member, and the text members by their extensions."""
    values: dict[str, Any] = {}
    for extension, content in parts.texts.items():
        try:
            if extension == ".json":
                record = json.loads(content)
                if not isinstance(record, dict):
                    raise ValueError(f"expected an object, found {shown(record)}")
                values.update(record)
            else:
                values[extension] = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Rejected(Reason.BAD_TEXT, f"member {extension}: {error.reason}") from error
        except (ValueError, RecursionError) as error:
            raise Rejected(Reason.MALFORMED_ANNOTATION, f"member {extension}: {error}") from error
    return values


def _record(
    config: SourceConfig,
    uid: str,
    where: str,
    path: str,
    parts: _Parts,
    values: dict[str, Any] | None,
    problem: Rejected | None,
) -> SourceRecord:
    if problem is not None or values is None:
        raise problem or Rejected(Reason.MALFORMED_ANNOTATION, "there is no annotation")
    columns = {role: str(name) for role, name in (config.columns or {}).items()}
    image = _image(parts, path, columns.get("image"))
    if config.task is None:
        return _own(uid, where, image, values)
    optional = ("uid", "image_id", *OPTIONAL_ROLES[config.task])
    row = {}
    for role in roles_of(config.task):
        name = columns.get(role, role)
        if role == "image" or (name not in values and role in optional and role not in columns):
            continue
        if name not in values:
            raise Rejected(Reason.MALFORMED_ANNOTATION, f"there is no {name!r} for {role!r}")
        row[role] = values[name]
    if "uid" in columns and identity_of(row["uid"]) is None:
        raise Rejected(Reason.MALFORMED_ANNOTATION, f"{columns['uid']!r} is {shown(row['uid'])}")
    name = identity_of(row.get("image_id")) or parts.key
    return row_record(config.task, uid, where, RowImage(name=name, address=image), row)


def _image(parts: _Parts, path: str, wanted: str | None) -> str:
    for extension in (wanted,) if wanted else IMAGE_SUFFIXES:
        if extension in parts.images:
            offset, size = parts.images[extension]
            return range_address(input_name(path), offset, size)
    raise Rejected(
        Reason.MISSING_IMAGE, f"no member {wanted or 'with an image'} beside {shown(parts.key)}"
    )


def _own(uid: str, where: str, address: str, values: dict[str, Any]) -> SourceRecord:
    """A sample of this project's schema as a record; its boxes refer to the stored image."""
    try:
        sample = Sample.from_json(values)
    except (DataError, TypeError, AttributeError) as error:
        raise Rejected(Reason.MALFORMED_ANNOTATION, " ".join(str(error).split())) from error
    return SourceRecord(
        uid=uid,
        task=sample.task,
        image=sample.image.name,
        address=address,
        position=where,
        size=(sample.image.width, sample.image.height),
        text=sample.text,
        premise=sample.premise,
        references=sample.references,
        answers=tuple((answer.text, answer.count) for answer in sample.answers),
        boxes=tuple((box.box, box.label) for box in sample.boxes),
        label=sample.label,
    )
