"""JSON that others wrote: a value is taken by name and type, or the error says where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn, TypeVar

from model.errors import CheckpointError

_T = TypeVar("_T", bool, int, str)


class Record:
    """One object of a JSON file, with its place in the file."""

    def __init__(self, values: object, file: Path, place: str = "") -> None:
        """Takes a value that must be an object.

        Raises:
            CheckpointError: it is not.
        """
        if not isinstance(values, dict):
            raise CheckpointError(f"{file}: {place or 'the file'} must be an object")
        self.values: dict[str, object] = values
        self.file = file
        self.place = place

    @classmethod
    def from_file(cls, file: Path) -> Record:
        """Read a file.

        Raises:
            CheckpointError: it is missing, or holds no JSON object.
        """
        try:
            return cls(json.loads(file.read_text(encoding="utf-8")), file)
        except FileNotFoundError as error:
            raise CheckpointError(f"{file} is missing") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} is not readable JSON: {error}") from error

    def fail(self, name: str, problem: str) -> NoReturn:
        """Raise CheckpointError for a value of this record."""
        raise CheckpointError(f"{self.file}: {self._place(name)} {problem}")

    def take(self, name: str, kind: type[_T], default: _T | None = None) -> _T:
        """Return a truth value, an integer or a text; without a default it must be there."""
        value = self.values.get(name, default)
        if value is None:
            self.fail(name, "is missing")
        # JSON's true is no number, though Python's is.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.fail(name, f"must be of type {kind.__name__}, not {value!r:.40}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number."""
        value = self.values.get(name, default)
        if value is None:
            self.fail(name, "is missing")
        if not isinstance(value, int | float) or isinstance(value, bool):
            self.fail(name, f"must be a number, not {value!r:.40}")
        return float(value)

    def integers(self, name: str) -> list[int]:
        """Return a list of integers."""
        return [n for n in self._list(name, int, "integers") if isinstance(n, int)]

    def numbers(self, name: str) -> list[float]:
        """Return a list of numbers."""
        return [
            float(n)
            for n in self._list(name, (int, float), "numbers")
            if isinstance(n, int | float)
        ]

    def texts(self, name: str) -> list[str]:
        """Return a list of texts."""
        return [str(text) for text in self._list(name, str, "texts")]

    def child(self, name: str) -> Record:
        """Return an object in this one."""
        if name not in self.values:
            self.fail(name, "is missing")
        return Record(self.values[name], self.file, self._place(name))

    def children(self) -> dict[str, Record]:
        """Return all values of this object, each of which must be an object."""
        return {name: self.child(name) for name in self.values}

    def rows(self, name: str) -> list[list[Record]]:
        """Return a list of lists of objects."""
        rows = self._list(name, list, "lists")
        return [
            [
                Record(value, self.file, f"{self._place(name)}[{i}][{k}]")
                for k, value in enumerate(r)
            ]
            for i, r in enumerate(rows)
            if isinstance(r, list)
        ]

    def known(self, *names: str) -> None:
        """Refuse values of any other name: what isn't understood would go unchecked."""
        for name in self.values:
            if name not in names:
                self.fail(name, f"is not known here; known are {', '.join(names)}")

    def _list(self, name: str, kind: type | tuple[type, ...], wanted: str) -> list[object]:
        values = self.values.get(name)
        right = isinstance(values, list) and all(
            isinstance(value, kind) and not isinstance(value, bool) for value in values
        )
        if not isinstance(values, list) or not right:
            self.fail(name, f"must be a list of {wanted}")
        return values

    def _place(self, name: str) -> str:
        return f"{self.place}.{name}" if self.place else name
