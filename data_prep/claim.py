"""One run at a time in a dataset folder, also when the folder is shared by machines.

A lock on a file (flock) tells runs on one machine apart, and lets go of a killed one at once. It
may mean nothing between machines that share the folder over a network, so the run that writes also
leaves its name and a beat there. A run on another machine that finds a beating name keeps out; one
that takes over a silent name changes it, and whoever was named before stops at its next file.

Tasks of a killed run can outlive it on other nodes. They only ever write into the run's own staging
folder, and only a run that still holds the claim gives their files a final name: what such a task
finishes later changes nothing.
"""

import errno
import fcntl
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from data_prep.errors import DataError
from data_prep.fields import canonical_json
from data_prep.files import not_writable, remove_temporaries, write_whole

LEDGER = ".ledger"
"""Folder beside the shards that remembers what each was made from, and who writes."""
BEAT_S = 3.0
"""Seconds between two beats of a run that writes."""
SILENCE_S = 15.0
"""Seconds without a beat after which a run on another machine counts as dead."""

_OWNER = "owner"
_BEAT = "beat"
_STAGING = "run-"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Claim:
    """What one run may do in a dataset folder.

    Attributes:
        folder: Folder of the dataset.
        run: Random name of this run.
        staging: Where its tasks put finished shards until the run gives them their names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = uuid.uuid4().hex
        self.staging = folder / LEDGER / f"{_STAGING}{self.run}"
        self._begun = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claim", daemon=True)

    def begin(self) -> None:
        """Takes the folder for this run and clears what earlier ones left; once is enough.

        Raises:
            DataError: The folder cannot be written.
        """
        if self._begun:
            return
        ledger = self.folder / LEDGER
        owner = {"run": self.run, "kernel": _kernel(), "host": socket.gethostname()}
        write_whole(ledger / _OWNER, canonical_json({**owner, "pid": os.getpid()}))
        self._begun = True
        remove_temporaries(self.folder)
        remove_temporaries(ledger)
        for left in ledger.glob(f"{_STAGING}*"):
            # A task that outlived its run may be adding to it: the next run tries again.
            shutil.rmtree(left, ignore_errors=True)
        try:
            self.staging.mkdir()
        except OSError as error:
            raise not_writable(self.staging, error) from error
        self._thread.start()

    def check(self) -> None:
        """Has to be called before a file gets its final name.

        Raises:
            DataError: Another run took the folder over, or the folder is gone.
        """
        try:
            owner = _owner(self.folder)
        except OSError as error:
            raise not_writable(self.folder, error) from error
        if owner.get("run") != self.run:
            if not self.folder.is_dir():
                raise DataError(f"{self.folder} is gone: it was removed while it was written")
            raise DataError(
                f"{self.folder}: another preparation ({_called(owner)}) took over, this one stops"
            )

    def release(self) -> None:
        """Lets go of the folder; what is staged and has no name yet is dropped."""
        self._ended.set()
        if not self._begun:
            return
        if self._thread.is_alive():
            self._thread.join()
        shutil.rmtree(self.staging, ignore_errors=True)
        # Called on the way out of errors, where a folder that is gone or read-only is no news.
        with suppress(OSError):
            if _owner(self.folder).get("run") == self.run:
                (self.folder / LEDGER / _OWNER).unlink()

    def _beat(self) -> None:
        count = 0
        while True:
            count += 1
            # Whoever took over has removed the folder; check() tells, before anything is named.
            with suppress(OSError):
                (self.staging / _BEAT).write_text(str(count))
            if self._ended.wait(BEAT_S):
                return


@contextmanager
def locked(folder: Path) -> Iterator[Claim]:
    """Keeps a dataset folder for one run; a run that is killed lets go of it.

    Yields:
        The claim. Nothing is changed in the folder until its begin() is called.

    Raises:
        DataError: Another run is writing there, or the folder cannot be made.
    """
    try:
        (folder / LEDGER).mkdir(parents=True, exist_ok=True)
        lock = (folder / LEDGER / "lock").open("ab")
    except OSError as error:
        raise not_writable(folder, error) from error
    with lock:
        decisive = _lock(lock, folder)
        _keep_out(folder, decisive)
        claim = Claim(folder)
        try:
            yield claim
        finally:
            claim.release()


def _lock(lock: IO[bytes], folder: Path) -> bool:
    """Takes the lock; False where the file system knows no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(f"{folder}: another preparation is writing there") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise not_writable(folder, error) from error
        return False
    return True


def _keep_out(folder: Path, decisive: bool) -> None:
    """Raises DataError when a run that the lock says nothing of is writing there."""
    try:
        owner = _owner(folder)
    except OSError as error:
        raise not_writable(folder, error) from error
    if not owner or (decisive and owner.get("kernel") == _kernel()):
        return
    beat = folder / LEDGER / f"{_STAGING}{owner.get('run')}" / _BEAT
    first = _content(beat)
    until = time.monotonic() + SILENCE_S
    while first is not None and time.monotonic() < until:
        # Counted and not compared with a clock: the clocks of two machines differ.
        if _content(beat) != first:
            raise DataError(f"{folder}: another preparation ({_called(owner)}) is writing there")
        time.sleep(min(BEAT_S, SILENCE_S) / 3)


def _owner(folder: Path) -> dict[str, Any]:
    """Who wrote there last, {} for nobody; OSError when that cannot be read."""
    content = _content(folder / LEDGER / _OWNER)
    try:
        owner = json.loads(content or b"{}")
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _called(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid')} on {owner.get('host')}" if owner else "unknown"


def _kernel() -> str:
    """One name for all that shares this machine's locks, containers included."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
