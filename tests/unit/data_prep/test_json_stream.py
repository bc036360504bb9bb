"""Streaming JSON: the same rows as reading it whole, whatever the chunks, and clear errors."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.errors import DataError
from data_prep.readers import json_stream
from data_prep.readers.json_stream import stream_lists

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def rows(path: Path, *names: str) -> list[tuple[str, int, Any]]:
    return list(stream_lists(str(path), names))


@settings(max_examples=60, deadline=None)
@given(
    wanted=st.lists(VALUES, max_size=6),
    other=VALUES,
    size=st.integers(1, 9),
    indent=st.none() | st.just(2),
    ascii_only=st.booleans(),
)
def test_any_chunks_give_the_rows_of_the_whole(
    wanted: list[Any], other: Any, size: int, indent: int | None, ascii_only: bool
) -> None:
    content = {"before": other, "rows": wanted, "after": [other], "none": None}
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(json_stream, "CHUNK_BYTES", size)
        path = Path(folder, "a.json")
        text = json.dumps(content, indent=indent, ensure_ascii=ascii_only)
        path.write_bytes(text.encode("utf-8", "surrogatepass" if ascii_only else "strict"))
        assert rows(path, "rows") == [("rows", i, row) for i, row in enumerate(wanted)]


def test_numbers_and_texts_out_of_range_are_the_rows_own(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"rows": [NaN, 1e999, 123456789012345678901234567890, "\\ud800", 1]}')
    found = [row for _, _, row in rows(path, "rows")]
    assert found[0] != found[0]
    assert found[1:] == [float("inf"), 123456789012345678901234567890, "\ud800", 1]


def test_packed_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b'{"rows": [1, 2]}'))
    assert [row for _, _, row in rows(path, "rows")] == [1, 2]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"a\.json\.gz cannot be read"):
        rows(path, "rows")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a JSON object"),
        (b"[]", "expected a JSON object"),
        (b'{"rows": [1, 2', "not valid JSON"),
        (b'{"rows": [1 2]}', "not valid JSON"),
        (b'{"rows": [1,]}', "not valid JSON"),
        (b'{"rows": [0.]}', "a number is malformed"),
        (b'{"rows": [1e, 2]}' + b" " * 100, "a number is malformed"),
        (b'{"rows": [1]} x', "follows the end"),
        (b'{"rows": [1], 3: 4}', "a key is 3"),
        (b'{"rows": ["\xff"]}', "not valid JSON"),
        (b'{"rows": {"a": 1}}', "expected a list 'rows'"),
        (b'{"lines": []}', "expected a list 'rows'"),
        (b'{"rows": ' + b"[" * 200_000, "not valid JSON"),
        (b'{"x": ' + b'{"a":' * 200_000, "not valid JSON"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        rows(path, "rows")
    assert "a.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_row_without_an_end_is_given_up_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", 16)
    monkeypatch.setattr(json_stream, "MAX_VALUE_CHARS", 100)
    path = tmp_path / "a.json"
    path.write_text('{"rows": ["' + "x" * 10_000)
    with pytest.raises(DataError, match="no value ends within 100 characters"):
        rows(path, "rows")
