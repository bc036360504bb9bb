"""Builds a tree of typed dataclasses from plain values, strictly.

The walk over sections is our own, so that an error names its full dotted path, also inside lists
and dictionaries of sections; the types of single values are judged by jsonargparse.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import jsonargparse

from pipeline.errors import ConfigError

_NAMES: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    type(None): "null",
}


def build(hint: Any, value: Any, path: str = "", root: Any = None) -> Any:
    """Turns plain values into what a type asks for.

    Args:
        hint: The type: a dataclass, a list, tuple or dictionary of them, or a plain type.
        value: Mappings, sequences and scalars, as YAML gives them; text is read as YAML where the
            type is not text.
        path: Dotted path of the value, for errors.
        root: The outermost type, searched for the right place of a misplaced key.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, or values that exclude each other.
    """
    root = hint if root is None else root
    section = section_type(hint)
    if section is not None:
        if value is None and _optional(hint):
            return None
        return _build_section(section, value, path, root)
    inner = _plain(hint)
    origin, args = get_origin(inner), get_args(inner)
    if isinstance(value, list | tuple) and origin in (list, tuple) and section_type(args[0]):
        items = [build(args[0], item, f"{path}[{i}]", root) for i, item in enumerate(value)]
        return items if origin is list else tuple(items)
    if isinstance(value, Mapping) and origin is dict and section_type(args[1]):
        return {
            str(key): build(args[1], item, f"{path}.{key}", root) for key, item in value.items()
        }
    return _typed(hint, value, path)


def fields_of(section: type) -> dict[str, Any]:
    """Names and types of a section's settings, in order of declaration."""
    hints = get_type_hints(section)
    return {field.name: hints[field.name] for field in dataclasses.fields(section) if field.init}


def section_type(hint: Any) -> type | None:
    """The dataclass behind a type (also an optional one), or None for anything else."""
    inner = _plain(hint)
    return inner if isinstance(inner, type) and dataclasses.is_dataclass(inner) else None


def paths(section: type, prefix: str = "") -> Iterator[str]:
    """Dotted paths of all settings below a section."""
    for name, hint in fields_of(section).items():
        yield f"{prefix}{name}"
        nested = section_type(hint)
        if nested is not None:
            yield from paths(nested, f"{prefix}{name}.")


def plain(value: Any) -> Any:
    """The opposite of build: dataclasses to plain values that YAML and JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name in fields_of(type(value))}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _build_section(section: type, value: Any, path: str, root: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{_said(path, value)}: must be a section with {_listed(section)}")
    known = fields_of(section)
    for key in value:
        if key not in known:
            raise ConfigError(_unknown(str(key), value[key], path, section, root))
    prefix = f"{path}." if path else ""
    for field in dataclasses.fields(section):
        needed = (
            field.init
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        )
        if needed and field.name not in value:
            allowed = describe(known[field.name])
            raise ConfigError(f"{prefix}{field.name}: missing; give {allowed}")
    built = {
        name: build(hint, value[name], f"{prefix}{name}", root)
        for name, hint in known.items()
        if name in value
    }
    try:
        return section(**built)
    except (ValueError, TypeError, ConfigError) as error:
        raise ConfigError(_placed(" ".join(str(error).split()), path, known)) from error


def _placed(text: str, path: str, known: Mapping[str, Any]) -> str:
    """Puts a section's path before its own complaint, which names settings without it."""
    if not path or text.startswith(path):
        return text
    named = re.split(r"[^\w]", text, maxsplit=1)[0]
    return f"{path}.{text}" if named in known else f"{path}: {text}"


def _typed(hint: Any, value: Any, path: str) -> Any:
    if _plain(hint) is str and isinstance(value, str):
        # Text is taken as it is: jsonargparse reads an optional '#' or '~' as YAML, hence as null.
        return value
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    # jsonargparse's stubs ask for a class where it takes any type.
    parser.add_argument("--value", type=cast(type, hint))
    try:
        # Some of its checks write to stderr before they raise; the one line is ours.
        with contextlib.redirect_stderr(io.StringIO()):
            checked = parser.parse_object({"value": value}).value
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        raise ConfigError(_wrong_type(hint, value, path)) from error
    if checked is None and not _optional(hint):
        raise ConfigError(_wrong_type(hint, value, path))
    if get_origin(_plain(hint)) is tuple and isinstance(checked, list):
        return tuple(checked)
    return checked


def _wrong_type(hint: Any, value: Any, path: str) -> str:
    message = f"{_said(path, value)}: must be {describe(hint)}"
    inner = _plain(hint)
    if get_origin(inner) is Literal and isinstance(value, str):
        near = closest(value, map(str, get_args(inner)))
        message += f"; did you mean {near}?" if near else ""
    return message


def _unknown(key: str, value: Any, path: str, section: type, root: Any) -> str:
    prefix = f"{path}." if path else ""
    message = f"{_said(prefix + key, value)}: no such setting; allowed here: {_listed(section)}"
    near = closest(key, fields_of(section))
    if near is not None:
        return f"{message}; did you mean {prefix}{near}?"
    everywhere = list(paths(root)) if section_type(root) else []
    same_name = [known for known in everywhere if known.rpartition(".")[2] == key]
    found = same_name[0] if same_name else closest(prefix + key, everywhere)
    return f"{message}; did you mean {found}?" if found else message


def closest(word: str, names: Iterable[str]) -> str | None:
    """The name that a mistyped or shortened word most likely means, or None."""
    names = list(names)
    longer = [name for name in names if len(word) > 2 and name.startswith(word)]
    near = longer[:1] or difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return near[0] if near else None


def _listed(section: type) -> str:
    return ", ".join(fields_of(section))


def _said(path: str, value: Any) -> str:
    text = "null" if value is None else repr(value)
    return f"{path or 'the configuration'} = {text if len(text) <= 80 else text[:77] + '...'}"


def _optional(hint: Any) -> bool:
    return _is_union(hint) and type(None) in get_args(hint)


def _plain(hint: Any) -> Any:
    """The type without ``None``, where that leaves a single one."""
    if not _is_union(hint):
        return hint
    rest = [arg for arg in get_args(hint) if arg is not type(None)]
    return rest[0] if len(rest) == 1 else hint


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def describe(hint: Any) -> str:
    """Says in words which values a type allows."""
    origin, args = get_origin(hint), get_args(hint)
    if _is_union(hint):
        return " or ".join(describe(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in args)
    if section_type(hint) is not None:
        return f"a section with {_listed(hint)}"
    if origin is tuple and Ellipsis not in args:
        return "a list of " + " and ".join(describe(arg) for arg in args)
    if origin in (list, tuple):
        return f"a list, each {describe(args[0])}"
    if origin is dict:
        return f"a mapping, each {describe(args[1])}"
    return _NAMES.get(hint, str(getattr(hint, "__name__", hint)))
