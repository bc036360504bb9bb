"""A team's registry: a real MLflow server with users, over PostgreSQL and S3, and a browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
import torch
from PIL import Image

from jobs.registry import main
from model.checkpoint import load_base
from model.ofa.model import OFA
from model.tuning import TunedModel
from pipeline.errors import RegistryError
from pipeline.registry.artifact import attach_prompt, read_prompt, read_record, save_prompt
from pipeline.registry.promotion import carry_out, plan_promotion
from pipeline.registry.reference import RegisteredPrompt
from pipeline.registry.store import PromptRegistry
from pipeline.tracking.config import TrackingConfig, resolve_store
from tests.support.browser import browser, look, screenshots, signed_in
from tests.support.mlflow_store import make_store
from tests.support.registry_server import (
    CREDENTIALS,
    PASSWORD,
    ROOT,
    USER,
    TeamServer,
    team_server,
)
from tests.support.s3_server import BUCKET, S3Server, free_port, s3_server
from tests.support.small_prompt import (
    evaluated_meta,
    picture,
    small_base,
    small_prompt,
    tuned,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(scope="module")
def server(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeamServer]:
    with (
        pytest.MonkeyPatch.context() as patch,
        team_server(s3, tmp_path_factory.mktemp("server")) as running,
    ):
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with two prompts."""
    folder = tmp_path_factory.mktemp("place")
    base = small_base(folder / "base")
    for seed, name in enumerate(("first", "second")):
        small_prompt(folder / name, base, seed=seed, name="shapes")
    return folder


@pytest.fixture
def registry(server: TeamServer, place: Path) -> PromptRegistry:
    return PromptRegistry(resolve_store(TrackingConfig(uri=server.uri), place))


