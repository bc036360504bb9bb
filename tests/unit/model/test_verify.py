"""Reading of fixture folders, good and damaged, and how errors are measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from model.errors import CheckpointError
from model.verify import TOLERANCES, Finding, Kind, Subjects, all_checks, read_fixtures
from model.verify.finding import finding
from model.verify.subjects import offered_methods
from tests.support.golden_micro import (
    FIXTURES,
    FOLDER,
    changeable_copy,
    findings,
    replace_bytes,
    subjects,
)

FILES = sorted(file.name for file in FOLDER.iterdir() if file.name != "README.json")


def _compute(folder: Path, case: str) -> None:
    fixtures = read_fixtures(folder)
    subjects_of_folder = Subjects(fixtures)
    for check in all_checks(fixtures):
        if check.case == case:
            check.findings(subjects_of_folder)


def _damaged(folder: Path, case: str = "base") -> str:
    """The one line that reading a damaged folder, or computing a case of it, ends with."""
    with pytest.raises(CheckpointError) as raised:
        _compute(folder, case)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    folder = changeable_copy(tmp_path / "copy")
    (folder / name).unlink()
    assert f"{name} is missing" in _damaged(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(name: str, tmp_path: Path) -> None:
    folder = changeable_copy(tmp_path / "copy")
    whole = (FOLDER / name).read_bytes()
    replace_bytes(folder / name, whole[: len(whole) // 2])
    assert f"{name} is not" in _damaged(folder)


def test_a_pickle_in_place_of_tensors_is_not_opened(tmp_path: Path) -> None:
    folder = changeable_copy(tmp_path / "copy")
    opened = tmp_path / "opened"

    class Payload:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return Path.touch, (opened,)

    (folder / "cases.safetensors").unlink()
    torch.save({"x": Payload()}, folder / "cases.safetensors")
    assert "cases.safetensors is not a readable safetensors file" in _damaged(folder)
    assert not opened.exists()


def _set(*path: str | int, to: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for step in path[:-1]:
            content = content[step]
        content[path[-1]] = to

    return change


def _changed(folder: Path, file: str, change: Callable[[Any], None]) -> Path:
    changeable_copy(folder)
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    return folder


def _set_config(*path: str | int, to: Any) -> Callable[[Any], None]:
    return _set("config", *path, to=to)


def _set_prefix(*path: str | int, to: Any) -> Callable[[Any], None]:
    return _set("config", "variants", "prefix_both", *path, to=to)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (_set("config", to=[]), "config must be an object"),
        (_set_config("attention_heads", to=0), "sizes don't fit"),
        (_set_config("attention_heads", to="4"), "config.attention_heads must be of type int"),
        (_set_config("resnet_layers", to=[1, 1]), "must be three numbers"),
        (_set("cases", "base", "variant", to="lora"), "unknown variant 'lora'"),
        (_set_prefix("weights", 1, to="../prefix.safetensors"), "is no file of the folder"),
        (
            _set_prefix("options", "decoder_prompt_length", to=6),
            "differs from the encoder's in kind",
        ),
    ],
)
def test_what_the_description_gets_wrong_is_named(
    change: Callable[[Any], None], line: str, tmp_path: Path
) -> None:
    assert line in _damaged(_changed(tmp_path / "copy", "config.json", change))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (_set("losses", "plain", "loss_sum", to=None), "losses.plain.loss_sum is missing"),
        (_set("losses", "plain", "sample_size", to=True), "must be of type int"),
        (_set("losses", "constraint_range", "options", "constraint_range", to="2"), "FIRST,END"),
        (_set("vqa", "answers", "w10", to=[5000]), "must hold ids from 0 to 368"),
        (_set("vqa", "allcand", "src.base", "predictions", 0, to="w99"), "among the answers"),
    ],
)
def test_what_the_losses_get_wrong_is_named(
    change: Callable[[Any], None], line: str, tmp_path: Path
) -> None:
    assert line in _damaged(_changed(tmp_path / "copy", "losses.json", change))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (_set("caption.base", "options", "diversity", to=1), "diversity is not known here"),
        (_set("caption.base", "options", "max_len_a", to=0.5), "must be 0"),
        (_set("caption.base", "options", "beam_size", to=0), "need beam >= 1"),
        (_set("caption.base", "hypotheses", 0, 0, "tokens", to=[-1]), "ids from 0 to 368"),
        (_set("caption.base", "hypotheses", 0, to={}), "must be a list of lists"),
    ],
)
def test_what_the_searches_get_wrong_is_named(
    change: Callable[[Any], None], line: str, tmp_path: Path
) -> None:
    assert line in _damaged(_changed(tmp_path / "copy", "beam.json", change))


@pytest.mark.parametrize(
    ("file", "change", "line", "case"),
    [
        (
            "config.json",
            _set_config("ffn_dim", to=128),
            "doesn't fit its configuration",
            "base",
        ),
        (
            "config.json",
            _set("cases", "new", to={"variant": "base", "num_patches": 16}),
            "no tensor new/",
            "new",
        ),
        (
            "config.json",
            _set_prefix("weights", 1, to="proj.safetensors"),
            "fit this model",
            "prefix_both",
        ),
        (
            "config.json",
            lambda content: content["config"]["variants"]["prefix_both"]["options"].update(
                encoder_prompt_length=0, decoder_prompt_length=0
            ),
            "variant prefix_both: tuning.prefix.length: 0 is not at least 1",
            "prefix_both",
        ),
        (
            "config.json",
            _set_config("variants", "proj_both", "weights", 1, to="prefix.safetensors"),
            "prefix.safetensors has no ",
            "proj_both",
        ),
        (
            "losses.json",
            _set("gradients", "prefix_both", "params", 0, to="x"),
            "don't fit",
            "gradient prefix_both",
        ),
        (
            "beam.json",
            _set("caption.base", "options", "beam_size", to=300),
            "too wide",
            "beam caption.base",
        ),
        (
            "beam.json",
            _set("caption.base", "hypotheses", to=[]),
            "has other sources",
            "beam caption.base",
        ),
    ],
)
def test_files_that_do_not_fit_together_are_named(
    file: str, change: Callable[[Any], None], line: str, case: str, tmp_path: Path
) -> None:
    assert line in _damaged(_changed(tmp_path / "copy", file, change), case)


_GRADIENT = "grad_prefix_enc/encoder.encoder_prompt_encoder.embedding.weight"


@pytest.mark.parametrize(
    ("name", "changed", "line", "case"),
    [
        ("inputs/src_tokens", lambda t: t + 369, "rows of ids from 0 to 368", "base"),
        ("inputs/src_tokens", lambda t: t[:2], "batches of 2, 3", "base"),
        ("inputs/patch_masks", lambda t: t[:2], "one value for each", "base"),
        ("text_long/logit_positions", lambda t: t + 300, "positions below 300", "text_long"),
        ("base/encoder_padding_mask", None, "no tensor base/encoder_padding_mask", "base"),
        (_GRADIENT, None, f"no tensor {_GRADIENT}", "gradient prefix_enc"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    name: str, changed: Callable[[Tensor], Tensor] | None, line: str, case: str, tmp_path: Path
) -> None:
    folder = changeable_copy(tmp_path / "copy")
    recorded = load_file(FOLDER / "cases.safetensors")
    tensor = recorded.pop(name)
    if changed is not None:
        recorded[name] = changed(tensor).contiguous()
    replace_bytes(folder / "cases.safetensors", save(recorded))
    assert line in _damaged(folder, case)


def test_an_unknown_output_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    folder = changeable_copy(tmp_path / "copy")
    recorded = {**load_file(FOLDER / "cases.safetensors"), "base/attention": torch.zeros(3)}
    replace_bytes(folder / "cases.safetensors", save(recorded))
    assert "base/attention cannot be compared" in _damaged(folder)


def test_a_folder_without_cases_is_refused(tmp_path: Path) -> None:
    folder = changeable_copy(tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "cases": {}}))
    empty = {"losses": {}, "gradients": {}, "vqa": {"answers": {}, "allcand": {}}}
    (folder / "losses.json").write_text(json.dumps(empty))
    (folder / "beam.json").write_text("{}")
    assert "holds no cases" in _damaged(folder)


def _finding(kind: Kind, found: Any, expected: Any, counts: Any = None) -> Finding:
    mask = None if counts is None else torch.tensor(counts)
    return finding("case", "what", kind, "x", torch.tensor(found), torch.tensor(expected), mask)


def test_errors_are_measured_where_it_counts() -> None:
    pair = ([1.0, 2.0, 50.0], [1.5, 2.0, 4.0])
    assert _finding(Kind.LOGITS, *pair).error == 46.0
    assert _finding(Kind.LOGITS, *pair, [True, True, False]).error == 0.5
    assert _finding(Kind.LOSS, *pair, [True, True, False]).error == pytest.approx(1 / 3)
    assert _finding(Kind.GRADIENT, [3.0, 4.0], [3.0, 5.0]).error == pytest.approx(1 / 34**0.5)
    assert _finding(Kind.EXACT, [1, 2, 3], [1, 5, 4]).error == 2


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.EXACT])
def test_what_is_no_number_or_not_there_never_passes(kind: Kind) -> None:
    for found, expected, counts in [
        ([math.nan, 1.0], [1.0, 1.0], None),
        ([math.inf, 1.0], [math.inf, 1.0], None),
        ([1.0], [1.0, 1.0], None),
        ([1.0, 1.0], [1.0, 1.0], [False, False]),
        ([1.0, 1.0], [1.0, 1.0], [True]),
    ]:
        error = _finding(kind, found, expected, counts).error
        assert not error <= max(tolerances[kind] for tolerances in TOLERANCES.values())


@pytest.mark.parametrize(("dtype", "finer"), [("bf16", "fp16"), ("fp16", "fp32")])
def test_tolerances_tell_one_precision_from_the_next(dtype: str, finer: str) -> None:
    found = [f for f in findings("prefix_both", dtype) if f.kind is not Kind.EXACT]
    assert all(f.error <= TOLERANCES[dtype][f.kind] for f in found)
    missed = {f.what for f in found if f.error > TOLERANCES[finer][f.kind]}
    assert {"logits", "logits step by step", "encoder hidden states 2"} <= missed


def test_only_what_needs_a_method_that_is_not_offered_is_skipped() -> None:
    offered = set(offered_methods())
    assert "prefix" in offered
    for name, variant in FIXTURES.variants.items():
        reason = subjects().missing(name)
        absent = [method for method in variant.methods if method not in offered]
        if absent:
            assert reason == f"needs {', '.join(absent)}"
        else:
            assert reason is None or (len(variant.methods) > 1 and reason.endswith(" at once"))


def test_a_search_that_ties_decide_is_scored_and_not_repeated() -> None:
    undecided = {check.case for check in all_checks(FIXTURES) if check.undecided}
    assert {name for name in undecided if ".base" in name} == {
        "beam vqa_prefix_notrie.prev_output.base"
    }
    for check in all_checks(FIXTURES):
        if check.case in undecided and check.variant == "base":
            assert (check.skipped(subjects()) is None) == (check.side == "forced")
