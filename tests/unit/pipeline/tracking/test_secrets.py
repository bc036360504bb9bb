"""What may be written down of an address."""

from __future__ import annotations

import pytest

from pipeline.config import RunConfig
from pipeline.errors import RegistryError
from pipeline.tracking.config import StoreLocation, TrackingConfig, resolve_store
from pipeline.tracking.delivery import open_client
from pipeline.tracking.identity import new_identity, read_identity
from pipeline.tracking.secrets import redact, redact_all, require_whole, restore, without_passwords


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("http://me:secret@host:5000/x", "http://me:***@host:5000/x"),
        ("postgresql://u:p@ss@db/prefix", "postgresql://u:***@db/prefix"),
        ("http://host:5000/x and a@b.org", "http://host:5000/x and a@b.org"),
        ("http://:token@host", "http://:***@host"),
        ("https://host/x?a=1&token=abc&b=2", "https://host/x?a=1&token=***&b=2"),
        ("s3://bucket/key", "s3://bucket/key"),
        ('["http://host:5000","x@y"]', '["http://host:5000","x@y"]'),
        ("request to http://me:pw@host/api failed", "request to http://me:***@host/api failed"),
    ],
)
def test_passwords_are_hidden_and_nothing_else(text: str, hidden: str) -> None:
    assert redact(text) == hidden
    assert redact(hidden) == hidden
    assert redact_all({"a": [text, 1, None]}) == {"a": [hidden, 1, None]}


def test_mlflows_own_password_is_hidden_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a")
    assert redact("sent correct horse as a word") == "sent *** as a word"


def test_a_hidden_password_comes_back_from_the_environment(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = "postgresql://me:secret@db/prefix"
    assert restore(redact(whole), "http://other", whole) == whole
    assert restore(redact(whole), None, "postgresql://you:secret@db/prefix") == redact(whole)
    with pytest.raises(RegistryError, match="its password was not written down"):
        require_whole(redact(whole))
    with pytest.raises(RegistryError, match="MLFLOW_TRACKING_URI"):
        open_client(StoreLocation(uri=redact(whole), artifact_root=None))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", whole)
    assert resolve_store(TrackingConfig(uri=redact(whole)), "runs").uri == whole


def test_an_identity_hides_its_password(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    whole = "http://me:secret@host"
    folder = tmp_path / "tracking"
    folder.mkdir()
    new_identity("a", "b", StoreLocation(uri=whole, artifact_root=None)).save(folder)
    assert "secret" not in (folder / "run.json").read_text()
    known = read_identity(tmp_path)
    assert known is not None
    assert known.location.uri == "http://me:***@host"
    again = read_identity(tmp_path, whole)
    assert again is not None
    assert again.location.uri == whole


def test_a_saved_configuration_hides_it_too() -> None:
    config = RunConfig(name="a", tracking=TrackingConfig(uri="http://me:secret@host"))
    assert without_passwords(config).tracking.uri == "http://me:***@host"
    plain = RunConfig(name="a")
    assert without_passwords(plain) == plain
