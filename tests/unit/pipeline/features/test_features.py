"""Features on disk are those of the trunk, and nothing else is taken for them."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from model.checkpoint import TOKENIZER_FILE, load_base, save_base
from model.tokenizer import OFATokenizer
from pipeline.config import RunConfig, load
from pipeline.errors import ConfigError, DataError
from pipeline.features.compute import compute_shard
from pipeline.features.files import FeatureFiles
from pipeline.features.opening import frozen_trunk, open_features
from pipeline.features.record import MANIFEST_FILE, list_path, records_path, withdraw
from pipeline.training.assembly import Assembler, PlacedSample
from pipeline.training.data import Batch, Collator, ShardReader
from pipeline.training.subject import build_model
from tests.support.small_features import feature_tasks, write_features
from tests.support.small_world import prepared_world
from tests.support.training_run import small_base

BATCH = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_world(tmp_path_factory.mktemp("data"), scenes=5, shard_size=10)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return small_base(tmp_path_factory.mktemp("base") / "base", data)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, data: Path, base: Path) -> Path:
    folder = tmp_path_factory.mktemp("features") / "fp32"
    write_features(folder, data, base, batch_size=BATCH)
    return folder


@pytest.fixture
def folder(tmp_path: Path, written: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / "features"))


def batches(data: Path, base: Path, features: Path | None) -> list[Batch]:
    tokenizer = OFATokenizer.from_file(base / TOKENIZER_FILE)
    config = load_base(str(base)).config
    with ShardReader(data) as reader:
        stored = None if features is None else [FeatureFiles(features)]
        collate = Collator(tokenizer, config, config.image_size)
        assemble = Assembler([reader.files], collate, 0, features=stored)
        places = [PlacedSample(at, 0, reader.index.address(at)) for at in range(len(reader))]
        return [assemble(places[at : at + BATCH]) for at in range(0, len(places) - BATCH, BATCH)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_computes_the_same_bits_from_features(
    tmp_path: Path, data: Path, base: Path, precision: str
) -> None:
    write_features(tmp_path / "f", data, base, precision=precision, batch_size=BATCH)
    model = load_base(str(base)).freeze()
    plain, stored = batches(data, base, None), batches(data, base, tmp_path / "f")
    assert len(plain) == len(stored) > 5
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for one, other in zip(plain, stored, strict=True):
            assert one.uids == other.uids
            assert other.images_BCHW.shape[1] == model.config.image_channels
            assert other.images_BCHW.is_contiguous(memory_format=torch.channels_last)
            logits, again = (
                model(b.source_ids_BS, b.images_BCHW, b.image_present_B, b.decoder_ids_BT)
                for b in (one, other)
            )
            assert torch.equal(logits, again)


def test_what_is_whole_is_kept_and_what_is_not_is_made_again(
    folder: Path, data: Path, base: Path
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert all(done.kept for done in write_features(folder, data, base, batch_size=BATCH))
    records = records_path(folder, 1)
    content = bytearray(records.read_bytes())
    content[5] ^= 1
    records.write_bytes(content)
    list_path(folder, 2).write_text("{")
    done = write_features(folder, data, base, batch_size=BATCH)
    assert [computed.shard for computed in done if not computed.kept] == [1, 2]
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    # Another kind of features takes nothing over.
    assert not any(done.kept for done in write_features(folder, data, base, batch_size=1))


def test_equal_images_are_stored_once(folder: Path, data: Path) -> None:
    files = FeatureFiles(folder)
    stored = [json.loads(list_path(folder, n).read_text())["file"]["images"] for n in (0, 1)]
    assert all(len(names) == len(set(names)) for names in stored)
    with ShardReader(data) as reader:
        assert files.manifest.images < len(reader)


def test_files_travel_to_other_processes_and_serve_many_threads(folder: Path) -> None:
    files = FeatureFiles(folder)
    names = json.loads(list_path(folder, 0).read_text())["file"]["images"]
    first = [files.read(0, name) for name in names]
    copy = pickle.loads(pickle.dumps(files))
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = pool.map(lambda name: copy.read(0, name), names)
            assert all(map(torch.equal, found, first))


def test_damage_is_an_error_that_names_the_file(folder: Path) -> None:
    name = json.loads(list_path(folder, 0).read_text())["file"]["images"][1]
    files = FeatureFiles(folder)
    files.read(0, name)
    with pytest.raises(DataError, match=r"features-000000.bin has no features of the image"):
        files.read(0, "0" * 64)
    content = records_path(folder, 0).read_bytes()
    size = files.manifest.kind.record_bytes
    records_path(folder, 0).write_bytes(content[: size + 9])
    with pytest.raises(DataError, match=r"features-000000.bin is corrupt at record 1"):
        FeatureFiles(folder).read(0, name)
    records_path(folder, 0).write_bytes(content[:size] + b"\xff" + content[size + 1 :])
    with pytest.raises(DataError, match=r"is corrupt at record 1: run `prefixworks features`"):
        FeatureFiles(folder).read(0, name)
    records_path(folder, 0).unlink()
    with pytest.raises(DataError, match=r"features-000000.bin cannot be opened"):
        FeatureFiles(folder).read(0, name)
    list_path(folder, 0).write_text("[]")
    with pytest.raises(DataError, match=r"features-000000.json is not what features.json says"):
        FeatureFiles(folder).read(0, name)
    with pytest.raises(DataError, match=r"knows of no shard 99"):
        FeatureFiles(folder).read(99, name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is damaged"),
        ("[]", "is not of format prefixworks.features/1"),
        ('{"format": "prefixworks.features/2"}', "is not of format prefixworks.features/1"),
        ('{"format": "prefixworks.features/1", "kind": {}}', "features.json is damaged"),
        (None, "holds no finished features"),
    ],
)
def test_a_manifest_that_is_none_is_one_line(folder: Path, content: str | None, said: str) -> None:
    (folder / MANIFEST_FILE).unlink()
    if content is not None:
        (folder / MANIFEST_FILE).write_text(content)
    with pytest.raises(DataError, match=said):
        FeatureFiles(folder)


def test_a_full_disk_leaves_nothing_that_looks_finished(
    tmp_path: Path, data: Path, base: Path
) -> None:
    task = feature_tasks(tmp_path / "f", data, base)[0]
    with _small_files(1000), pytest.raises(DataError, match=r"features-000000.bin cannot be writt"):
        compute_shard(task)
    assert list((tmp_path / "f").iterdir()) == []
    assert not compute_shard(task).kept


@contextmanager
def _small_files(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_another_data_set_left_is_withdrawn(folder: Path, data: Path, base: Path) -> None:
    manifest = FeatureFiles(folder).manifest
    (folder / ".features-000001.bin.0.tmp").write_bytes(b"half")
    withdraw(folder, manifest.dataset, manifest.kind, len(manifest.files))
    assert FeatureFiles(folder).manifest == manifest
    assert not list(folder.glob(".features*"))
    withdraw(folder, "sha256:other", manifest.kind, 1)
    assert {path.name for path in folder.iterdir()} == {
        "features-000000.bin",
        "features-000000.json",
    }


def config_of(base: Path, data: Path, features: str, *more: tuple[str, str]) -> RunConfig:
    words = [("name", "run"), ("base.path", str(base)), ("data.train", f"[{data}]")]
    return load(RunConfig, overrides=[*words, ("data.features", features), *more])


def opened(config: RunConfig, digests: list[str]) -> list[FeatureFiles] | None:
    model = build_model(config)
    size = config.data.image_size or model.base.config.image_size
    return open_features(config, size, frozen_trunk(config, model), digests)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([("data.image_size", "64")], "made with image_size 48, the run has 64"),
        ([("engine.precision", "bf16")], "made with precision fp32, the run has bf16"),
        (
            [("tuning.method", "bitfit"), ("tuning.bitfit.biases", "all")],
            "the run trains the image trunk",
        ),
    ],
)
def test_features_for_other_settings_are_refused(
    base: Path, data: Path, written: Path, more: list[tuple[str, str]], said: str
) -> None:
    config = config_of(base, data, f"[{written}]", *more)
    digest = FeatureFiles(written).manifest.dataset
    with pytest.raises(ConfigError, match=said):
        opened(config, [digest])


def test_features_of_another_trunk_or_other_data_are_refused(
    tmp_path: Path, base: Path, data: Path, written: Path
) -> None:
    config = config_of(base, data, f"[{written}]")
    digest = FeatureFiles(written).manifest.dataset
    found = opened(config, [digest])
    assert found is not None
    assert [files.folder for files in found] == [written]
    with pytest.raises(ConfigError, match=r"made of other data than data\.train"):
        opened(config, ["sha256:other"])
    two = config_of(base, data, f"[{written}]", ("data.train", f"[{data}, elsewhere]"))
    with pytest.raises(ConfigError, match=r"none for '.*'; give those of every training"):
        opened(two, [digest, "sha256:other"])
    other = load_base(str(base))
    with torch.no_grad():
        other.encoder.embed_images.bn1.running_mean.add_(1)
    save_base(other, base / TOKENIZER_FILE, tmp_path / "other")
    config = config_of(tmp_path / "other", data, f"[{written}]")
    with pytest.raises(ConfigError, match=r"made with trunk sha256:.*, the run has sha256:"):
        opened(config, [digest])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("tuning.method", "finetune"), "tuning.method = finetune trains it"),
        (("data.augmentation.grounding.zoom", "[1.0, 1.5]"), "leave augmentation out"),
    ],
)
def test_features_need_a_frozen_trunk_and_images_as_they_are(
    base: Path, data: Path, more: tuple[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of(base, data, "[there]", more)
