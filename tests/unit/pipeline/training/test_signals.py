"""Requests to stop: noted while a run goes on, and taken while the main thread is busy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.training.signals import STOP_SIGNALS, Listener, StopRequest
from tests.support.training_run import ROOT

SOON_S = 20.0


def until_requested(stop: StopRequest) -> bool:
    deadline = time.monotonic() + SOON_S
    while not stop.requested and time.monotonic() < deadline:
        time.sleep(0.01)
    return stop.requested


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_request_is_noted_between_the_first_and_the_last_step(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    try:
        with StopRequest() as stop:
            stop.run_begins()
            assert not stop.requested
            os.kill(os.getpid(), number)
            assert until_requested(stop)
            os.kill(os.getpid(), number)
        # On the way out another one must not kill.
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        for each in STOP_SIGNALS:
            signal.signal(each, before)


def test_after_the_last_step_it_comes_too_late_and_all_is_as_before() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopRequest() as stop:
        stop.run_begins()
        stop.run_ended()
        heard = threading.Event()
        stop.listener.on(signal.SIGUSR2, heard.set)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert heard.wait(SOON_S)
        assert not stop.requested
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_a_signal_is_heard_while_the_main_thread_is_in_native_code() -> None:
    """SIGUSR2 opens the gate for which the main thread waits where Python runs no handlers."""
    gate, opened = threading.Lock(), threading.Event()
    gate.acquire()
    with Listener() as listener:
        listener.on(signal.SIGUSR2, lambda: (opened.set(), gate.release()))  # type: ignore[arg-type]
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR2)).start()
        assert gate.acquire(timeout=SOON_S)
    assert opened.is_set()


_STARTING = """
import ctypes, sys
from pipeline.training.signals import StopRequest
with StopRequest():
    print("starting", flush=True)
    while True:  # a signal ends a native sleep early
        ctypes.CDLL(None).sleep(60)
"""


def test_before_the_first_step_the_process_ends_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _STARTING],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "starting\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=SOON_S)
    assert process.returncode == 75
    assert said == "error: asked to stop before the first step; nothing is lost\n"
