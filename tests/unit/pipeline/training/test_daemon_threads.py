"""A pool whose threads do not keep the process alive."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

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
