"""Telling never waits, and what was told gets into the journal."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.tracking.entries import Entry
from pipeline.tracking.journal import Journal
from pipeline.tracking.recorder import Recorder


class Bell:
    """Counts how often the courier is woken."""

    def __init__(self) -> None:
        self.rung = 0

    def notify(self) -> None:
        self.rung += 1


class BlockedJournal(Journal):
    """A journal on a disk that hangs until it is let go."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir)
        self.free = threading.Event()

    def extend(self, entries: object) -> int:
        self.free.wait(30)
        return super().extend(entries)  # type: ignore[arg-type]


class FullDisk(Journal):
    """A journal on a disk that is full for a while."""

    full = True

    def extend(self, entries: object) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().extend(entries)  # type: ignore[arg-type]


def entry(number: int) -> Entry:
    return {"kind": "metrics", "n": number, "step": number, "time_ms": 7, "values": {}}


def test_entries_and_functions_are_written_in_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal, bell = Journal(tmp_path), Bell()
    recorder = Recorder(journal, bell)  # type: ignore[arg-type]

    def more() -> Iterator[Entry]:
        yield entry(1)
        yield entry(2)

    def broken() -> Iterator[Entry]:
        raise ValueError("no such thing")

    recorder.tell(entry(0))
    for work in (more, broken, broken, more):
        recorder.tell_later(work)
    recorder.close(lambda: [entry(3)], 10)
    assert [each["n"] for each, _ in journal.pending()] == [0, 1, 2, 1, 2, 3]
    assert bell.rung >= 1
    assert caplog.text.count("no such thing") == 1
    assert "could not be written" not in caplog.text


def test_numbers_do_not_wait_for_pictures(tmp_path: Path) -> None:
    journal, drawn = Journal(tmp_path), threading.Event()
    recorder = Recorder(journal, Bell())  # type: ignore[arg-type]

    def draw() -> list[Entry]:
        assert drawn.wait(30)
        return [entry(0)]

    recorder.tell_later(draw)
    recorder.tell(entry(1))
    until = time.monotonic() + 20
    while not list(journal.pending()) and time.monotonic() < until:
        time.sleep(0.01)
    assert [each["n"] for each, _ in journal.pending()] == [1]
    drawn.set()
    recorder.close(lambda: [], 20)
    assert [each["n"] for each, _ in journal.pending()] == [1, 0]


def test_a_disk_that_hangs_does_not_make_training_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = BlockedJournal(tmp_path)
    recorder = Recorder(journal, Bell(), places=10)  # type: ignore[arg-type]
    for number in range(1_000):
        recorder.tell(entry(number))
    # All were taken or counted while nothing could be written.
    assert list(journal.pending()) == []
    assert caplog.text.count("does not keep up") == 1
    journal.free.set()
    recorder.close(lambda: [], 10)
    written = [each["n"] for each, _ in journal.pending()]
    assert 10 <= len(written) < 1_000
    assert written == sorted(written)
    assert "could not be written in time" in caplog.text


def test_a_full_disk_loses_nothing_when_there_is_room_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = FullDisk(tmp_path)
    recorder = Recorder(journal, Bell())  # type: ignore[arg-type]
    for number in range(20):
        recorder.tell(entry(number))
    until = time.monotonic() + 20
    while "cannot be written" not in caplog.text and time.monotonic() < until:
        time.sleep(0.01)
    assert "No space left on device" in caplog.text
    journal.full = False
    recorder.close(lambda: [], 20)
    assert [each["n"] for each, _ in journal.pending()] == list(range(20))
