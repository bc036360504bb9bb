"""Who was champion when: one tag of the registered model for each change of an alias.

Each event is a tag of its own with a name that never comes again, because two processes that
rewrite one tag would lose one of their events.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

PREFIX = "history."
_LONGEST_REASON = 2_000


@dataclass(frozen=True, kw_only=True)
class Event:
    """One change of an alias."""

    alias: str
    action: str
    """`promote`, `rollback` or `delete`."""
    version: int
    """The version that has the alias from now on; for `delete`, the one that is gone."""
    former: int | None
    """The version that had it before."""
    reason: str

    def as_tag(self, now: datetime | None = None) -> tuple[str, str]:
        """Name and value of the event's tag."""
        moment = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%S.%fZ")
        values = asdict(self) | {"reason": self.reason[:_LONGEST_REASON]}
        return f"{PREFIX}{moment}.v{self.version}", json.dumps(values, sort_keys=True)


def events(tags: Mapping[str, str]) -> list[tuple[str, Event]]:
    """The events among a registered model's tags, oldest first, each with its time.

    Tags that people wrote under the same prefix and that are no events are left out.
    """
    found = []
    for name in sorted(tag for tag in tags if tag.startswith(PREFIX)):
        try:
            event = Event(**json.loads(tags[name]))
        except (TypeError, ValueError):
            continue
        found.append((name.removeprefix(PREFIX).rpartition(".")[0], event))
    return found


def former_version(
    past: Iterable[Event], alias: str, present: int | None, existing: set[int]
) -> int | None:
    """The version to go back to.

    Args:
        past: All events, oldest first.
        alias: The alias.
        present: The version that has it now.
        existing: Versions that were not deleted.

    Returns:
        The version before the present one, or None where the history knows none. A version that
        people gave the alias by other means is no part of the history: the last known one is
        before it.
    """
    line: list[int] = []
    for event in past:
        if event.alias != alias or event.action == "delete":
            continue
        if event.action == "rollback" and event.version in line:
            last = len(line) - 1 - line[::-1].index(event.version)
            del line[last + 1 :]
            continue
        if event.former is not None and (not line or line[-1] != event.former):
            line.append(event.former)
        line.append(event.version)
    if present in line:
        del line[len(line) - 1 - line[::-1].index(present) :]
    return next((v for v in reversed(line) if v in existing and v != present), None)
