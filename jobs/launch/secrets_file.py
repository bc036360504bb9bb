"""Files of secret variables: KEY=VALUE lines, which are split and never run."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ConfigError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def read_secrets(path: Path) -> dict[str, str]:
    """The variables of a file; empty lines and those that begin with `#` are none.

    Raises:
        ConfigError: the file cannot be read, or has other lines.
    """
    try:
        return dict(_variables(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8"
        raise ConfigError(
            f"secrets: node {socket.gethostname()} cannot read {path}: {reason}"
        ) from error


def _variables(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text(encoding="utf-8").split("\n"):
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise ConfigError(f"secrets: {path} has a line that is not KEY=VALUE")
        yield name, value
