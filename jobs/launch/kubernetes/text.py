"""Manifests as text: YAML that kubectl reads as it was meant, and texts that stay as they are.

kubectl reads YAML 1.1 with other rules than PyYAML: `1e3` is a number there and a text here. So a
text stands without quotes only where no parser could take it for something else.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_PLAIN = re.compile(r"[A-Za-z/][-A-Za-z0-9_./]*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def dump(manifest: dict[str, Any]) -> str:
    """An object as YAML, its fields in the order of the dictionary."""
    text: str = yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=100)
    return text


def literal(text: str) -> str:
    """A text that Kubernetes expands to `text`: it looks for $(VARIABLE) in commands and values.

    Source: Kubernetes, "Define dependent environment variables": `$$` stands for one `$`.
    """
    return text.replace("$", "$$")


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # yaml carries no types
    """Writes one object twice where it occurs twice, instead of pointing to it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if _PLAIN.fullmatch(text) and text.lower() not in _WORDS else '"'
    if "\n" in text:
        # The emitter takes quotes after all where a block would not keep every character.
        style = "|"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
