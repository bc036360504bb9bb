"""Python and the libraries: against the declared ranges, and against the versions under test."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from jobs.doctor.check import Check
from pipeline.errors import ConfigError

_SHOWN = ("torch", "deepspeed", "ray", "mlflow")
_CHECKOUT = Path(__file__).parents[2] / "constraints.txt"


def check_python() -> Check:
    """The interpreter and the system that it runs on."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.system() != "Linux":
        return Check("python", "warning", found, "only Linux is tested; use a container")
    return Check("python", "ok", found)


def check_libraries(constraints: Path | None = None) -> Check:
    """The installed versions against the ranges that this package declares and the tested ones.

    Args:
        constraints: File with the tested versions. None takes that of the checkout which this
            module is part of; without one, only the ranges are compared.

    Raises:
        ConfigError: the file cannot be read.
    """
    wrong, other, shown = [], [], []
    tested = read_constraints(constraints or _CHECKOUT) if constraints or _CHECKOUT.exists() else {}
    for line in requires("prefixworks") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = requirement.name
        try:
            installed = version(name)
        except PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{name} {installed} is not {requirement.specifier}")
        elif name in tested and Version(installed).public != tested[name]:
            other.append(f"{name} {installed} (tested: {tested[name]})")
        if name in _SHOWN:
            shown.append(f"{name} {installed}")
    if wrong:
        return Check("libraries", "failed", "; ".join(wrong), "run `make install`")
    if other:
        advice = "for the tested versions: `pip install --constraint constraints.txt prefixworks`"
        return Check("libraries", "warning", "; ".join(other), advice)
    suffix = ", all as tested" if tested else ""
    return Check("libraries", "ok", f"{', '.join(shown)}{suffix}")


def read_constraints(path: Path) -> dict[str, str]:
    """The versions that a file of `name==version` lines pins, by name.

    Raises:
        ConfigError: it cannot be read, or a line is none of these.
    """
    pinned = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"--constraints={path}: {reason}") from error
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            requirement = Requirement(text)
            (specifier,) = requirement.specifier
        except (InvalidRequirement, ValueError) as error:
            message = f"--constraints={path}, line {number}: expected name==version"
            raise ConfigError(f"{message}, not {text!r:.80}") from error
        pinned[requirement.name] = specifier.version
    return pinned
