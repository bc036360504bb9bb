"""Threads that do not keep the process alive.

The standard library's pool makes the interpreter wait at its end for every thread, so a single read
from a network folder that is gone would keep a run that has failed from ending.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

ArgsP = ParamSpec("ArgsP")
ResultT = TypeVar("ResultT")

_PATIENCE_S = 5.0
"""For what is being done when the pool is shut down; what takes longer is left behind."""


class DaemonThreads(Executor):
    """Some threads, to be shut down."""

    def __init__(
        self,
        count: int,
        name: str,
        initializer: Callable[[], None] = lambda: None,
        finalizer: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts the threads.

        Args:
            count: How many.
            name: What their names begin with.
            initializer: What each does first; where it fails, so does all that is asked for.
            finalizer: What each does last.
        """
        self._initializer, self._finalizer = initializer, finalizer
        self._waiting: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, fn: Callable[ArgsP, ResultT], /, *args: ArgsP.args, **kwargs: ArgsP.kwargs
    ) -> Future[ResultT]:
        """Asks for a call."""
        future: Future[ResultT] = Future()
        self._waiting.put((future, partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the threads.

        Args:
            wait: For all that was asked for; else only for what is being done, and not for long.
            cancel_futures: Give up what is not begun.
        """
        if cancel_futures:
            with suppress(Empty):
                while True:
                    if (item := self._waiting.get_nowait()) is not None:
                        item[0].cancel()
        for _ in self._threads:
            self._waiting.put(None)
        until = time.monotonic() + _PATIENCE_S
        for thread in self._threads:
            # A thread inside torch must not meet the end of the interpreter: that would abort it.
            thread.join(None if wait else max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        broken: BaseException | None = None
        try:
            self._initializer()
        except Exception as error:
            broken = error
        while (item := self._waiting.get()) is not None:
            future, call = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                if broken is not None:
                    raise BrokenExecutor(f"a worker did not start: {broken}") from broken
                result = call()
            except BaseException as error:
                # Whoever waits for the result gets it.
                future.set_exception(error)
            else:
                future.set_result(result)
        if broken is None:
            self._finalizer()
