"""A registered prompt predicts through MLflow alone, and only on its own base."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc
import pandas as pd
import pytest
from PIL import Image

from data_prep.instructions import source_text
from jobs.predict import main
from pipeline.errors import DataError, RegistryError
from pipeline.registry.bases import shared_base
from pipeline.registry.predictor import Predictor
from pipeline.registry.store import PromptRegistry
from pipeline.tracking.config import TrackingConfig, resolve_store
from tests.support.mlflow_store import make_store
from tests.support.small_prompt import Lesson, picture, small_base, small_prompt

QUESTION = "what color is the circle?"
EXPRESSION = "the small red circle"
BOX = (20.0, 16.0, 44.0, 40.0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that knows two answers, prompts for it, another base, and a picture."""
    folder = tmp_path_factory.mktemp("place")
    image = picture(folder)
    lessons = [
        Lesson(image, source_text("grounding", EXPRESSION), BOX),
        Lesson(image, source_text("vqa", QUESTION), " red"),
    ]
    base = small_base(folder / "base", lessons=lessons)
    small_base(folder / "other", seed=9, name="ofa-other")
    small_prompt(folder / "vqa", base, seed=1, tasks=("vqa",), name="answers")
    small_prompt(folder / "grounding", base, seed=2, tasks=("grounding",), name="regions")
    small_prompt(folder / "both", base, seed=3, tasks=("vqa", "grounding"), name="both")
    return folder


@pytest.fixture(scope="module")
def registry(place: Path) -> PromptRegistry:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("PREFIXWORKS_BASE", str(place / "base"))
        make_store(place / "runs")
        store = PromptRegistry(resolve_store(TrackingConfig(), place / "runs"))
        for name in ("vqa", "grounding", "both"):
            store.register(place / name, aliases=["champion"])
    return store


