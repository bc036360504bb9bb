"""What a kubelet makes of a container: variables expanded, a process started, no shell between."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FROZEN = "/etc/prefixworks"
"""Where manifests mount the files of a job."""


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """What the kubelet makes of a value: $$ is $, $(NAME) a variable, all else stays."""
    out, at = "", 0
    while at < len(text):
        rest = text[at + 1 :]
        if text[at] != "$" or not rest:
            out, at = out + text[at], at + 1
        elif rest[0] == "$":
            out, at = out + "$", at + 2
        elif rest[0] == "(" and ")" in rest:
            name = rest[1 : rest.index(")")]
            out, at = out + variables.get(name, f"$({name})"), at + len(name) + 3
        else:
            out, at = out + text[at : at + 2], at + 2
    return out


def environment_of(container: Mapping[str, Any]) -> dict[str, str]:
    """Variables of a container; each may name those before it."""
    found: dict[str, str] = {}
    for each in container["env"]:
        found[each["name"]] = expanded(each["value"], found)
    return found


def run_container(
    container: Mapping[str, Any], files: Mapping[str, str], folder: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Starts what a container says and waits for its end.

    Args:
        container: Of a pod, as in a manifest.
        files: Of the ConfigMap that it mounts.
        folder: Where the files lie, in place of the mount.
        variables: More of them, such as PATH, and what the cluster would set.
    """
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_bytes(text.replace(FROZEN, str(folder)).encode())
    environment = environment_of(container)
    words = [
        expanded(word, environment).replace(FROZEN, str(folder))
        for word in [*container["command"], *container["args"]]
    ]
    # By `env`, as a program would else be looked for on the PATH of whoever starts it.
    given = [f"{name}={value}" for name, value in {**environment, **variables}.items()]
    return subprocess.run(
        ["env", "-i", *given, *words], cwd=folder, capture_output=True, text=True, check=False
    )
