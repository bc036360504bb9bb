"""Locations as a recipe gives them: a path, or '<scheme>://<bucket>/<path>?<option>=<value>'.

An archive may stand in the middle of a path: 'coco/train2014.zip/train2014' is the folder
train2014 inside the archive.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from data_prep.errors import DataError

OPTIONS = {
    "file": ("links",),
    "s3": ("anonymous", "endpoint", "region"),
    "gs": ("anonymous", "endpoint"),
    "hf": (),
}
"""The options that each scheme takes."""
ARCHIVES = (".tar", ".zip")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Location:
    """A location taken apart.

    Attributes:
        scheme: 'file' or the scheme of an object store.
        path: Path on this machine, or 'bucket/key'.
        options: What stood behind '?'.
    """

    scheme: str
    path: str
    options: dict[str, str]

    @property
    def remote(self) -> bool:
        """Whether it lies in an object store."""
        return self.scheme != "file"


def parse_location(location: str) -> Location:
    """Takes a location apart.

    Raises:
        DataError: Its scheme, an option or its form is not one that can be used.
    """
    if "\0" in location or not location:
        raise DataError(f"{location!r:.80} is not a location")
    found = _URI.fullmatch(location)
    if found is None:
        return Location(scheme="file", path=location, options={})
    scheme, (rest, _, query) = found[1].lower(), found[2].partition("?")
    if scheme not in OPTIONS:
        raise DataError(
            f"{location:.200}: {scheme}:// cannot be read; give a folder, a .tar, a .zip, or one "
            f"of these in {', '.join(f'{name}://' for name in OPTIONS)}"
        )
    options = _options(location, scheme, query)
    if scheme == "file":
        if not rest.startswith("/"):
            raise DataError(f"{location:.200}: write file:///, three slashes, and a whole path")
        return Location(scheme=scheme, path=unquote(rest), options=options)
    bucket = rest.partition("/")[0]
    if not bucket or "@" in bucket or ":" in bucket:
        # A location ends up in logs, manifests and digests.
        raise DataError(
            f"{scheme}://: expected {scheme}://bucket/path, without credentials or a port: "
            "credentials come from the environment"
        )
    parts = [part for part in rest.split("/") if part]
    if any(part in (".", "..") for part in parts):
        raise DataError(f"{location:.200}: '.' and '..' have no meaning in an object store")
    return Location(scheme=scheme, path="/".join(parts), options=options)


def _options(location: str, scheme: str, query: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name in options:
        if name not in OPTIONS[scheme]:
            allowed = ", ".join(OPTIONS[scheme]) or "none"
            raise DataError(f"{location:.200}: no option {name!r} there; allowed: {allowed}")
    flags = {"anonymous": ("true", "false"), "links": ("follow", "inside")}
    for name, values in flags.items():
        if options.get(name, values[0]) not in values:
            raise DataError(f"{location:.200}: {name} must be {' or '.join(values)}")
    return options


def absolute_location(location: str) -> str:
    """The location with its path made whole, so that it means the same to every process."""
    return location if _URI.fullmatch(location) else str(Path(location).absolute())


def parent_location(location: str) -> str:
    """The folder that a file lies in, as a location of images with the file's options.

    Links in it are followed: the file was named by a person, and may be a link itself.

    Raises:
        DataError: The location makes no sense.
    """
    parsed = parse_location(location)
    if not parsed.remote:
        return f"{Path(parsed.path).absolute().parent.as_uri()}?links=follow"
    query = location.partition("?")[2]
    folder = f"{parsed.scheme}://{parsed.path.rpartition('/')[0]}"
    return f"{folder}?{query}" if query else folder


def is_remote(location: str) -> bool:
    """Whether a location lies in an object store; DataError when it makes no sense."""
    return parse_location(location).remote


def file_location(folder: str, name: str) -> str:
    """Location of a file in a folder that is given by its location."""
    if not is_remote(folder):
        return str(Path(parse_location(folder).path) / name)
    path, mark, options = folder.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{options}"


def split_archive(location: Location) -> tuple[str, str] | None:
    """The path of the archive and the folder inside it ('' for all of it), or None.

    Raises:
        DataError: It is a compressed tar, in which nothing can be found without unpacking all.
    """
    parts = location.path.split("/")
    for count, part in enumerate(parts, start=1):
        path, lower = "/".join(parts[:count]), part.lower()
        if not lower.endswith(ARCHIVES + _COMPRESSED):
            continue
        if not location.remote and Path(path).is_dir():
            continue
        if lower.endswith(_COMPRESSED):
            raise DataError(
                f"{path}: single images cannot be read from a compressed tar; decompress it to "
                "a .tar (images hardly shrink), or unpack it"
            )
        return path, "/".join(part for part in parts[count:] if part)
    return None
