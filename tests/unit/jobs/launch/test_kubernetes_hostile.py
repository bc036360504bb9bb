"""Words with quotes, spaces, $() and newlines arrive as they were written, and run nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from jobs.launch.job import JobConfig, Stage, Volume
from jobs.launch.kubernetes import KINDS, render
from jobs.launch.kubernetes.entry import read_words
from jobs.launch.kubernetes.text import literal
from pipeline.tracking.secrets import redact
from tests.support.kubelet import expanded

SNIPPETS = (
    *("$(touch owned)", "`touch owned`", "'; touch owned; '", '" && touch owned; "', "\n- x: 1\n"),
    *("$(MASTER_ADDR)", "$$(A)", "$", "1e3", "0x1F", "yes", "~", "null", "2026-11-26", "=", "|"),
    *("&anchor", "*alias", "!!python/object:os.system", "{{ x }}", "# no", ": ", "- ", "\t", " "),
    *("\u2028", "\x85", "\ufeff", "é", "😀", "\x1b[0m", "%d", "\\n"),
)
TEXTS = st.lists(
    st.one_of(st.sampled_from(SNIPPETS), st.text(st.characters(exclude_categories=["Cs"]))),
    max_size=4,
).map(lambda parts: "".join(parts).replace("\0", ""))


def job(folder: Path, recipe: str, word: str) -> JobConfig:
    (folder / "recipe.yaml").write_bytes(recipe.encode())
    return JobConfig(
        name="hostile",
        recipe=str(folder / "recipe.yaml"),
        overrides=[f"name={word}"],
        environment={"WORD": word},
        image="prefixworks" + word,
        volumes=[Volume(source="pvc:data", mount="/data/x" + word.replace(":", ""))],
    )


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(recipe=TEXTS, word=TEXTS)
def test_every_word_arrives_in_the_pod(recipe: str, word: str, tmp_path: Path) -> None:
    # A way out of a folder and a password are refused by name; other tests are about that.
    assume(".." not in word.split("/") and redact(word) == word and redact(recipe) == recipe)
    files = render(job(tmp_path, recipe, word), "indexed-job")
    loaded = {name: yaml.safe_load(text) for name, text in files.items()}
    frozen = loaded["00-configmap.yaml"]["data"]
    assert frozen["recipe.yaml"] == recipe
    (tmp_path / "arguments.json").write_text(frozen["arguments.json"])
    words = read_words(tmp_path / "arguments.json")
    assert words == ["train", "--config=/etc/prefixworks/recipe.yaml", f"--name={word}", "--resume"]
    (container,) = loaded["02-job.yaml"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "prefixworks" + word
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert expanded(environment["WORD"], environment) == word
    # Nothing that a user wrote is in what is run.
    fixed = {"/etc/prefixworks/arguments.json", "--nodes=1", "--ranks-per-node=1"}
    assert set(container["args"]) == fixed | {"--node-rank-from=JOB_COMPLETION_INDEX"}


@given(text=TEXTS)
def test_a_literal_stays_itself_beside_any_variables(text: str) -> None:
    assert expanded(literal(text), {"A": "1", "MASTER_ADDR": "2", "touch owned": "3"}) == text


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, which reads YAML in Go")
def test_kubectl_reads_what_was_written(tmp_path: Path) -> None:
    """Go's parser takes other words for numbers, dates and truth values than Python's."""
    words = [snippet for snippet in SNIPPETS if ":" not in snippet]
    for kind in KINDS:
        stage: Stage = "prepare" if kind.startswith("ray") else "train"
        whole = JobConfig(
            name="hostile",
            stage=stage,
            recipe=str(tmp_path / "recipe.yaml"),
            overrides=[f"name={word}" for word in SNIPPETS],
            environment={f"WORD_{index}": word for index, word in enumerate(SNIPPETS)},
            image="prefixworks",
            volumes=[
                Volume(source="pvc:data", mount=f"/data/{index}{word}")
                for index, word in enumerate(words)
            ],
        )
        (tmp_path / "recipe.yaml").write_text("".join(SNIPPETS))
        folder = tmp_path / kind
        folder.mkdir()
        files = render(whole, kind)
        for name, text in files.items():
            (folder / name).write_text(text)
        # A change that needs no cluster prints each object as kubectl has read it.
        done = subprocess.run(
            [
                *("kubectl", "label", "--local", "--dry-run=client", "--output=json"),
                *(f"--filename={folder}", "seen=yes"),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        theirs = {each["kind"]: each for each in documents(done.stdout)}
        for text in files.values():
            ours = yaml.safe_load(text)
            assert_within(ours, theirs[ours["kind"]])


def documents(text: str) -> list[dict[str, Any]]:
    """JSON documents that stand one after another."""
    found, text = [], text.strip()
    while text:
        document, end = json.JSONDecoder().raw_decode(text)
        found.append(document)
        text = text[end:].strip()
    return found


def assert_within(ours: Any, theirs: Any) -> None:
    """All that we wrote is there; kubectl adds empty fields."""
    if isinstance(ours, dict):
        for key, value in ours.items():
            assert_within(value, theirs[key])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_within(one, other)
    else:
        assert ours == theirs
