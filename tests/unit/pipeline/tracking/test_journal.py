"""The journal keeps every entry until it was delivered, whatever dies in between."""

from pathlib import Path

from pipeline.tracking.journal import Journal


def test_entries_are_read_on_from_the_delivered_position(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for number in range(3):
        journal.append({"kind": "metrics", "n": number})
    pending = list(journal.pending())
    assert [entry["n"] for entry, _ in pending] == [0, 1, 2]
    journal.mark_delivered(pending[1][1])
    again = Journal(tmp_path)
    assert [entry["n"] for entry, _ in again.pending()] == [2]
    again.append({"kind": "metrics", "n": 3})
    assert [entry["n"] for entry, _ in journal.pending()] == [2, 3]


def test_half_a_line_of_a_killed_process_is_dropped(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append({"n": 0})
    with journal.path.open("a") as stream:
        stream.write('{"n": 1, "val')
    assert [entry["n"] for entry, _ in journal.pending()] == [0]
    again = Journal(tmp_path)
    again.append({"n": 2})
    assert [entry["n"] for entry, _ in again.pending()] == [0, 2]


def test_refused_entries_are_kept_with_their_reason(tmp_path: Path) -> None:
    Journal(tmp_path).refuse({"n": 5}, "too long")
    kept = (tmp_path / "tracking" / "refused.jsonl").read_text()
    assert '"n": 5' in kept
    assert "too long" in kept
