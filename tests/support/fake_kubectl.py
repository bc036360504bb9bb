"""kubectl as a small program on PATH that keeps objects in a folder, in place of a cluster."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.support.fake_slurm import write_program

_KUBECTL = """#!{python}
import json, os, sys
from pathlib import Path

import yaml

cluster = Path({cluster!r})
with (cluster / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + chr(10))
if (cluster / "down").exists():
    sys.exit("error: the connection to the server was refused")
options = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:] if word[:1] == "-")
verb, *names = [word for word in sys.argv[1:] if word[:1] != "-"]


def name_of(thing):
    group = thing["apiVersion"].rpartition("/")[0]
    kind = thing["kind"].lower() + ("." + group if group else "")
    return kind + "/" + thing["metadata"]["name"]


def place(name):
    return cluster / name.replace("/", "_")


if "filename" in options:
    things = list(yaml.safe_load_all(Path(options["filename"]).read_text()))
    names = [name_of(thing) for thing in things]
if verb == "create":
    for name, thing in zip(names, things):
        if (cluster / "refuses").exists() and (cluster / "refuses").read_text() in name:
            sys.exit("error: admission webhook denied the request")
        if place(name).exists():
            sys.exit("Error from server (AlreadyExists): " + name + " already exists")
        place(name).write_text(json.dumps(thing))
        print(name)
elif verb == "get":
    for name in names:
        if place(name).exists():
            print(name if options["output"] == "name" else place(name).read_text())
elif verb == "delete":
    for name in names:
        place(name).unlink(missing_ok=True)
elif verb == "logs":
    print("[pod/" + options["selector"].partition("=")[2] + "-0/node] step 1")
else:
    sys.exit("error: unknown command " + verb)
"""


class FakeKubectl:
    """The program, and what it keeps."""

    def __init__(self, folder: Path) -> None:
        self.programs, self._cluster = folder / "bin", folder / "cluster"
        self.programs.mkdir(parents=True)
        self._cluster.mkdir()
        text = _KUBECTL.format(python=sys.executable, cluster=str(self._cluster))
        write_program(self.programs / "kubectl", text)

    @property
    def objects(self) -> set[str]:
        """What exists in the cluster, as kubectl names it."""
        kept = (path.name for path in self._cluster.iterdir())
        return {name.replace("_", "/") for name in kept if "_" in name}

    @property
    def calls(self) -> list[list[str]]:
        """The words of every call."""
        return [json.loads(line) for line in (self._cluster / "calls").read_text().splitlines()]

    def read(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._place(name).read_text())
        return found

    def report(self, name: str, status: dict[str, Any]) -> None:
        """Gives an object a status, as its controller does."""
        self._place(name).write_text(json.dumps({**self.read(name), "status": status}))

    def refuse(self, part: str) -> None:
        """Refuses objects whose names hold a text."""
        (self._cluster / "refuses").write_text(part)

    def goes_down(self) -> None:
        """Answers no more."""
        (self._cluster / "down").touch()

    def _place(self, name: str) -> Path:
        return self._cluster / name.replace("/", "_")
