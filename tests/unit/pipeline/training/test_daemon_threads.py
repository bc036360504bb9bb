"""A pool whose threads do not keep the process alive."""

from __future__ import annotations

import threading
from concurrent.futures import BrokenExecutor, CancelledError

import pytest

from pipeline.training.daemon_threads import DaemonThreads


def test_results_and_errors_come_back() -> None:
    pool = DaemonThreads(2, "test")
    assert [pool.submit(pow, 2, n).result(10) for n in range(5)] == [1, 2, 4, 8, 16]
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result(10)
    pool.shutdown()


def test_what_was_begun_ends_and_what_was_not_is_cancelled() -> None:
    pool = DaemonThreads(1, "test")
    begun, go_on = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        go_on.wait(10)
        return "done"

    first, second = pool.submit(work), pool.submit(pow, 2, 3)
    assert begun.wait(10)
    threading.Timer(0.1, go_on.set).start()
    pool.shutdown(wait=False, cancel_futures=True)
    assert first.result(0) == "done"
    with pytest.raises(CancelledError):
        second.result(0)
    assert not [thread for thread in threading.enumerate() if thread.name == "test-0"]


def test_each_thread_begins_and_ends_with_what_it_is_told() -> None:
    said: list[str] = []
    pool = DaemonThreads(2, "test", lambda: said.append("first"), lambda: said.append("last"))
    assert pool.submit(pow, 2, 3).result(10) == 8
    pool.shutdown()
    assert sorted(said) == ["first", "first", "last", "last"]


def test_a_thread_that_cannot_begin_is_said_to_who_waits() -> None:
    def fail() -> None:
        raise OSError("no room")

    pool = DaemonThreads(1, "test", fail)
    with pytest.raises(BrokenExecutor, match="did not start: no room"):
        pool.submit(pow, 2, 3).result(10)
    pool.shutdown()
