"""Lists of a JSON object, row by row, without holding the file.

Only the outermost object and its lists are walked here; each row is decoded by the standard
library's decoder over a window of the text. The streaming parsers that were measured against it
turn a lone surrogate silently into a question mark, give up on a whole file for one number that is
out of range, and need memory that grows with the square of the nesting: a hundred kilobytes of
brackets would take gigabytes.
"""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from data_prep.errors import DataError
from data_prep.readers.inputs import opened

CHUNK_BYTES = 1 << 20
"""Bytes that are read at once."""
MAX_VALUE_CHARS = 1 << 25
"""A single row may not be longer: it would have to be held whole."""

_BLANKS = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_NUMBER_PARTS = tuple("0123456789.eE+-")
_NUMBER_CHARS = 64
"""Characters behind a number after which it cannot be the window that cut it."""


def stream_lists(location: str, names: Sequence[str]) -> Iterator[tuple[str, int, Any]]:
    """Walks over a JSON object's lists.

    Args:
        location: The file; gzip when it ends in .gz.
        names: Lists that are wanted. All of them have to be there.

    Yields:
        Name of the list, place of the row in it, and the row, in the order of the file.

    Raises:
        DataError: The file cannot be read, is not a JSON object, or lacks a list. Rows that come
            before the damage are given out first.
    """
    found = set()
    with opened(location) as file:
        window = _Window(file)
        try:
            if window.peek() != "{":
                raise DataError(f"{location}: expected a JSON object; is this the right file?")
            for key in _keys(window):
                if key in names and window.peek() == "[":
                    found.add(key)
                    for number, row in enumerate(_elements(window)):
                        yield key, number, row
                else:
                    _skip(window)
            if window.peek():
                raise ValueError("something follows the end of the object")
        except (ValueError, RecursionError) as error:
            raise DataError(f"{location} is not valid JSON: {error}") from error
    for name in names:
        if name not in found:
            raise DataError(f"{location}: expected a list {name!r}; is this the right file?")


class _Window:
    """The part of a file's text that is being looked at."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._ended = "", 0, False

    def _read_more(self) -> None:
        pending = self._text[self._at :]
        # At least as much as is pending, so that a long row is not decoded again too often.
        chunk = self._file.read(max(CHUNK_BYTES, len(pending)))
        self._ended = not chunk
        self._text = pending + self._decoder.decode(chunk, final=self._ended)
        self._at = 0

    def peek(self) -> str:
        """The next character that is not blank, '' at the end of the file."""
        while True:
            blanks = _BLANKS.match(self._text, self._at)
            self._at = blanks.end() if blanks else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read_more()

    def take(self, allowed: str) -> str:
        """Goes over the next character; ValueError when it is none of the allowed ones."""
        found = self.peek()
        if not found or found not in allowed:
            raise ValueError(
                f"expected one of {' '.join(allowed)}, found {found or 'the end of the file'}"
            )
        self._at += 1
        return found

    def value(self) -> Any:
        """Goes over the next value and returns it; ValueError when there is none."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except ValueError:
                if self._ended:
                    raise
            else:
                # A number may go on behind the window: '0.' begins with the whole number 0.
                rest = self._text[end : end + _NUMBER_CHARS]
                if (rest or self._ended) and not rest.startswith(_NUMBER_PARTS):
                    self._at = end
                    return value
                if self._ended or len(rest) == _NUMBER_CHARS:
                    raise ValueError("a number is malformed")
            if len(self._text) - self._at > MAX_VALUE_CHARS:
                raise ValueError(f"no value ends within {MAX_VALUE_CHARS} characters")
            self._read_more()


def _keys(window: _Window) -> Iterator[str]:
    """Keys of the object that begins here; whoever takes one goes over its value."""
    window.take("{")
    if window.peek() == "}":
        window.take("}")
        return
    while True:
        key = window.value()
        if not isinstance(key, str):
            raise ValueError(f"a key is {key!r:.80}")
        window.take(":")
        yield key
        if window.take(",}") == "}":
            return


def _elements(window: _Window) -> Iterator[Any]:
    window.take("[")
    if window.peek() == "]":
        window.take("]")
        return
    while True:
        yield window.value()
        if window.take(",]") == "]":
            return


def _skip(window: _Window) -> None:
    """Goes over a value that nobody wants, in pieces: it may be as long as the file."""
    begin = window.peek()
    if begin == "[":
        for _ in _elements(window):
            pass
    elif begin == "{":
        for _ in _keys(window):
            window.value()
    else:
        window.value()