@pytest.fixture(autouse=True)
def own_base(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PREFIXWORKS_BASE", str(place / "base"))


def load(registry: PromptRegistry, reference: str) -> mlflow.pyfunc.PyFuncModel:
    mlflow.set_tracking_uri(registry.location.uri)
    return mlflow.pyfunc.load_model(f"models:/{reference}")


def test_grounding_answers_with_a_box_in_pixels(place: Path, registry: PromptRegistry) -> None:
    image = str(place / "picture.png")
    answers = load(registry, "regions@champion").predict(
        pd.DataFrame({"image": [image], "text": [EXPRESSION]})
    )
    direct = Predictor.from_folder(place / "grounding").predict(image, EXPRESSION)
    assert list(answers.columns) == ["text", "box", "score"]
    assert direct.box is not None
    assert answers["box"][0] == pytest.approx(list(direct.box))
    assert answers["score"][0] == pytest.approx(direct.score)
    assert answers["box"][0] == pytest.approx(BOX, abs=96 / 64)


def test_vqa_answers_with_a_text(place: Path, registry: PromptRegistry) -> None:
    image = place / "picture.png"
    encoded = base64.b64encode(image.read_bytes()).decode()
    model = load(registry, "answers@champion")
    forms = [str(image), encoded, f"data:image/png;base64,{encoded}", image.read_bytes()]
    frame = pd.DataFrame({"image": forms, "text": [QUESTION] * len(forms)})
    answers = model.predict(frame)
    direct = Predictor.from_folder(place / "vqa").predict(Image.open(image), QUESTION)
    assert direct.text == "red"
    assert list(answers["text"]) == ["red"] * len(forms)
    assert list(answers["box"]) == [None] * len(forms)
    assert list(answers["score"]) == [direct.score] * len(forms)
    assert model.predict(frame, params={"beam_size": 1})["text"].notna().all()


def test_the_prompt_decides_the_answer(place: Path) -> None:
    image = place / "picture.png"
    ours = Predictor.from_folder(place / "vqa").predict(image, QUESTION)
    theirs = Predictor.from_folder(place / "both").predict(image, QUESTION, task="vqa")
    assert (ours.text, ours.score) != (theirs.text, theirs.score)


def test_mlflow_loads_the_base_once_for_all_prompts(registry: PromptRegistry) -> None:
    models = [load(registry, f"{name}@champion") for name in ("answers", "regions")]
    first, second = (model.unwrap_python_model().predictor for model in models)
    assert first is not second
    assert first.base is second.base


def test_one_base_serves_all_prompts_of_a_process(place: Path) -> None:
    first = Predictor.from_folder(place / "vqa")
    image = place / "picture.png"
    before = first.predict(image, QUESTION)
    second = Predictor.from_folder(place / "grounding")
    second.predict(image, EXPRESSION)
    assert first.base is second.base
    assert first.base is shared_base(str(place / "base"))
    assert first.predict(image, QUESTION) == before


def test_a_prompt_of_several_tasks_asks_which(place: Path, registry: PromptRegistry) -> None:
    image = str(place / "picture.png")
    predictor = Predictor.from_folder(place / "both")
    with pytest.raises(RegistryError, match="name one of: vqa, grounding"):
        predictor.predict(image, QUESTION)
    with pytest.raises(RegistryError, match="not made for task 'caption'"):
        predictor.predict(image, task="caption")
    with pytest.raises(RegistryError, match="beam_size = 0 is not from 1 to 64"):
        predictor.predict(image, QUESTION, task="vqa", beam_size=0)
    with pytest.raises(RegistryError, match="needs a text"):
        predictor.predict(image, task="vqa")
    rows = {"image": [image, image], "text": [QUESTION, EXPRESSION], "task": ["vqa", "grounding"]}
    answers = load(registry, "both@champion").predict(pd.DataFrame(rows))
    assert answers["box"][0] is None
    assert len(answers["box"][1]) == 4


def test_another_base_is_refused_in_one_line(
    place: Path, registry: PromptRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFIXWORKS_BASE", str(place / "other"))
    with pytest.raises(Exception, match="was made for base ofa-small") as caught:
        load(registry, "answers@champion")
    assert "ofa-other (sha256:" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    monkeypatch.setenv("PREFIXWORKS_BASE", str(place / "nowhere"))
    with pytest.raises(RegistryError, match="set PREFIXWORKS_BASE"):
        Predictor.from_folder(place / "vqa")


def test_a_missing_image_is_named(place: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jpg does not exist"):
        Predictor.from_folder(place / "vqa").predict("absent.jpg", QUESTION)


def test_command_line(
    place: Path, registry: PromptRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model", "models:/regions@champion", "--uri", registry.location.uri, "--json"]
    argv += ["--image", str(place / "picture.png"), "--text", EXPRESSION]
    assert main([*argv, "--output", str(place / "answer.png")]) == 0
    answer = json.loads(capsys.readouterr().out)
    direct = Predictor.from_folder(place / "grounding").predict(place / "picture.png", EXPRESSION)
    assert direct.box is not None
    assert answer["box"] == pytest.approx(list(direct.box))
    with Image.open(place / "answer.png") as drawn:
        assert drawn.width == 96
        assert drawn.height > 64


def test_mlflow_alone_predicts_in_a_fresh_process(place: Path, registry: PromptRegistry) -> None:
    code = (
        "import sys, mlflow\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model('models:/answers@champion')\n"
        "print('ANSWER', model.predict([{'image': sys.argv[2], 'text': sys.argv[3]}])['text'][0])\n"
    )
    command = [sys.executable, "-c", code, registry.location.uri]
    command += [str(place / "picture.png"), QUESTION]
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr
    direct = Predictor.from_folder(place / "vqa").predict(place / "picture.png", QUESTION)
    assert f"ANSWER {direct.text}" in done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(references: Sequence[str], store_uri: str, log: Path) -> Iterator[list[str]]:
    """`mlflow models serve` for registered prompts, all starting at once, stopped at the end."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store_uri, "PYTHONPATH": root}
    ports = [free_port() for _ in references]
    servers = []
    with log.open("w") as output:
        for reference, port in zip(references, ports, strict=True):
            command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
            command += ["--model-uri", f"models:/{reference}", "--port", str(port)]
            servers.append(
                subprocess.Popen(
                    command, stdout=output, stderr=output, env=environment, start_new_session=True
                )
            )
    try:
        for server, port in zip(servers, ports, strict=True):
            wait_until_served(server, port, log)
        yield [f"http://127.0.0.1:{port}/invocations" for port in ports]
    finally:
        for server in servers:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=30)


def wait_until_served(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ping"):
            return
        time.sleep(0.3)
    raise TimeoutError(log.read_text())


def ask(address: str, rows: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    request = urllib.request.Request(
        address,
        data=json.dumps({"dataframe_records": rows}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=100) as answer:
        predictions: list[dict[str, Any]] = json.loads(answer.read())["predictions"]
    return predictions


@pytest.mark.timeout(400)
def test_served_over_http_it_answers_as_in_python(place: Path, registry: PromptRegistry) -> None:
    image = place / "picture.png"
    encoded = base64.b64encode(image.read_bytes()).decode()
    asked = {"regions": EXPRESSION, "answers": QUESTION}
    references = [f"{name}@champion" for name in asked]
    with served(references, registry.location.uri, place / "serve.log") as addresses:
        for (name, text), address in zip(asked.items(), addresses, strict=True):
            rows = [{"image": str(image), "text": text}, {"image": encoded, "text": text}]
            direct = load(registry, f"{name}@champion").predict(pd.DataFrame(rows))
            # Not nearly the same: the same numbers.
            assert ask(address, rows) == direct.to_dict(orient="records")


@pytest.mark.timeout(200)
def test_mlflow_predicts_a_file_of_requests(place: Path, registry: PromptRegistry) -> None:
    rows = [{"image": str(place / "picture.png"), "text": EXPRESSION}]
    (place / "requests.json").write_text(json.dumps({"dataframe_records": rows}))
    command = [sys.executable, "-m", "mlflow", "models", "predict", "--env-manager", "local"]
    command += ["--model-uri", "models:/regions@champion", "--content-type", "json"]
    command += ["--input-path", str(place / "requests.json")]
    command += ["--output-path", str(place / "answers.json")]
    root = str(Path(__file__).resolve().parents[2])
    settings = {"MLFLOW_TRACKING_URI": registry.location.uri, "PYTHONPATH": root}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **settings}
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads((place / "answers.json").read_text())["predictions"]
    direct = load(registry, "regions@champion").predict(pd.DataFrame(rows))
    assert answers == direct.to_dict(orient="records")
