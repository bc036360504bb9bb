"""Images that would take too long, and decoders that die: the image is given up, nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
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


def test_a_blocked_decoder_is_ended_by_wall_time() -> None:
    store_image(png(1), "a.png", ImagePolicy())
    blocked = helper()
    ended: list[Rejected] = []

    def store() -> None:
        try:
            store_image(large, "a.png", ImagePolicy(time_limit_s=0.05))
        except Rejected as rejected:
            ended.append(rejected)

    sink = BytesIO()
    Image.effect_noise((1000, 1000), 50).save(sink, "PNG")
    large = sink.getvalue()
    worker = threading.Thread(target=store)
    worker.start()
    # Whatever it did in time, it does nothing more; stopping it costs it no CPU time.
    blocked.suspend()
    worker.join(0.2)
    blocked.resume()
    worker.join(30)
    assert not worker.is_alive()
    assert all(rejected.reason == Reason.TIMED_OUT for rejected in ended)


@pytest.mark.parametrize("ending", [signal.SIGSEGV, signal.SIGKILL])
def test_a_dead_decoder_costs_one_image(ending: signal.Signals) -> None:
    store_image(png(1), "a.png", ImagePolicy())
    os.kill(helper().pid, ending)
    with pytest.raises(Rejected) as caught:
        store_image(png(1), "a.png", ImagePolicy())
    assert caught.value.reason == Reason.CORRUPT_IMAGE
    assert caught.value.detail == f"a.png: its decoder ended with status {-ending}"
    assert store_image(png(1), "a.png", ImagePolicy()).facts.width == 48


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
    gone = time.monotonic() + 20
    while psutil.pid_exists(int(done.stdout)) and time.monotonic() < gone:
        time.sleep(0.05)
    assert not psutil.pid_exists(int(done.stdout))