def logits(model: TunedModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(1, 3, 64, 64, generator=generator)
    source, target = torch.tensor([[0, 5, 6, 7, 2]]), torch.tensor([[0, 8, 9]])
    with torch.inference_mode():
        return model(source, images, torch.tensor([True]), target)


def test_what_comes_back_computes_the_same_bits(
    place: Path, registry: PromptRegistry, tmp_path: Path
) -> None:
    base = str(place / "base")
    model = small_prompt(tmp_path / "prompt", load_base(base).eval(), seed=7, name="bits")
    version = registry.register(tmp_path / "prompt", aliases=["champion"])
    folder = registry.download("bits@champion", tmp_path / "fetched")
    assert torch.equal(logits(attach_prompt(load_base(base), folder)), logits(model))
    assert registry.record(version.title) == read_record(tmp_path / "prompt")


def test_two_processes_register_at_once(place: Path, registry: PromptRegistry) -> None:
    command = [sys.executable, "-m", "jobs.registry", "register"]
    command += ["--uri", registry.location.uri, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    names = ("first", "second")
    started = [
        subprocess.Popen(
            [*command, str(place / name)], stdout=subprocess.PIPE, text=True, env=environment
        )
        for name in names
    ]
    answers = [json.loads(process.communicate(timeout=200)[0]) for process in started]
    assert sorted(answer["version"] for answer in answers) == [1, 2]
    versions = registry.versions("shapes")
    assert {version.version for version in versions} == {1, 2}
    expected = {read_record(place / name).digest for name in names}
    assert {version.tags["prompt_digest"] for version in versions} == expected
    for version in versions:
        with registry.fetched(version.title) as folder:
            assert read_prompt(folder).record.digest == version.tags["prompt_digest"]


def test_versions_travel_to_a_local_store_and_are_not_doubled(
    server: TeamServer,
    registry: PromptRegistry,
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = registry.register(place / "first", "carried")
    make_store(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    argv = ["export", "carried", uri, "--uri", server.uri, "--json"]
    for added in (True, False):
        assert main(argv) == 0
        (moved,) = json.loads(capsys.readouterr().out)
        assert (moved["name"], moved["version"], moved["added"]) == ("carried", 1, added)
    local = PromptRegistry(resolve_store(TrackingConfig(uri=uri), tmp_path))
    (copy,) = local.versions()
    assert copy.tags == {**made.tags, "imported_from": "carried/1"}
    assert local.record(copy.title) == registry.record(made.title)


def test_records_are_in_postgres_and_files_in_s3(
    server: TeamServer, registry: PromptRegistry, place: Path, s3: S3Server
) -> None:
    registry.register(place / "first", "stored")
    listed = s3.client().list_objects_v2(Bucket=BUCKET, Prefix="mlflow/")["Contents"]
    assert any(item["Key"].endswith("artifacts/prompt/prompt.safetensors") for item in listed)
    if not server.on_postgres:
        pytest.skip("PostgreSQL is not installed")
    import psycopg

    address = server.backend_uri.replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(address) as connection:
        query = "SELECT version FROM model_versions WHERE name = 'stored'"
        assert connection.execute(query).fetchall() == [(1,)]


def test_what_was_changed_in_the_store_is_refused_by_name(
    registry: PromptRegistry, place: Path, s3: S3Server, tmp_path: Path
) -> None:
    version = registry.register(place / "first", "guarded")
    base = load_base(str(place / "base")).eval()
    source = registry.client.get_model_version("guarded", str(version.version)).source
    folder = f"mlflow{source.removeprefix('mlflow-artifacts:')}/artifacts/prompt"
    written = {
        name: s3.client().get_object(Bucket=BUCKET, Key=f"{folder}/{name}")["Body"].read()
        for name in ("prompt.safetensors", "prompt.json")
    }

    def refused(message: str, name: str, content: bytes | None, onto: OFA = base) -> None:
        if content is None:
            s3.client().delete_object(Bucket=BUCKET, Key=f"{folder}/{name}")
        else:
            s3.put({f"{folder}/{name}": content})
        with registry.fetched("guarded/1") as fetched, pytest.raises(RegistryError, match=message):
            attach_prompt(onto, fetched)
        s3.put({f"{folder}/{name}": written[name]})

    tensors, record = written["prompt.safetensors"], written["prompt.json"]
    flipped = tensors[:-1] + bytes([tensors[-1] ^ 1])
    refused(r"was changed: tensor \S+ has sha256", "prompt.safetensors", flipped)
    refused(r"prompt\.safetensors is missing", "prompt.safetensors", None)
    newer = record.replace(b"prefixworks.prompt/1", b"prefixworks.prompt/2")
    refused(r"newer format prefixworks\.prompt/2", "prompt.json", newer)
    other = small_base(tmp_path / "other", seed=9, name="ofa-other")
    refused(r"made for base ofa-small.*not for ofa-other", "prompt.json", record, other)
    with registry.fetched("guarded/1") as fetched:
        assert attach_prompt(base, fetched).export_state()


def test_nobody_gets_in_without_a_password(
    registry: PromptRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "guessed")
    with pytest.raises(RegistryError, match="not authenticated") as refused:
        registry.versions()
    assert len(str(refused.value).splitlines()) == 1


def test_files_that_cannot_be_stored_leave_no_version(
    registry: PromptRegistry, place: Path, s3: S3Server
) -> None:
    s3.stop()
    try:
        with pytest.raises(RegistryError, match="lost was not registered"):
            registry.register(place / "first", "lost")
    finally:
        s3.start()
    assert "lost" not in registry.names()
    assert registry.register(place / "first", "lost").version == 1


def test_a_server_that_is_not_there_costs_one_line(place: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    nowhere = PromptRegistry(resolve_store(TrackingConfig(uri=address), place))
    with pytest.raises(RegistryError, match="does not answer"):
        nowhere.names()
    with pytest.raises(RegistryError, match="shapes was not registered"):
        nowhere.register(place / "first")
    with pytest.raises(RegistryError, match="shapes/1 cannot be read"):
        nowhere.get("shapes/1")


@pytest.fixture
def shown(registry: PromptRegistry, place: Path) -> RegisteredPrompt:
    """A champion with a picture, scores and data."""
    model = tuned(load_base(str(place / "base")).eval(), seed=3)
    save_prompt(place / "shown", model, evaluated_meta(model), [picture(place)])
    prompt = registry.register(place / "shown", "regions")
    return carry_out(registry, plan_promotion(registry, prompt.title))


@pytest.mark.skipif(browser() is None, reason="Chromium is not installed")
def test_a_stranger_finds_everything_in_the_pages(
    server: TeamServer, shown: RegisteredPrompt, place: Path, tmp_path: Path
) -> None:
    with signed_in(server.uri, USER, PASSWORD) as site:
        walk_through(site, shown, place, screenshots(tmp_path))


def walk_through(site: str, shown: RegisteredPrompt, place: Path, pictures: Path) -> None:
    """From the registered version to all that it was made of."""
    page = look(
        f"{site}/#/models/regions/versions/{shown.version}",
        pictures / "registered-version.png",
        height=2_600,
    )
    text = visible(page)
    for said in ("Version 1", "champion", "first champion", "Scores", "vqa/accuracy", "Licence"):
        assert said in text, said
    for tag, value in shown.tags.items():
        assert tag in text, tag
        assert value in text, value

    # From the version to the run, as a person would click.
    run = re.search(r'href="(#/experiments/\d+/runs/[0-9a-f]+)"', page)
    assert run is not None
    text = visible(look(f"{site}/{run[1]}", pictures / "run.png", height=1_800))
    for said in ("Datasets", "world", "base.fingerprint", "ofa-small", "max_source_length"):
        assert said in text, said
    text = visible(look(f"{site}/{run[1]}/artifacts", pictures / "run-artifacts.png"))
    assert "config.json" in text
    assert "pictures" in text

    # The card shows the very picture of the artifact.
    link = re.search(r'<img[^>]*src="(ajax-api/[^"]+)"', page)
    assert link is not None
    with urllib.request.urlopen(f"{site}/{unescape(link[1])}", timeout=20) as answer:
        assert answer.read() == (place / "picture.png").read_bytes()
    for name in ("registered-version.png", "run.png", "run-artifacts.png"):
        with Image.open(pictures / name) as seen:
            # A page that was drawn has many colours; an empty one has a few.
            assert len(seen.convert("RGB").getcolors(1 << 20) or []) > 50


def visible(page: str) -> str:
    """The words of a document, without its tags, scripts and styles."""
    bare = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return unescape(re.sub(r"<[^>]+>", "", bare))
