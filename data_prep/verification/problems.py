"""What is wrong with a dataset, as a list that garbage cannot make endless."""

from collections.abc import Iterable
from dataclasses import dataclass, field

MOST_PROBLEMS = 1000
"""Problems that are kept in words; more are only counted."""
_LONGEST = 400


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the file, or the sample in it, and what is wrong with it."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass
class Problems:
    """A bounded list of problems, and the number of all."""

    kept: list[Problem] = field(default_factory=list)
    total: int = 0

    def add(self, where: str, what: str) -> None:
        """Notes a problem; texts from damaged files are cut and made printable."""
        self.total += 1
        if len(self.kept) < MOST_PROBLEMS:
            self.kept.append(Problem(_printable(where), _printable(what)))

    def extend(self, others: "Problems") -> None:
        """Takes over the problems of a part."""
        self.total += others.total
        self.kept.extend(others.kept[: MOST_PROBLEMS - len(self.kept)])

    def add_all(self, where: str, whats: Iterable[str]) -> None:
        """Notes several problems of one place."""
        for what in whats:
            self.add(where, what)


def _printable(text: str) -> str:
    cut = text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
    # Names in damaged files may hold terminal escapes, line breaks or halves of characters.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
