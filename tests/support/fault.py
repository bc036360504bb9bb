"""Faults in a rank of a real run: a function of it does something else when its time has come."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

_SITE = """
import os, signal, sys, time

if os.environ.get("RANK") == {rank!r}:
    import {module}

    module = {module}{owner}
    whole = module.{function}

    def faulty(*args, **kwargs):
        if {when}:
            open({mark!r}, "w").close()
{what}
        return whole(*args, **kwargs)

    module.{function} = faulty
"""


class Fault:
    """A folder for `start(python_path=...)` that makes one rank fail."""

    def __init__(
        self,
        folder: Path,
        what: str,
        *,
        rank: int | None,
        before: str = "pipeline.training.trainer:seed_step",
        when: str = "True",
    ) -> None:
        """Writes what Python imports at the start of each process.

        Args:
            folder: A new folder.
            what: Statements.
            rank: The rank that runs them; None for a run of a single process without a launcher.
            before: Function before which they run, as `module:name` or `module:Class.name`; `args`
                are its arguments.
            when: Condition.
        """
        folder.mkdir()
        self.folder = folder
        self._mark = folder / "happened"
        module, name = before.split(":")
        owner, _, function = name.rpartition(".")
        code = _SITE.format(
            rank=None if rank is None else str(rank),
            module=module,
            owner=f".{owner}" if owner else "",
            function=function,
            when=when,
            mark=str(self._mark),
            what="".join(f"            {line}\n" for line in what.splitlines()),
        )
        (folder / "sitecustomize.py").write_text(code)

    @property
    def happened(self) -> bool:
        return self._mark.exists()

    def wait(self) -> None:
        """Until it happened."""
        until = time.monotonic() + 120
        while not self.happened:
            assert time.monotonic() < until, "the fault did not happen"
            time.sleep(0.02)

    def seconds_ago(self) -> float:
        """Since it happened."""
        return time.time() - self._mark.stat().st_mtime


def processes_about(recipe: Path) -> list[psutil.Process]:
    """Whatever still runs of a run."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if str(recipe) in " ".join(process.info["cmdline"] or [])
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]
