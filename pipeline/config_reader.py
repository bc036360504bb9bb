"""Reads configurations: defaults < recipe YAML < ``--a.b=c``.

Nothing here knows which settings exist: each command brings its own dataclass. Values given on the
command line stay text until their type is known, so ``--name=007`` is a name and ``--lr=1e-3`` a
number.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import jsonargparse
import yaml

from pipeline.config_tree import build, fields_of, plain, section_type
from pipeline.errors import ConfigError

ConfigT = TypeVar("ConfigT")


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What a command line said, before any setting is looked at."""

    recipes: tuple[str, ...]
    """Files of ``--config``, in order; later ones win."""
    overrides: tuple[tuple[str, str], ...]
    """Dotted paths and the text given for them, in order."""
    dry_run: bool
    help: bool


def parse(
    config_class: type[ConfigT],
    argv: Sequence[str],
    prog: str,
    description: str,
    epilog: str = "",
) -> tuple[ConfigT, bool]:
    """Reads a command's configuration; the one reader of all stage commands.

    With ``--help`` it prints the settings and exits; with ``--dry-run`` it prints the resolved
    configuration, and the command then says what it would do.

    Args:
        config_class: Frozen dataclass of the command's settings.
        argv: Arguments after the command's name.
        prog: The command as typed, for the help text.
        description: What the command does, for the help text.
        epilog: Text under the settings, such as examples.

    Returns:
        The configuration, and whether this is a dry run.

    Raises:
        ConfigError: anything that is unknown, of the wrong type, or impossible together.
    """
    line = read_command_line(argv)
    if line.help:
        print_help(config_class, prog, description, epilog)
        raise SystemExit(0)
    config = load(config_class, line.recipes, line.overrides)
    if line.dry_run:
        sys.stdout.write(to_yaml(config))
    return config, line.dry_run


def read_command_line(argv: Sequence[str]) -> CommandLine:
    """Splits arguments into recipes, overrides and the two switches.

    Raises:
        ConfigError: an argument that is no option, or an option without its value.
    """
    recipes: list[str] = []
    overrides: list[tuple[str, str]] = []
    dry_run = wants_help = False
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word in ("-h", "--help") or (word.endswith(".help") and word.startswith("--")):
            wants_help = True
        elif word == "--dry-run":
            dry_run = True
        elif not name.startswith("--") or name == "--":
            raise ConfigError(f"{word!r}: settings are given as --name=value, recipes as --config")
        else:
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise ConfigError(f"{word}: needs a value, as in {word}=VALUE")
                value = rest.pop(0)
            if name == "--config":
                recipes.append(value)
            else:
                overrides.append((name.removeprefix("--"), value))
    return CommandLine(tuple(recipes), tuple(overrides), dry_run, wants_help)


def load(
    config_class: type[ConfigT],
    recipes: Sequence[str | Path | Mapping[str, Any]] = (),
    overrides: Sequence[tuple[str, str]] = (),
) -> ConfigT:
    """Composes a configuration from recipes and overrides.

    Args:
        config_class: Frozen dataclass of the settings.
        recipes: YAML files, or settings as such a file holds them; later ones win, setting by
            setting.
        overrides: Dotted paths with text, after all recipes. A number in the path is a place in a
            list. A whole section may be given as YAML or as the name of a YAML file.

    Raises:
        ConfigError: a file that cannot be read, or settings that cannot be used.
    """
    tree: dict[str, Any] = {}
    for recipe in recipes:
        _merge(tree, deepcopy(recipe) if isinstance(recipe, Mapping) else read_yaml(recipe))
    for path, text in overrides:
        _override(tree, config_class, path, text)
    config: ConfigT = build(config_class, tree)
    return config


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a recipe.

    Raises:
        ConfigError: the file is missing, is no YAML, holds no mapping, or names a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"recipe {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"recipe {path} is not UTF-8 text") from error
    try:
        tree = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {path}, {_yaml_problem(error)}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"recipe {path} must hold settings as `name: value`")
    return tree


