"""The journal keeps every entry until it was delivered, whatever dies in between."""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.tracking.entries import Entry
from pipeline.tracking.journal import Journal

ROOT = Path(__file__).resolve().parents[4]


def metrics(number: int) -> Entry:
    return {"kind": "metrics", "n": number, "step": number, "time_ms": 7, "values": {}}


def numbers(journal: Journal) -> list[int]:
    return [entry["n"] for entry, _ in journal.pending()]


def test_entries_are_read_on_from_the_delivered_place(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for number in range(3):
        journal.append(metrics(number))
    pending = list(journal.pending())
    assert [entry["n"] for entry, _ in pending] == [0, 1, 2]
    journal.mark_delivered(pending[1][1])
    again = Journal(tmp_path)
    assert numbers(again) == [2]
    again.append(metrics(3))
    assert numbers(journal) == [2, 3]
    assert [entry["n"] for entry in journal.entries()] == [0, 1, 2, 3]


def test_half_a_line_of_a_killed_process_is_dropped(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(metrics(0))
    with next(journal.folder.glob("journal-*")).open("a") as stream:
        stream.write('{"kind": "metrics", "n": 1, "step": 1, "val')
    assert numbers(journal) == [0]
    again = Journal(tmp_path)
    again.append(metrics(2))
    assert numbers(again) == [0, 2]


@pytest.mark.parametrize("position", ["", "{", '{"segment": 1}', '{"position": 7}', "[]"])
def test_a_damaged_position_delivers_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, position: str
) -> None:
    journal = Journal(tmp_path)
    journal.append(metrics(0))
    (journal.folder / "delivered.json").write_text(position)
    assert numbers(journal) == [0]
    assert "delivered again" in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe garbage",
        b"[1, 2]",
        b'{"n": 1}',
        b"{",
        b"",
        b'{"kind": "metrics", "n": 1}',
        b'{"kind": "tags", "values": 7}',
    ],
)
def test_a_damaged_line_is_told_apart_and_the_rest_is_read(tmp_path: Path, line: bytes) -> None:
    journal = Journal(tmp_path)
    journal.append(metrics(0))
    with next(journal.folder.glob("journal-*")).open("ab") as stream:
        stream.write(line + b"\n")
    journal.append(metrics(1))
    kinds = [entry["kind"] for entry, _ in journal.pending()]
    assert kinds == ["metrics", "unreadable", "metrics"]


def test_refused_entries_are_kept_with_their_reason(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.refused == 0
    journal.refuse({"n": 5}, "too long")
    kept = (tmp_path / "tracking" / "refused.jsonl").read_text()
    assert '"n": 5' in kept
    assert "too long" in kept
    assert journal.refused == 1


def test_a_full_journal_says_so_counts_and_keeps_what_matters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, limit_mb=0.01)
    taken = sum(journal.append(metrics(number)) for number in range(400))
    assert 100 < taken < 400
    assert journal.append({"kind": "end", "n": -1, "status": "FINISHED", "time_ms": 7})
    assert journal.lost == {"metrics": 400 - taken}
    assert numbers(journal) == [*range(taken), -1]
    assert caplog.text.count("is full") == 1
    # What was delivered makes room again.
    for _, place in journal.pending():
        last = place
    journal.mark_delivered(last)
    assert journal.append(metrics(400))
    assert numbers(journal) == [400]
    size = sum(path.stat().st_size for path in journal.folder.glob("journal-*"))
    assert size < 10_500


def test_files_are_copied_and_let_go_when_delivered(tmp_path: Path) -> None:
    journal = Journal(tmp_path, limit_mb=0.01)
    picture = tmp_path / "curves.png"
    for content in (b"first", b"second"):
        picture.write_bytes(content)
        journal.append({"kind": "artifact", "path": str(picture), "to": None})
    picture.unlink()
    entries = list(journal.pending())
    copies = [tmp_path / entry["path"] for entry, _ in entries]
    assert [copy.read_bytes() for copy in copies] == [b"first", b"second"]
    assert {copy.name for copy in copies} == {"curves.png"}
    journal.mark_delivered(entries[0][1])
    journal.forget_files()
    assert copies[1].is_file()
    journal.mark_delivered(entries[1][1])
    journal.forget_files()
    assert not copies[1].exists()
    picture.write_bytes(b"x" * 20_000)
    assert not journal.append({"kind": "artifact", "path": str(picture), "to": "pictures"})
    assert journal.lost == {"artifact": 1}
    assert journal.append({"kind": "artifact", "path": str(picture), "to": None})


def test_a_full_disk_leaves_whole_lines_and_takes_more_later(tmp_path: Path) -> None:
    """A limit on the size of files fails in the middle of a line, as a full disk does."""
    code = (
        "import sys\n"
        "from pipeline.tracking.journal import Journal\n"
        "journal = Journal(sys.argv[1])\n"
        "for number in range(100):\n"
        "    entry = {'kind': 'metrics', 'n': number, 'step': 0, 'time_ms': 7, 'values': {}}\n"
        "    try: journal.append(entry)\n"
        "    except OSError: sys.exit(number)\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        check=False,
        timeout=60,
        preexec_fn=limit,
    )
    written = done.returncode
    assert 10 < written < 30
    (segment,) = (tmp_path / "tracking").glob("journal-*")
    lines = segment.read_text().splitlines()
    assert [json.loads(line)["n"] for line in lines] == list(range(written))
    journal = Journal(tmp_path)
    journal.append(metrics(written))
    assert numbers(journal) == list(range(written + 1))


def test_two_processes_write_into_one_journal(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pipeline.tracking.journal import Journal\n"
        "journal = Journal(sys.argv[1])\n"
        "for number in range(300):\n"
        "    values = {'pad': 'x' * 500}\n"
        "    entry = {'kind': 'metrics', 'step': 0, 'time_ms': 7, 'values': values}\n"
        "    journal.append({**entry, 'n': number})\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    writers = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    assert sorted(numbers(Journal(tmp_path))) == sorted([*range(300), *range(300)])


def test_one_delivers_at_a_time(tmp_path: Path) -> None:
    first, second = Journal(tmp_path), Journal(tmp_path)
    with first.delivering() as mine, second.delivering() as theirs:
        assert mine
        assert not theirs
    with second.delivering() as free:
        assert free


def test_passwords_are_not_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path)
    with caplog.at_level(logging.DEBUG):
        journal.append({"kind": "params", "values": {"uri": "http://me:s3cret@host:5000/a"}})
        journal.refuse({"kind": "tags", "values": {"a": "b"}}, "http://me:s3cret@host refused")
    written = "".join(path.read_text() for path in journal.folder.iterdir() if path.is_file())
    assert "s3cret" not in written + caplog.text
    assert "http://me:***@host:5000/a" in written
