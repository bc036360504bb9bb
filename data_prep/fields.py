"""Strict reading of JSON records: a wrong field is named by its dotted path, never guessed."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from data_prep.errors import DataError


class JsonFields:
    """A JSON object read field by field; every complaint names the dotted path of the field."""

    def __init__(self, record: object, where: str, names: frozenset[str]) -> None:
        if not isinstance(record, Mapping):
            raise DataError(f"{where}: expected an object, found {type(record).__name__}")
        self._record, self._where = record, where
        if record.keys() != names:
            missing, unknown = sorted(names - record.keys()), sorted(record.keys() - names)
            raise DataError(f"{where}: missing fields {missing}, unknown fields {unknown}")

    def _wrong(self, name: str, wanted: str) -> DataError:
        return DataError(
            f"{self._where}.{name}: expected {wanted}, found {self._record[name]!r:.80}"
        )

    def text(self, name: str) -> str:
        """A field that is text."""
        value = self._record[name]
        if not isinstance(value, str) or not writable(value):
            raise self._wrong(name, "text")
        return value

    def text_or_none(self, name: str) -> str | None:
        """A field that is text or null."""
        return None if self._record[name] is None else self.text(name)

    def integer(self, name: str) -> int:
        """A field that is an integer."""
        value = self._record[name]
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(name, "an integer")
        if not -(2**63) <= value < 2**63:
            raise self._wrong(name, "an integer of 64 bits")
        return value

    def number(self, name: str) -> float:
        """A field that is a number."""
        value = self._record[name]
        if not is_number(value):
            raise self._wrong(name, "a number")
        return float(value)

    def items(self, name: str) -> list[Any]:
        """A field that is a list."""
        value = self._record[name]
        if not isinstance(value, list):
            raise self._wrong(name, "a list")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """A field that is an object."""
        value = self._record[name]
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return value

    def counts(self, name: str) -> dict[str, int]:
        """A field that is an object of counts, which are never negative."""
        value = self.mapping(name)
        if not all(type(count) is int and 0 <= count < 2**63 for count in value.values()):
            raise self._wrong(name, "an object of counts")
        return value


def writable(text: str) -> bool:
    """Whether UTF-8 can hold a text: JSON can escape lone surrogates, which no file takes."""
    try:
        return text.isascii() or bool(text.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def is_number(value: object) -> bool:
    """Whether a value from JSON is a number that float64 can hold."""
    if isinstance(value, int):
        # JSON sets no bound to integers, and float() fails on the largest.
        return not isinstance(value, bool) and abs(value) < 2**1023
    return isinstance(value, float)


def field_names(cls: Any, *extra: str) -> frozenset[str]:
    """The names that the JSON object of a dataclass has: its fields, and what is added to them."""
    return frozenset(field.name for field in dataclasses.fields(cls)).union(extra)


def load_object(record: bytes | str | Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A JSON object from its text, or as json.loads gave it; DataError when it is none."""
    if isinstance(record, bytes | str):
        try:
            record = json.loads(record)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: expected an object, found {type(record).__name__}")
    return record


def canonical_json(record: object) -> bytes:
    """One byte string for one value: sorted keys, no blanks, UTF-8, no NaN."""
    return json.dumps(
        record, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
    ).encode("utf-8")
