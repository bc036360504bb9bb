"""The registry's commands as scripts use them: the gate, the way back, notes, and journeys."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.registry import main
from jobs.registry_output import shown_uri
from model.ofa.model import OFA
from pipeline.errors import ConfigError, RegistryError
from pipeline.registry.artifact import read_prompt, save_prompt
from tests.support.mlflow_store import make_store
from tests.support.small_prompt import evaluated_meta, picture, small_base, tuned

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts by score, all of the same data but one."""
    folder = tmp_path_factory.mktemp("prompts")
    base = small_base(folder / "base")
    for seed, score in enumerate((40, 50, 60)):
        save(folder / str(score), base, seed, evaluated_meta(tuned(base), score=score / 100))
    other = evaluated_meta(tuned(base), score=0.9, digest="sha256:ee")
    save(folder / "elsewhere", base, 9, other)
    return folder


def save(folder: Path, base: OFA, seed: int, meta: Any) -> None:
    save_prompt(folder, tuned(base, seed=seed), meta, [picture(folder.parent)])


@pytest.fixture
def run(
    tmp_path: Path,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """`prefixworks registry ... --json` in a folder with an empty store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "runs")

    def command(*argv: str) -> Any:
        capsys.readouterr()
        assert main([*argv, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return command


def champion(run: Command) -> int | None:
    holders = [p["version"] for p in run("list") if "champion" in p["aliases"]]
    assert len(holders) <= 1
    return holders[0] if holders else None


def test_only_a_better_version_becomes_champion(run: Command, prompts: Path) -> None:
    first = run("register", str(prompts / "50"), "--alias", "champion")
    assert first["aliases"] == ["champion"]
    with pytest.raises(
        RegistryError, match=r"registered shapes/2, but shapes/2 was not.*0\.5 -> 0\.4"
    ):
        main(["register", str(prompts / "40"), "--alias", "champion", "--alias", "challenger"])
    assert champion(run) == 1
    assert run("show", "shapes@challenger")["version"] == 2
    with pytest.raises(RegistryError, match="is not better; --force"):
        main(["promote", "shapes@challenger"])

    run("register", str(prompts / "elsewhere"))
    with pytest.raises(RegistryError, match=r"different data \(world_test sha256:ee"):
        main(["promote", "shapes/3"])
    run("register", str(prompts / "60"))
    with pytest.raises(RegistryError, match="no such score"):
        main(["promote", "shapes/4", "--dataset", "elsewhere"])
    planned = run("promote", "shapes/4", "--dataset", "world_test", "--dry-run")
    assert planned["would_move"]["former"] == 1
    assert champion(run) == 1
    moved = run("promote", "shapes/4")
    assert moved["moved"]["reason"] == "vqa/accuracy 0.5 -> 0.6 on world_test"
    assert moved["tags"]["promotion"] == f"promote: {moved['moved']['reason']}"
    assert run("promote", "shapes/4")["moved"] is None
    assert run("promote", "shapes/2", "--force")["moved"]["reason"] == "forced"
    assert champion(run) == 2

    assert run("rollback", "shapes", "--dry-run")["would_move"]["version"] == 4
    assert [run("rollback", "shapes")["version"] for _ in range(2)] == [4, 1]
    with pytest.raises(RegistryError, match="no former version"):
        main(["rollback", "shapes"])
    assert champion(run) == 1
    past = [(e["action"], e["version"], e["former"]) for e in run("history", "shapes")]
    assert past == [
        ("promote", 1, None),
        ("promote", 4, 1),
        ("promote", 2, 4),
        ("rollback", 4, 2),
        ("rollback", 1, 4),
    ]


def test_registering_again_changes_nothing(run: Command, prompts: Path) -> None:
    for _ in range(2):
        same = run("register", str(prompts / "50"), "--alias", "champion", "--alias", "mine")
        assert (same["version"], same["aliases"]) == (1, ["champion", "mine"])
    assert len(run("list")) == 1
    assert run("register", str(prompts / "50"), "--name", "other")["version"] == 1


def test_notes_and_deletion(run: Command, prompts: Path) -> None:
    made = run("register", str(prompts / "50"), "--alias", "champion")
    noted = run("annotate", "shapes/1", "--tag", "owner=us", "--note", "In use since May")
    assert noted["tags"]["owner"] == "us"
    assert noted["description"] == f"> In use since May\n\n{made['description']}"
    again = run("annotate", "shapes/1", "--untag", "owner", "--note", "")
    assert again["description"] == made["description"]
    assert "owner" not in again["tags"]
    assert run("annotate", "shapes/1", "--tag", "a=b", "--dry-run")["tags"] == {"a": "b"}
    assert "a" not in run("show", "shapes/1")["tags"]
    for wrong, error, message in (
        (["--tag", "base=mine"], RegistryError, "written by the registry"),
        (["--untag", "owner"], RegistryError, "has no tag 'owner'"),
        (["--note", "x" * 2_000], RegistryError, "2000 characters"),
        (["--tag", "owner"], ConfigError, "NAME=VALUE"),
        ([], ConfigError, "name something to add"),
    ):
        with pytest.raises(error, match=message):
            main(["annotate", "shapes/1", *wrong])

    with pytest.raises(RegistryError, match="shapes/1 is champion: promote another"):
        main(["delete", "shapes/1", "--yes"])
    run("register", str(prompts / "60"))
    with pytest.raises(RegistryError, match="nobody to ask here; add --yes"):
        main(["delete", "shapes/2"])
    assert run("delete", "shapes/2", "--dry-run") == {"would_delete": "shapes/2"}
    assert len(run("list")) == 2
    assert run("delete", "shapes/2", "--yes") == {"deleted": "shapes/2"}
    assert run("delete", "shapes/1", "--yes", "--force") == {"deleted": "shapes/1"}
    assert run("list") == []
    assert [event["action"] for event in run("history", "shapes")][-2:] == ["delete", "delete"]
    # A number is never given twice.
    assert run("register", str(prompts / "40"))["version"] == 3


def test_registering_can_be_asked_first(run: Command, prompts: Path) -> None:
    planned = run("register", str(prompts / "50"), "--dry-run")
    assert planned["would_register"] == str(prompts / "50")
    assert run("list") == []
    assert shown_uri("http://me:secret@host:5000/x") == "http://host:5000/x"
    assert shown_uri("sqlite:////tmp/a.db") == "sqlite:////tmp/a.db"
    with pytest.raises(RegistryError, match="'a/b' cannot name"):
        main(["register", str(prompts / "50"), "--name", "a/b"])


def test_a_journey_keeps_tags_notes_aliases_and_digests(
    run: Command, prompts: Path, tmp_path: Path
) -> None:
    run("register", str(prompts / "50"), "--alias", "champion")
    run("register", str(prompts / "60"), "--alias", "challenger")
    run("annotate", "shapes/2", "--tag", "owner=us", "--note", "Try this")
    before = run("list")
    assert run("export", "shapes", "out", "--dry-run")["would_export"] == ["shapes/1", "shapes/2"]
    assert not (tmp_path / "out").exists()
    run("export", "shapes", "out")
    with pytest.raises(RegistryError, match="exists already"):
        main(["export", "shapes", "out"])

    make_store(tmp_path / "theirs")
    there = ("--uri", f"sqlite:///{tmp_path}/theirs/mlflow.db")
    assert run("import", "out", "--dry-run", *there)["would_import"] == ["shapes/1", "shapes/2"]
    assert [each["added"] for each in run("import", "out", *there)] == [True, True]
    after = run("list", *there)
    for old, new in zip(before, after, strict=True):
        origin = f"shapes/{old['version']}"
        kept = {name: tag for name, tag in old["tags"].items() if name != "promotion"}
        assert new["aliases"] == old["aliases"]
        assert new["tags"] | kept == new["tags"]
        assert new["tags"]["imported_from"] == origin
        assert heading(new["description"]) == heading(old["description"])
    assert after[1]["description"].startswith("> Try this\n\n# shapes")

    # Again: nothing twice, and an alias that stands elsewhere stays there.
    run("promote", "shapes/2", "--force", *there)
    again = run("import", "out", *there)
    assert [each["added"] for each in again] == [False, False]
    assert [each["aliases_left"] for each in again] == [["champion"], []]
    assert len(run("list", *there)) == 2
    run("download", "shapes/1", "fetched", *there)
    assert read_prompt("fetched").record == read_prompt(prompts / "50").record


def heading(description: str) -> str:
    """A description up to its pictures, whose addresses are those of the store."""
    return description.partition("## Pictures")[0]


def test_what_was_changed_on_the_way_is_refused(
    run: Command, prompts: Path, tmp_path: Path
) -> None:
    run("register", str(prompts / "50"))
    run("export", "shapes/1", "out")
    make_store(tmp_path / "theirs")
    there = ["--uri", f"sqlite:///{tmp_path}/theirs/mlflow.db"]
    artifact = Path("versions") / "1"

    def refused(message: str, change: Callable[[Path], object]) -> None:
        shutil.rmtree("broken", ignore_errors=True)
        shutil.copytree("out", "broken")
        change(Path("broken"))
        with pytest.raises(RegistryError, match=message):
            main(["import", "broken", *there])

    def flip(folder: Path) -> None:
        path = folder / artifact / "prompt.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    def edit(**values: Any) -> Callable[[Path], object]:
        def change(folder: Path) -> None:
            path = folder / "registry.json"
            read = json.loads(path.read_text())
            read["versions"][0] |= {name: v for name, v in values.items() if name != "format"}
            read["format"] = values.get("format", read["format"])
            path.write_text(json.dumps(read))

        return change

    refused(r"prompt\.safetensors was changed", flip)
    refused(r"README\.md is missing", lambda f: (f / artifact / "README.md").unlink())
    refused(r"extra\.py is not recorded", lambda f: (f / artifact / "extra.py").write_text("1"))
    refused("holds a link", lambda f: (f / artifact / "x").symlink_to("/etc/hostname"))
    refused(r"registry\.json is missing", lambda f: (f / "registry.json").unlink())
    refused("cannot be read", lambda f: (f / "registry.json").write_text("{"))
    refused("has the format 'prefixworks.registry/2'", edit(format="prefixworks.registry/2"))
    refused("leaves the folder", edit(folder="../out/versions/1"))
    refused("not the prompt that its tags name", edit(tags={"prompt_digest": "sha256:00"}))
    refused("is damaged", edit(tags=[1]))
    assert run("list", *there) == []


def test_versions_stand_side_by_side(run: Command, prompts: Path) -> None:
    for name in ("50", "60", "elsewhere"):
        run("register", str(prompts / name))
    found = run("compare", "shapes/1", "shapes/2")
    assert found["metrics"] == {"vqa/accuracy": [0.5, 0.6]}
    assert found["comparable"]
    assert set(found["facts"]) == {"prompt_digest"}
    assert not run("compare", "shapes/1", "shapes/2", "shapes/3")["comparable"]
    with pytest.raises(ConfigError, match="at least two"):
        main(["compare", "shapes/1"])
