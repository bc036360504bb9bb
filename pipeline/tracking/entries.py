"""Entries of a journal, and how a line of it is read."""

from __future__ import annotations

import json
from typing import Any

Entry = dict[str, Any]
"""One line: `kind` and the values of that kind (see pipeline.tracking.sending)."""

_FIELDS = {
    "params": {"values"},
    "metrics": {"step", "time_ms", "values"},
    "tags": {"values"},
    "input": {"name", "digest", "context", "source", "profile"},
    "artifact": {"path", "to"},
    "model": {"key", "name", "method", "step", "params", "metrics"},
    "model_gone": {"key"},
    "end": {"status", "time_ms"},
}
"""What an entry of a kind needs to be made sense of."""


def is_expendable(entry: Entry) -> bool:
    """Whether a full journal does without: all but metrics and pictures are few and short."""
    return entry["kind"] == "metrics" or (entry["kind"] == "artifact" and entry["to"] is not None)


def parse_entry(line: bytes) -> Entry:
    """Reads a line; one that is damaged becomes an entry of kind `unreadable`."""
    try:
        entry = json.loads(line)
        whole = _FIELDS.get(entry["kind"], set()) <= entry.keys()
        if whole and isinstance(entry.get("values", {}), dict):
            return dict(entry)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return {"kind": "unreadable", "line": line.decode(errors="replace").rstrip()}
