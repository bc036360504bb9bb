"""Images that would take too long, and decoders that die: the image is given up, nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from io import BytesIO

import psutil
import pytest
from PIL import Image

from data_prep.config import ImagePolicy
from data_prep.images import store_image
from data_prep.images.isolation import ISOLATION
from data_prep.quarantine import Reason, Rejected
from tests.support.odd_images import many_scans
from tests.support.raw_data import jpeg


def png(seed: int) -> bytes:
    sink = BytesIO()
    Image.open(BytesIO(jpeg(seed))).save(sink, "PNG")
    return sink.getvalue()


def helper() -> psutil.Process:
    """The running helper process."""
    assert ISOLATION.pid is not None
    return psutil.Process(ISOLATION.pid)


def test_a_jpeg_of_too_many_scans_is_given_up_in_time() -> None:
    # Pillow alone takes more than twenty seconds for it, most of them within single calls.
    slow = many_scans(4_000, 20_000)
    assert len(slow) < 1_000_000
    began = time.monotonic()
    with pytest.raises(Rejected) as caught:
        store_image(slow, "slow.jpg", ImagePolicy(time_limit_s=0.5))
    assert caught.value.reason == Reason.TIMED_OUT
    assert caught.value.detail == "slow.jpg: not decoded within 0.5 s"
    assert time.monotonic() - began < 20
    # The next image finds a new helper.
    assert store_image(png(1), "a.png", ImagePolicy()).facts.width == 48


def test_a_progressive_jpeg_of_ordinary_scans_is_decoded_here() -> None:
    ISOLATION.stop()
    assert store_image(many_scans(1_600, 10), "a.jpg", ImagePolicy()).facts.width == 512
    assert ISOLATION.pid is None


def test_one_helper_serves_many_images() -> None:
    store_image(png(1), "a.png", ImagePolicy())
    first = helper()
    for seed in range(5):
        store_image(png(seed), "a.png", ImagePolicy())
    assert helper() == first


def test_a_process_that_only_waits_is_ended_as_well() -> None:
    program = (
        "import time; from data_prep.images.isolation import set_timers\n"
        "set_timers(0.05); time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=50, check=False)
    assert done.returncode == -signal.SIGALRM


class Interrupted(Exception):
    pass


def test_an_interrupted_image_leaves_no_answer_for_the_next() -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    store_image(png(1), "a.png", ImagePolicy())
    slow = many_scans(4_000, 20_000)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(Interrupted):
            store_image(slow, "slow.jpg", ImagePolicy(time_limit_s=60))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert store_image(png(1), "a.png", ImagePolicy()).facts.name == "a.png"


@pytest.mark.parametrize("ending", [signal.SIGSEGV, signal.SIGKILL])
def test_a_dead_decoder_costs_one_image(ending: signal.Signals) -> None:
    store_image(png(1), "a.png", ImagePolicy())
    os.kill(helper().pid, ending)
    with pytest.raises(Rejected) as caught:
        store_image(png(1), "a.png", ImagePolicy())
    assert caught.value.reason == Reason.CORRUPT_IMAGE
    assert caught.value.detail == f"a.png: its decoder ended with status {-ending}"
    assert store_image(png(1), "a.png", ImagePolicy()).facts.width == 48


def test_a_helper_that_ended_by_itself_costs_no_image() -> None:
    store_image(png(1), "a.png", ImagePolicy())
    ended = helper()
    # As when its pipe is closed: it finds the end of its requests.
    process = ISOLATION._process
    assert process is not None
    assert process.stdin is not None
    os.dup2(os.open(os.devnull, os.O_WRONLY), process.stdin.fileno())
    ended.wait(30)
    assert process.wait(30) == 0
    assert store_image(png(1), "a.png", ImagePolicy()).facts.width == 48
    assert helper() != ended


_OWNER = """
import os, signal, sys
from data_prep.config import ImagePolicy
from data_prep.images import store_image
from data_prep.images.isolation import ISOLATION
store_image(sys.stdin.buffer.read(), "a.png", ImagePolicy())
print(ISOLATION.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_helper_ends_with_its_owner() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _OWNER],
        input=png(1),
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while not ended(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended(int(done.stdout))


def ended(pid: int) -> bool:
    """Whether nothing of a process runs; where nobody waits for orphans its entry may stay."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
