"""A prompt artifact gives back what was saved, bit for bit, or says why it does not."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Literal, get_args

import pytest
import safetensors.torch
import torch

from model.checkpoint import fingerprint, load_base
from model.ofa.model import OFA
from model.tuning import TunedModel
from pipeline.errors import RegistryError
from pipeline.registry.artifact import attach_prompt, read_prompt, read_record, save_prompt
from tests.support.small_prompt import small_base, small_meta, small_prompt, tuned

Method = Literal["adapter", "adapter_prefix", "bitfit"]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place") / "base"
    small_base(folder)
    return folder


@pytest.fixture
def base(base_folder: Path) -> OFA:
    return load_base(str(base_folder)).eval()


def logits(model: TunedModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    source = torch.tensor([[0, 5, 6, 7, 2], [0, 9, 2, 1, 1]])
    images = torch.randn(2, 3, 64, 64, generator=generator)
    target = torch.tensor([[0, 8, 9], [0, 4, 5]])
    with torch.inference_mode():
        return model(source, images, torch.tensor([True, True]), target)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def edit_record(folder: Path, **changes: object) -> None:
    path = folder / "prompt.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("projection_dim", [None, 16])
def test_attached_prompt_computes_the_same_bits(
    tmp_path: Path, base: OFA, base_folder: Path, projection_dim: int | None
) -> None:
    model = tuned(base, projection_dim=projection_dim)
    save_prompt(tmp_path / "prompt", model, small_meta(model))
    attached = attach_prompt(load_base(str(base_folder)), tmp_path / "prompt")
    assert torch.equal(logits(attached), logits(model))
    assert not attached.training
    other = tuned(base, seed=2)
    assert not torch.equal(logits(other), logits(model))


@pytest.mark.parametrize("method", get_args(Method))
def test_another_method_computes_the_same_bits(
    method: Method, tmp_path: Path, base: OFA, base_folder: Path
) -> None:
    before = fingerprint(base)
    model = tuned(base, method=method)
    meta = small_meta(model, base_fingerprint=before)
    record = save_prompt(tmp_path / "prompt", model, meta)
    assert record.meta.method == method
    assert record.meta.trainable_parameters == record.parameters
    assert record.length == (4 if method == "adapter_prefix" else None)
    attached = attach_prompt(load_base(str(base_folder)), tmp_path / "prompt")
    # As an attached one is: a base that does not train may compute in another order.
    model.base.freeze()
    assert torch.equal(logits(attached), logits(model))
    assert not torch.equal(logits(attached), logits(tuned(load_base(str(base_folder)))))
    assert (fingerprint(attached.base) == before) == (method != "bitfit")
    assert not any(parameter.requires_grad for parameter in attached.base.parameters())


def test_biases_are_refused_by_a_base_that_holds_others(tmp_path: Path, base: OFA) -> None:
    before = fingerprint(base)
    model = tuned(base, method="bitfit")
    save_prompt(tmp_path / "prompt", model, small_meta(model, base_fingerprint=before))
    with pytest.raises(RegistryError, match="was made for base"):
        attach_prompt(model.base, tmp_path / "prompt")


def test_only_plain_keys_and_values_are_written(tmp_path: Path, base: OFA) -> None:
    model = tuned(base, projection_dim=16)
    record = save_prompt(tmp_path / "prompt", model, small_meta(model))
    stacks = ("encoder", "decoder")
    expected = {f"{s}.{n}.{kv}" for s in stacks for n in (0, 1) for kv in ("key", "value")}
    assert set(record.tensors) == expected
    assert {entry.shape for entry in record.tensors.values()} == {(2, 4, 16)}
    assert record.meta.tuning["prefix"]["projection_dim"] is None
    assert record.meta.trainable_parameters > record.parameters


def test_saving_again_gives_the_same_bytes(tmp_path: Path, base: OFA) -> None:
    model = tuned(base)
    for name in ("one", "two"):
        save_prompt(tmp_path / name, model, small_meta(model))
    first = files(tmp_path / "one")
    assert first == files(tmp_path / "two")
    assert set(first) == {"prompt.safetensors", "prompt.json", "README.md"}
    save_prompt(tmp_path / "one", model, small_meta(model))
    assert files(tmp_path / "one") == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


def test_artifact_is_hardly_larger_than_its_tensors(tmp_path: Path, base: OFA) -> None:
    record = save_prompt(tmp_path / "prompt", tuned(base), small_meta(tuned(base)))
    size = sum(len(content) for content in files(tmp_path / "prompt").values())
    assert size <= record.parameters * 4 * 1.01 + 32 * 1024


def test_pictures_are_kept_and_shown(tmp_path: Path, base: OFA) -> None:
    picture = tmp_path / "predictions.png"
    picture.write_bytes(b"png")
    model = tuned(base)
    save_prompt(tmp_path / "prompt", model, small_meta(model), [picture])
    assert files(tmp_path / "prompt")["pictures/predictions.png"] == b"png"
    assert (
        "![predictions.png](pictures/predictions.png)"
        in (tmp_path / "prompt" / "README.md").read_text()
    )


def test_a_disk_that_is_full_leaves_the_old_artifact(tmp_path: Path, base: OFA) -> None:
    model = tuned(base)
    save_prompt(tmp_path / "prompt", model, small_meta(model, score=0.1))
    before = files(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(RegistryError, match="prompt cannot be written: File too large"):
            save_prompt(tmp_path / "prompt", model, small_meta(model, score=0.2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path) == before


def test_foreign_folders_are_left_alone(tmp_path: Path, base: OFA) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "draft.txt").write_text("dear")
    model = tuned(base)
    with pytest.raises(RegistryError, match="holds no prompt"):
        save_prompt(tmp_path / "letters", model, small_meta(model))
    assert (tmp_path / "letters" / "draft.txt").read_text() == "dear"


def test_numbers_that_are_not_finite_are_not_saved(tmp_path: Path, base: OFA) -> None:
    model = tuned(base)
    state = model.trainable_state()
    next(iter(state.values())).view(-1)[0] = float("nan")
    model.load_trainable_state(state)
    with pytest.raises(RegistryError, match="not finite"):
        save_prompt(tmp_path / "prompt", model, small_meta(model))
    assert not (tmp_path / "prompt").exists()


def test_another_base_is_refused_and_both_are_named(tmp_path: Path, base: OFA) -> None:
    small_prompt(tmp_path / "prompt", base)
    other = small_base(tmp_path / "other", seed=9, name="ofa-other")
    made_for = read_record(tmp_path / "prompt").meta.base.fingerprint
    with pytest.raises(RegistryError) as caught:
        attach_prompt(other, tmp_path / "prompt")
    message = str(caught.value)
    assert "\n" not in message
    assert "'shapes'" in message
    assert f"ofa-small ({made_for})" in message
    assert "ofa-other (sha256:" in message


def test_a_changed_buffer_makes_another_base(tmp_path: Path, base: OFA) -> None:
    small_prompt(tmp_path / "prompt", base)
    name, buffer = next((n, b) for n, b in base.named_buffers() if n.endswith("running_mean"))
    buffer.add_(1e-3)
    with pytest.raises(RegistryError, match="was made for base"):
        attach_prompt(base, tmp_path / "prompt")
    assert name


def test_tampered_tensor_is_named(tmp_path: Path, base: OFA) -> None:
    small_prompt(tmp_path / "prompt", base)
    path = tmp_path / "prompt" / "prompt.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["decoder.1.value"][0, 0, 0] += 1e-6
    path.write_bytes(safetensors.torch.save(tensors))
    with pytest.raises(RegistryError, match=r"decoder\.1\.value has sha256"):
        read_prompt(tmp_path / "prompt")


def test_damaged_artifacts_are_refused_by_name(tmp_path: Path, base: OFA) -> None:
    folder = tmp_path / "prompt"
    small_prompt(folder, base)
    whole = files(folder)
    path = folder / "prompt.safetensors"

    path.write_bytes(whole["prompt.safetensors"][:-10])
    with pytest.raises(RegistryError, match=r"prompt\.safetensors is damaged"):
        read_prompt(folder)

    tensors = safetensors.torch.load(whole["prompt.safetensors"])
    value = tensors.pop("encoder.0.key")
    path.write_bytes(safetensors.torch.save(tensors))
    with pytest.raises(RegistryError, match=r"lacks the tensor encoder\.0\.key"):
        read_prompt(folder)

    path.write_bytes(
        safetensors.torch.save(tensors | {"encoder.0.key": value, "more": value.clone()})
    )
    with pytest.raises(RegistryError, match="holds the tensor more"):
        read_prompt(folder)

    path.unlink()
    with pytest.raises(RegistryError, match=r"prompt\.safetensors is missing"):
        read_prompt(folder)

    path.write_bytes(whole["prompt.safetensors"])
    edit_record(folder, digest="sha256:00")
    with pytest.raises(RegistryError, match="digest sha256:00"):
        read_prompt(folder)

    edit_record(folder, format="prefixworks.prompt/9")
    with pytest.raises(RegistryError, match="newer format"):
        read_prompt(folder)

    (folder / "prompt.json").unlink()
    with pytest.raises(RegistryError, match=r"prompt\.json is missing"):
        read_prompt(folder)


def test_unknown_tuning_setting_is_refused(tmp_path: Path, base: OFA) -> None:
    folder = tmp_path / "prompt"
    small_prompt(folder, base)
    tuning = json.loads((folder / "prompt.json").read_text())["tuning"]
    edit_record(folder, tuning={**tuning, "colour": "red"})
    with pytest.raises(RegistryError, match="colour"):
        attach_prompt(base, folder)
