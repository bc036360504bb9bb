"""Configurations are read strictly: each mistake is one line that helps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.config import PrepareConfig
from pipeline.config_reader import load, parse, read_yaml, save, to_yaml
from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Search:
    """How the search goes."""

    rate: float = 0.1
    """Size of a step."""
    steps: int = 3
    """Number of steps."""
    method: Literal["prefix", "finetune"] = "prefix"
    """What is trained."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Two averages."""
    weights: dict[str, float] | None = None
    """Shares."""
    shuffle: bool = True
    """Mix."""
    label: str | None = None
    """A name."""

    def __post_init__(self) -> None:
        if self.steps > 10:
            raise ValueError(f"steps = {self.steps}: must be at most 10")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source."""

    reader: str
    """Its format."""
    limit: int = 1
    """Rows."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Several sources."""

    sources: list[Source]
    """The sources."""
    shard_size: int = 100
    """Samples in a shard."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All of it."""

    output: str = "out"
    """Where to write."""
    search: Search = field(default_factory=Search)
    """The search."""
    datasets: dict[str, Dataset] = field(default_factory=dict)
    """By name."""


RECIPE = """
output: from-recipe
search: {rate: 1e-4, steps: 5, weights: {vqa: 1}}
datasets:
  shapes:
    sources:
      - {reader: coco_captions, limit: 7}
      - {reader: vqav2}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def read(*argv: str) -> Settings:
    return parse(Settings, argv, "prog", "Test.")[0]


def refusal(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(*argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_then_recipe_then_command_line(recipe: Path) -> None:
    config = read(f"--config={recipe}", "--search.rate=2e-3", "--search.weights.caption", "0.5")
    assert config.output == "from-recipe"
    assert config.search == Search(rate=2e-3, steps=5, weights={"vqa": 1.0, "caption": 0.5})
    assert config.datasets["shapes"].sources[0] == Source(reader="coco_captions", limit=7)


def test_later_recipes_win_setting_by_setting(recipe: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    second.write_text("search: {steps: 6}")
    config = read("--config", str(recipe), "--config", str(second))
    assert (config.search.steps, config.search.rate) == (6, 1e-4)


def test_an_override_reaches_into_lists_and_dictionaries(recipe: Path) -> None:
    config = read(f"--config={recipe}", "--datasets.shapes.sources.1.limit=9")
    assert [source.limit for source in config.datasets["shapes"].sources] == [7, 9]


def test_a_section_can_be_a_file_or_yaml(tmp_path: Path) -> None:
    section = tmp_path / "search.yaml"
    section.write_text("{rate: 0.5, steps: 4}")
    config = read(f"--search={section}", "--search={steps: 6}")
    assert (config.search.rate, config.search.steps) == (0.5, 6)


@pytest.mark.parametrize("text", ["007", "true", "1e-3", "2026-01-01", "[x]", "#", "~", ""])
def test_text_from_the_command_line_stays_text(text: str) -> None:
    assert read(f"--output={text}", f"--search.label={text}").output == text
    assert read(f"--search.label={text}").search.label == text


def test_null_is_none_only_where_it_may_be() -> None:
    assert read("--search.label=null").search.label is None
    assert refusal("--search.steps=null") == "search.steps = null: must be a whole number"
    assert refusal("--output=null") == "output = null: must be text"


def test_tuples_stay_tuples() -> None:
    assert read("--search.betas=[0.8, 0.9]").search.betas == (0.8, 0.9)


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("--search.rat=1", ["search.rat = '1'", "no such setting", "did you mean search.rate?"]),
        ("--serch.rate=1", ["serch", "did you mean search?", "allowed here: output, search"]),
        ("--rate=1", ["rate = '1'", "did you mean search.rate?"]),
        ("--search.rate=fast", ["search.rate = 'fast'", "must be a number"]),
        ("--search.steps=2.5", ["search.steps = '2.5'", "must be a whole number"]),
        ("--search.steps=true", ["search.steps = 'true'", "must be a whole number"]),
        ("--search.shuffle=3", ["search.shuffle = '3'", "must be true or false"]),
        ("--search.method=prefx", ["one of prefix, finetune", "did you mean prefix?"]),
        ("--search.betas=[1]", ["search.betas", "a list of a number and a number"]),
        ("--search.weights.vqa=much", ["search.weights", "much", "each a number"]),
        ("--search=3", ["search = 3", "must be a section with rate, steps"]),
        ("--search.rate.deep=1", ["search.rate", "must be a number"]),
        ("--search.steps=11", ["search.steps = 11: must be at most 10"]),
        ("--datasets.x.shard_size=3", ["datasets.x.sources: missing", "reader, limit"]),
        ("--datasets.x.sources=[{raeder: a}]", ["datasets.x.sources[0].raeder", "reader?"]),
        ("--search..rate=1", ["empty part"]),
        ("stray", ["'stray'", "--name=value"]),
        ("--output", ["--output: needs a value"]),
    ],
)
def test_each_mistake_names_path_value_and_remedy(argument: str, parts: list[str]) -> None:
    message = refusal(argument)
    for part in parts:
        assert part in message


def test_a_place_outside_a_list_is_refused(recipe: Path) -> None:
    message = refusal(f"--config={recipe}", "--datasets.shapes.sources.2.limit=1")
    assert "datasets.shapes.sources.2" in message
    assert "places 0 to 1" in message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"search: {rate: 1, rate: 2}", "line 1: the key 'rate' is given twice"),
        (b"- a\n- b", "must hold settings"),
        (b"search: [", "line 1: expected the node content"),
        (b"output: \xff", "not UTF-8"),
        (b"search: {rate: !!python/object/apply:os.getcwd []}", "could not determine"),
    ],
)
def test_unusable_recipes_are_named(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    message = refusal(f"--config={path}")
    assert str(path) in message
    assert part in message


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(f"--config={tmp_path / 'none.yaml'}")


def test_an_empty_recipe_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing yet\n")
    assert read(f"--config={path}") == Settings()


def test_dry_run_prints_what_was_resolved(capsys: pytest.CaptureFixture[str]) -> None:
    config, dry_run = parse(Settings, ["--search.steps=4", "--dry-run"], "prog", "Test.")
    assert dry_run
    printed = capsys.readouterr().out
    assert "steps: 4" in printed
    assert "shuffle" in printed
    assert printed == to_yaml(config)


def test_help_lists_settings_with_their_explanations(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(Settings, ["--help"], "prog", "Test.", "examples:\n  prog --search.rate=1")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "--search.rate" in printed
    assert "Size of a step." in printed
    assert "examples:\n  prog --search.rate=1" in printed


@pytest.mark.parametrize("word", ["--help", "--datasets.help"])
def test_help_goes_into_lists_and_mappings(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(PrepareConfig, [word], "prog", "Test.")
    printed = capsys.readouterr().out
    assert "--datasets.NAME.sources.0.images" in printed
    assert "'train2014.zip/train2014'" in printed
    assert "--image.max_side" in printed


SEARCHES = st.builds(
    Search,
    rate=st.floats(allow_nan=False),
    steps=st.integers(max_value=10),
    method=st.sampled_from(["prefix", "finetune"]),
    betas=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    weights=st.none() | st.dictionaries(st.text(min_size=1), st.floats(0, 1), max_size=3),
    shuffle=st.booleans(),
    label=st.none() | st.text(),
)


@given(search=SEARCHES, output=st.text(min_size=1))
def test_a_saved_configuration_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, search: Search, output: str
) -> None:
    path = tmp_path_factory.mktemp("saved") / "config.yaml"
    config = Settings(
        output=output,
        search=search,
        datasets={"shapes": Dataset(sources=[Source(reader="coco_captions")])},
    )
    save(config, path)
    assert load(Settings, [path]) == config
    assert [entry.name for entry in path.parent.iterdir()] == ["config.yaml"]
    assert read_yaml(path)["output"] == output