def to_yaml(config: object) -> str:
    """The whole configuration, defaults included, as YAML that `load` reads back unchanged."""
    # Only ASCII: YAML reads some unusual characters, such as U+0085, as line breaks.
    return str(yaml.safe_dump(plain(config), sort_keys=False, width=100))


def save(config: object, path: str | Path) -> None:
    """Writes the resolved configuration; the file appears whole or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(to_yaml(config))
            stream.flush()
            os.fsync(stream.fileno())
        Path(scratch).chmod(0o644)
        Path(scratch).replace(target)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def print_help(config_class: type, prog: str, description: str, epilog: str = "") -> None:
    """Prints all settings with their types, defaults and explanations."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(prog=prog, description=description, epilog=epilog)
    parser.formatter_class = _HelpFormatter
    parser.usage = f"{prog} [--config RECIPE.yaml] [--section.setting=VALUE ...] [--dry-run]"
    parser.add_argument("--config", metavar="FILE", help="recipe (YAML); may be given again")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved settings and the plan, then stop"
    )
    parser.add_class_arguments(config_class, None)
    parser.print_help()
    for path, item_class in _items(config_class):
        # jsonargparse does not go into lists and mappings of dataclasses.
        items = jsonargparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False)
        items.add_class_arguments(item_class, path)
        sys.stdout.write(f"\n{items.format_help().strip()}\n")


def _items(config_class: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Dataclasses inside lists and mappings, with the path of one as an override has it."""
    for name, kind in get_type_hints(config_class).items():
        item = get_args(kind)[-1] if get_origin(kind) in (list, dict) else None
        if isinstance(item, type) and dataclasses.is_dataclass(item):
            path = f"{prefix}{name}.{'0' if get_origin(kind) is list else 'NAME'}"
            yield path, item
            yield from _items(item, f"{path}.")


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Keeps the line breaks of examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))


class _UniqueKeyLoader(yaml.SafeLoader):  # type: ignore[misc]  # yaml ships without types
    """YAML as is, but a key given twice is an error: the first would be lost silently."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def _merge(tree: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        here = tree.get(key)
        if isinstance(here, dict) and isinstance(value, Mapping):
            _merge(here, value)
        else:
            tree[key] = value


def _override(tree: dict[str, Any], config_class: type, path: str, text: str) -> None:
    keys = path.split(".")
    if not all(keys):
        raise ConfigError(f"--{path}={text}: the dotted path has an empty part")
    value: Any = None if text == "null" else text
    if value is not None and _names_section(config_class, keys):
        value = _section_value(text, path)
    here: Any = tree
    for depth, key in enumerate(keys[:-1]):
        here = _step(here, key, ".".join(keys[: depth + 1]), text)
    last = keys[-1]
    if isinstance(here, list):
        _step(here, last, path, text)
        here[int(last)] = value
    elif isinstance(value, dict) and isinstance(here.get(last), dict):
        _merge(here[last], value)
    else:
        here[last] = value


def _step(here: Any, key: str, path: str, text: str) -> Any:
    if isinstance(here, list):
        if not key.isdigit() or int(key) >= len(here):
            raise ConfigError(f"{path} = {text!r}: the list has the places 0 to {len(here) - 1}")
        return here[int(key)]
    if here.get(key) is None:
        here[key] = {}
    if not isinstance(here[key], dict | list):
        raise ConfigError(f"{path} = {here[key]!r}: has no settings below it")
    return here[key]


def _names_section(config_class: type, keys: Sequence[str]) -> bool:
    hint: Any = config_class
    for key in keys:
        section = section_type(hint)
        if section is not None:
            hint = fields_of(section).get(key)
        elif get_origin(hint) in (dict, list):
            hint = get_args(hint)[-1]
        else:
            return False
    container = get_origin(hint) in (dict, list) and section_type(get_args(hint)[-1]) is not None
    return section_type(hint) is not None or container


def _section_value(text: str, path: str) -> Any:
    if text.endswith((".yaml", ".yml")):
        return read_yaml(text)
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} = {text!r}: {_yaml_problem(error)}") from error


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    return f"line {mark.line + 1}: {problem}" if mark else problem
