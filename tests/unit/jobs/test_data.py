"""`prefixworks data`: what its commands print, write, and end with."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_prep.inspection.contact_sheet import sample_texts
from data_prep.manifest import read_manifest
from data_prep.prepared import PreparedDataset
from jobs.cli import main
from jobs.data import SUBCOMMANDS
from jobs.data_inspect import chosen
from pipeline.config_reader import to_yaml
from tests.support.raw_data import jpeg, prepare_config, write_json, write_raw
from tests.support.rewritten import in_format, rewrite
from tests.support.small_world import prepared_world

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_world(tmp_path_factory.mktemp("data"), scenes=3, shard_size=12)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_raw(tmp_path / "raw")
    return tmp_path / "raw"


def recipe(raw: Path, **changes: Any) -> str:
    path = raw.parent / "prepare.yaml"
    path.write_text(to_yaml(prepare_config(raw, raw.parent / "out", **changes)))
    return f"--config={path}"


def test_help_names_every_command(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for name, command in SUBCOMMANDS.items():
        assert command.summary in printed
        assert f"prefixworks data {name}" in printed


@pytest.mark.parametrize("name", [n for n, c in SUBCOMMANDS.items() if
                                  importlib.util.find_spec(c.module)])  # fmt: skip
def test_every_command_teaches(name: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", name, "--help"])
    assert ended.value.code == 0
    assert f"prefixworks data {name} " in capsys.readouterr().out


def test_verify_passes_what_is_whole(whole: Path, capsys: Capture) -> None:
    assert main(["data", "verify", str(whole), "--decode", "--workers=1"]) == 0
    assert f"{whole}: whole; 24 samples and 24 images in 2 shards" in capsys.readouterr().out


def test_verify_tells_damage_and_fails(whole: Path, tmp_path: Path, capsys: Capture) -> None:
    broken = Path(shutil.copytree(whole, tmp_path / "broken"))
    (broken / "shard-000001.tar").unlink()
    (broken / "extra.tar").write_bytes(b"")
    words = ["data", "verify", str(whole), str(broken), "--workers=1"]
    assert main([*words, "--show=1"]) == 1
    printed = capsys.readouterr().out
    assert f"{whole}: whole" in printed
    assert f"{broken}: 2 problems" in printed
    assert "and 1 more" in printed
    assert main([*words, "--json"]) == 1
    results = json.loads(capsys.readouterr().out)
    assert [each["problems"]["total"] for each in results] == [0, 2]
    assert {each["where"] for each in results[1]["problems"]["kept"]} == {
        "extra.tar",
        "shard-000001.tar",
    }


def test_verify_of_no_dataset_is_a_problem(tmp_path: Path, capsys: Capture) -> None:
    assert main(["data", "verify", str(tmp_path / "nothing"), "--workers=1"]) == 1
    assert "not a prepared dataset" in capsys.readouterr().out


def test_inspect_prints_and_draws(whole: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "look"
    assert main(["data", "inspect", str(whole), f"--output={output}", "--images=5"]) == 0
    printed = capsys.readouterr().out
    assert "world: 24 samples, 24 stored images, 2 shards" in printed
    assert "detection" in printed
    numbers = json.loads((output / "statistics.json").read_bytes())
    assert numbers["samples_by_task"] == read_manifest(whole).tasks
    assert numbers["seen"] == 24
    sides = numbers["tasks"]["grounding"]["box_sides"]
    assert 0 < sides["min"] <= sides["median"] <= sides["max"] <= 1
    with Image.open(output / "samples.png") as sheet:
        # Five cells of 260 pixels beside each other.
        assert sheet.width > 5 * 260
        colors = sheet.convert("RGB").getcolors(10**7)
    assert colors is not None
    assert len(colors) > 500
    with Image.open(output / "histograms.png") as page:
        assert page.size == (1500, 850)


def test_inspect_is_the_same_for_the_same_seed(whole: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        output = f"--output={tmp_path / name}"
        assert main(["data", "inspect", str(whole), output, "--max-samples=7", "--seed=3"]) == 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    numbers = json.loads((tmp_path / "one" / "statistics.json").read_bytes())
    assert numbers["seen"] == sum(task["samples"] for task in numbers["tasks"].values()) == 7


def test_inspect_as_json_beside_a_dataset_of_shared_images(
    whole: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = rewrite(whole, tmp_path / "shared", change=in_format("PNG"), share=True)
    assert main(["data", "inspect", str(folder), "--json", "--no-pictures"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["store_images"] == "once_per_shard"
    assert numbers["stored_images"] < numbers["samples"]
    assert not (tmp_path / "shared.inspect").exists()
    assert main(["data", "inspect", str(folder)]) == 0
    assert (tmp_path / "shared.inspect" / "samples.png").is_file()
    # What lies beside the dataset is not in it.
    assert main(["data", "verify", str(folder), "--workers=1"]) == 0


def test_inspect_of_a_damaged_dataset_is_one_line(
    whole: Path, tmp_path: Path, capsys: Capture
) -> None:
    broken = Path(shutil.copytree(whole, tmp_path / "broken"))
    (broken / "shard-000000.tar").write_bytes(b"")
    assert main(["data", "inspect", str(broken), "--no-pictures"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_choice_is_seeded_and_increasing() -> None:
    first = chosen(1_000_000, 50, 0)
    assert first is not None
    assert first == chosen(1_000_000, 50, 0) == sorted(set(first))
    assert first != chosen(1_000_000, 50, 1)
    assert chosen(10, 10, 0) is None
    assert chosen(10, None, 0) is None


def test_texts_of_a_sample_are_printable(whole: Path) -> None:
    for _, sample in PreparedDataset(whole).samples():
        texts = sample_texts(sample)
        assert texts[0].startswith(f"[{sample.task}]")
        assert all(text.isprintable() for text in texts)


def test_lint_passes_a_good_recipe_and_writes_nothing(raw: Path, capsys: Capture) -> None:
    assert main(["data", "lint", recipe(raw)]) == 0
    assert "nothing here would fail mix" in capsys.readouterr().out
    assert not (raw.parent / "out").exists()


def _remove(raw: Path, name: str) -> None:
    path = raw / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _rename_images(raw: Path) -> None:
    for path in (raw / "images").iterdir():
        path.rename(path.with_name(f"COCO_train2014_{path.name}"))


def _twice(raw: Path) -> None:
    lines = (raw / "snli_ve.jsonl").read_text()
    (raw / "snli_ve.jsonl").write_text(lines + lines.splitlines()[0] + "\n")


@pytest.mark.parametrize(
    ("damage", "settings", "messages"),
    [
        (
            lambda raw: _remove(raw, "images"),
            [],
            ["error: mix, vqav2/train: images: ", "no such folder"],
        ),
        (
            lambda raw: _remove(raw, "questions.json"),
            [],
            ["questions: ", "questions.json cannot be read: No such file"],
        ),
        (
            lambda raw: (raw / "captions.json").write_text("{"),
            [],
            ["captions.json is not valid JSON"],
        ),
        (
            lambda raw: None,
            ["--datasets.mix.sources.2.split=tets"],
            ["split 'tets' is not in", "it has train (3), val (3)"],
        ),
        (
            _rename_images,
            [],
            [
                "all of the 6 annotations looked at would be rejected",
                "no image is called '000000000001.jpg'",
                'set image_name: "COCO_train2014_{id:012d}.jpg"',
                "'images' has to be the folder",
            ],
        ),
        (
            lambda raw: (raw / "images" / f"{2:012d}.jpg").write_bytes(jpeg(2)[:-300]),
            ["--max_reject_rate=0.1"],
            [
                "1 truncated_image, such as vqav2/train/200 (questions.json:questions[1]):",
                "4 of 30 annotations looked at would be rejected, above max_reject_rate 0.1",
            ],
        ),
        (
            lambda raw: Image.new("RGB", (99, 50)).save(raw / "images" / f"{1:012d}.jpg"),
            [],
            ["size_mismatch", "boxes refer to (48, 32)", "are these resized copies"],
        ),
        (_twice, [], ["1 duplicate_uid", "names a sample twice"]),
        (
            lambda raw: write_json(raw / "answers.json", {"annotations": []}),
            [],
            ["6 no_answers", "of different splits"],
        ),
        (
            lambda raw: write_json(raw / "questions.json", {"questions": []}),
            [],
            ["6 unknown_question"],
        ),
        (
            lambda raw: write_json(raw / "captions.json", {"images": [], "annotations": []}),
            [],
            ["the annotation files hold no annotation"],
        ),
        (
            lambda raw: (raw.parent / "out").write_text("a file"),
            [],
            ["error: output_dir: ", "is a file"],
        ),
    ],
)
def test_lint_tells_what_would_fail(
    raw: Path, capsys: Capture, damage: Any, settings: list[str], messages: list[str]
) -> None:
    damage(raw)
    assert main(["data", "lint", recipe(raw), *settings]) == 1
    printed = capsys.readouterr().out
    for message in messages:
        assert message in printed
    assert "nothing here would fail" not in printed


def test_lint_lets_pass_what_the_limit_allows(raw: Path, capsys: Capture) -> None:
    (raw / "images" / f"{2:012d}.jpg").unlink()
    assert main(["data", "lint", recipe(raw), "--max_reject_rate=0.5"]) == 0
    printed = capsys.readouterr().out
    assert "1 missing_image" in printed
    assert "cut short?" in printed


def test_lint_looks_at_the_first_annotations_only(raw: Path, capsys: Capture) -> None:
    (raw / "images" / f"{6:012d}.jpg").unlink()
    assert main(["data", "lint", recipe(raw), "--samples=2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [source["seen"] for source in report["sources"]] == [2] * 5
    assert not any(source["whole"] for source in report["sources"])


def test_lint_of_an_impossible_recipe_is_a_configuration_error(raw: Path, capsys: Capture) -> None:
    assert main(["data", "lint", recipe(raw), "--sede=1"]) == 2
    assert "seed" in capsys.readouterr().err
