"""The lock of a job: the versions that were installed when it was submitted, beside today's.

Run on a node before the job's work, as `python -m jobs.launch.packages FILE`: a requeued job must
not go on with other libraries than it began with.
"""

from __future__ import annotations

import json
import platform
import site
import sys
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path

_SHOWN = 5


def installed() -> dict[str, str]:
    """Version of Python and of every installed distribution, by lower-case name."""
    # Metadata that is damaged has no name; the first on the path is the one that is imported.
    found: dict[str, str] = {}
    # Not sys.path, to which libraries such as Ray add copies of packages that they bring along.
    places = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        places.append(site.getusersitepackages())
    for each in distributions(path=places):
        if each.metadata["Name"]:
            found.setdefault(each.metadata["Name"].lower(), each.version)
    return {"python": platform.python_version(), **dict(sorted(found.items()))}


def differences(locked: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """What is not as it was locked, each in words; more packages than were locked do no harm."""
    return [
        f"{name} {here.get(name, 'is missing')} instead of {version}"
        for name, version in locked.items()
        if here.get(name) != version
    ]


def main(path: str) -> int:
    """Compares this interpreter with a lock file; 1 and a line on stderr where they differ."""
    try:
        locked = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"error: the package lock {path} cannot be read: {error}", file=sys.stderr)
        return 1
    found = differences(locked, installed())
    if not found:
        return 0
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    print(
        f"error: the packages here are not those that the job was submitted with:"
        f" {', '.join(found[:_SHOWN])}{more}; install those, or launch a new job",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
