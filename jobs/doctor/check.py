"""What one look at a machine found, and how long a look may take."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

ResultT = TypeVar("ResultT")

MIB = 1024**2
GIB = 1024**3


@dataclass(frozen=True)
class Check:
    """What one look at the machine found."""

    name: str
    status: Literal["ok", "warning", "failed"]
    found: str
    advice: str = ""
    """What to do; empty where nothing needs to be done."""

    @property
    def failed(self) -> bool:
        """Whether something that is needed does not work."""
        return self.status == "failed"


def within(limit_s: float, work: Callable[[], ResultT]) -> ResultT:
    """The result of work that may hang in a library which offers no limit of its own.

    The work goes on in its thread after the limit; the thread does not keep the process alive.

    Args:
        limit_s: Longest wait, in seconds.
        work: What is done; its errors are raised here.

    Raises:
        TimeoutError: the work took longer.
    """
    results: list[ResultT] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised again in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, name="check", daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {limit_s:.0f} s")
    return results[0]
