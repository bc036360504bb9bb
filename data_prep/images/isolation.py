"""Decoding in a process that can be given up: for what may run long, or bring a decoder down.

No call into a C library can be ended from inside its process. So one helper process per worker
waits for images and, before each, sets the kernel's own timers to end it: of CPU time, so that a
busy machine makes no difference, and a generous one of wall time. When a timer fires, only the
helper dies, and the next image gets a new one. Its memory is bounded as well.
"""

import atexit
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from data_prep.config import ImagePolicy
from data_prep.images.decode import store_here
from data_prep.images.stored import StoredImage
from data_prep.quarantine import Reason, Rejected
from data_prep.schema import ImageFacts

MEMORY_BYTES = 4 * 2**30
"""Address space that an image may take: one at the highest bound, in every step of its way."""
_WALL_FACTOR = 20
"""Wall time that a second of CPU time may take on a busy machine."""
_LENGTHS = struct.Struct("<II")
_READY = b"ready"
_PROGRAM = """
import sys
sys.path[:0] = [{!r}]
from data_prep.images.isolation import serve
serve()
"""


class Isolation:
    """The helper process of this process; started when first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._one_at_a_time = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Process id of the helper that runs now."""
        return self._process.pid if self._process is not None else None

    def store(self, content: bytes, kind: str, name: str, policy: ImagePolicy) -> StoredImage:
        """Stores an image in the helper.

        Raises:
            Rejected: As decoding in this process would, or the image took longer than
                policy.time_limit_s or ended its decoder.
            RuntimeError: The helper does not start.
        """
        head = {"kind": kind, "name": name, "policy": asdict(policy)}
        with self._one_at_a_time:
            answered = self._ask(head, content)
            if answered == 0:
                # It ended by itself, as it does when its pipe is closed, not over this image.
                answered = self._ask(head, content)
        if isinstance(answered, int):
            raise _ended(answered, name, policy)
        answer, stored = answered
        if "reason" in answer:
            raise Rejected(Reason(answer["reason"]), answer["detail"])
        return StoredImage(
            content=content if answer["same"] else stored,
            facts=ImageFacts(**answer["facts"]),
            orientation=answer["orientation"],
        )

    def _ask(self, head: dict[str, Any], content: bytes) -> tuple[dict[str, Any], bytes] | int:
        """The helper's answer, or the status that it ended with instead."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _send(process.stdin, head, content)
            return _receive(process.stdout)
        except (BrokenPipeError, EOFError):
            self._process = None
            process.communicate()
            return process.returncode
        except BaseException:
            # Interrupted in between: what comes out of the pipe next belongs to this image.
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the helper, if there is one."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()

    def _running(self) -> subprocess.Popen[bytes]:
        # After a fork the pipes are the parent's.
        if self._process is None or self._owner != os.getpid():
            root = str(Path(__file__).parents[2])
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM.format(root)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Each thread of a linear algebra library takes its share of the address space.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
            self._owner = os.getpid()
            assert self._process.stdout is not None
            if self._process.stdout.read(len(_READY)) != _READY:
                self.stop()
                raise RuntimeError("the process that decodes images does not start")
        return self._process


def _ended(status: int, name: str, policy: ImagePolicy) -> Rejected:
    """What an image did to its decoder, which ended with a status."""
    if -status in (signal.SIGPROF, signal.SIGALRM):
        return Rejected(Reason.TIMED_OUT, f"{name}: not decoded within {policy.time_limit_s:g} s")
    return Rejected(Reason.CORRUPT_IMAGE, f"{name}: its decoder ended with status {status}")


ISOLATION = Isolation()
atexit.register(ISOLATION.stop)


def serve() -> None:
    """The helper: answers until its parent closes the pipe."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    limit = _address_space_bytes() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # An interrupt from the keyboard goes to the whole group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for ending in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(ending, signal.SIG_DFL)
    answers.write(_READY)
    answers.flush()
    # Libraries report damage there, and every case is reported already.
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    while True:
        try:
            head, content = _receive(requests)
        except EOFError:
            return
        policy = ImagePolicy(**head["policy"])
        set_timers(policy.time_limit_s)
        answer, stored = _answer(content, head["kind"], head["name"], policy)
        set_timers(0)
        _send(answers, answer, stored)


def _address_space_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


def set_timers(seconds: float) -> None:
    """Lets the kernel end this process after so much CPU time; 0 calls that off."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, _WALL_FACTOR * seconds)


def _answer(
    content: bytes, kind: str, name: str, policy: ImagePolicy
) -> tuple[dict[str, Any], bytes]:
    try:
        image = store_here(content, kind, name, policy)
    except Rejected as rejected:
        return {"reason": rejected.reason, "detail": rejected.detail}, b""
    same = image.content is content
    answer = {"facts": vars(image.facts), "orientation": image.orientation, "same": same}
    return answer, b"" if same else image.content


def _send(pipe: IO[bytes], head: dict[str, Any], content: bytes) -> None:
    # Names may hold what UTF-8 cannot; JSON in ASCII carries them as they are.
    text = json.dumps(head).encode("ascii")
    pipe.write(_LENGTHS.pack(len(text), len(content)) + text)
    pipe.write(content)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    lengths = _exactly(pipe, _LENGTHS.size)
    text, content = (_exactly(pipe, length) for length in _LENGTHS.unpack(lengths))
    return json.loads(text), content


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    content = pipe.read(count)
    if len(content) != count:
        raise EOFError
    return content
