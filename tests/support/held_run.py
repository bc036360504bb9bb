"""A training run that holds still at a moment of its first start, so that a test can disturb it."""

from __future__ import annotations

import time
from pathlib import Path

# Imported at the start of each process; only a rank looks at the training code, which is large.
_SITE = """
import os, sys, time

ranks = ("jobs.train", "jobs.launch.host_rank")
launchers = ("deepspeed.launcher.runner", "deepspeed.launcher.launch", "torch.distributed.run")
words = sys.orig_argv
if any(word in ranks or word.endswith("jobs/train.py") for word in words) and not any(
    word in launchers for word in words
):
    import {module} as module

    whole = module.{function}

    def holding(*args, **kwargs):
        if {when}:
            try:
                os.close(os.open({held!r}, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                run = sys._getframe(1).f_locals.get("self")
                until = time.monotonic() + 150
                while not ({over}) and time.monotonic() < until:
                    time.sleep(0.02)
        return whole(*args, **kwargs)

    module.{function} = holding
"""
_TRAINER = "pipeline.training.trainer"


class HeldRun:
    """A folder for PYTHONPATH that makes one rank wait, once, however often the run starts."""

    def __init__(self, folder: Path) -> None:
        """Names the folder, which is made by the methods."""
        self.folder = folder
        self._held, self._released = folder / "held", folder / "released"

    def until_asked_to_stop(self, step: int) -> HeldRun:
        """Has a rank wait in a step until it is asked to stop."""
        return self._write("seed_step", f"args[1] == {step}", "run.stop.requested")

    def until_released(self, step: int) -> HeldRun:
        """Has a rank wait in a step until `release`."""
        return self._write("seed_step", f"args[1] == {step}", self._is_released())

    def when_done(self) -> HeldRun:
        """Has a rank wait after all of its work, just before it leaves the others."""
        return self._write("leave_world", "True", self._is_released())

    def wait(self) -> None:
        """Until a rank holds."""
        until = time.monotonic() + 180
        while not self._held.exists():
            assert time.monotonic() < until, "the run did not get there"
            time.sleep(0.05)

    def release(self) -> None:
        """Lets the rank go on."""
        self._released.touch()

    def _is_released(self) -> str:
        return f"os.path.exists({str(self._released)!r})"

    def _write(self, function: str, when: str, over: str) -> HeldRun:
        self.folder.mkdir()
        code = _SITE.format(
            module=_TRAINER, function=function, when=when, over=over, held=str(self._held)
        )
        (self.folder / "sitecustomize.py").write_text(code)
        return self
