"""The package that is sent to a cluster: the frozen code, and beside it the job's files.

Ray would pack a folder by itself, but tells of a limit only when all is packed and sent. Packed
here, its size is known; and since equal content gives equal bytes, Ray sends it once.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from io import BytesIO
from pathlib import Path

from jobs.launch.freeze import CODE_FOLDER, CONFIG, JOB, PACKAGES, FrozenJob, sources
from pipeline.errors import ConfigError

REQUEST = "ray.json"
"""What the cluster is asked for, and what its nodes have to know."""

_SENT = (CONFIG, JOB, PACKAGES, REQUEST)
_TIME = (1980, 1, 1, 0, 0, 0)
_SHOWN = 3
_NEEDED = "jobs/launch/ray/driver.py"


def package(folder: Path, excludes: Sequence[str], max_mb: float) -> bytes:
    """The zip file of a written job.

    Args:
        folder: The frozen job.
        excludes: Patterns of what stays behind.
        max_mb: Largest size, in MB.

    Raises:
        ConfigError: it is larger, or lacks what runs it.
    """
    code = folder / CODE_FOLDER
    files = {
        str(path.relative_to(code)): path
        for path in code.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    job = {name: folder / name for name in _SENT}
    return _zip({**files, **job}, excludes, max_mb)


def check_package(frozen: FrozenJob, excludes: Sequence[str], max_mb: float) -> int:
    """The size in bytes that a job's code will have, packed; before anything is written.

    Raises:
        ConfigError: it is too large, or lacks what runs the job.
    """
    return len(_zip(sources(), excludes, max_mb))


def _zip(files: Mapping[str, Path], excludes: Sequence[str], max_mb: float) -> bytes:
    kept = {name: path for name, path in sorted(files.items()) if not _matches(name, excludes)}
    if _NEEDED not in kept:
        raise ConfigError(f"ray.excludes = {list(excludes)}: leaves out {_NEEDED}, which runs jobs")
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in kept.items():
            entry = zipfile.ZipInfo(name, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes())
        sizes = {entry.filename: entry.compress_size for entry in archive.infolist()}
    if packed.tell() > max_mb * 1e6:
        raise ConfigError(
            f"ray.max_upload_mb = {max_mb:g}: the package of the job has"
            f" {packed.tell() / 1e6:.1f} MB, most of it in {', '.join(_largest(sizes))}; leave"
            " files out by ray.excludes"
        )
    return packed.getvalue()


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return name not in _SENT and any(fnmatchcase(name, pattern) for pattern in patterns)


def _largest(sizes: Mapping[str, int]) -> list[str]:
    return sorted(sizes, key=lambda name: -sizes[name])[:_SHOWN]
