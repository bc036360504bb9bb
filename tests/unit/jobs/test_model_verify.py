"""`model verify` as it is typed: what passes, what is missed and named, what ends in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from jobs.cli import run_stage
from jobs.model_verify import main
from tests.support.golden_micro import FOLDER, changeable_copy, replace_bytes


def _run(
    folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, list[str], str]:
    """Exit status, lines of the table, and what was said on stderr."""
    status = run_stage(main, ["--fixtures", str(folder), *arguments])
    said = capsys.readouterr()
    return status, said.out.splitlines(), said.err


def _changed(
    folder: Path, name: str, change: Callable[[Tensor], object], file: str = "cases.safetensors"
) -> Path:
    """A copy of the folder in which one tensor is changed in place."""
    changeable_copy(folder)
    tensors = load_file(FOLDER / file)
    change(tensors[name])
    replace_bytes(folder / file, save(tensors))
    return folder


def _missed(lines: list[str]) -> list[str]:
    return [line for line in lines if line.endswith("MISS")]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_recorded_cases_are_within_tolerance(
    dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines, err = _run(FOLDER, capsys, "--dtype", dtype)
    assert (status, err, _missed(lines)) == (0, "", [])
    assert f"compared on cpu in {dtype}: all within tolerance" in lines[-1]
    table = lines[2:-1]
    ok = [line for line in table if line.endswith("  ok")]
    assert lines[-1].startswith(f"{len(ok)} compared")
    assert len(ok) >= (280 if dtype == "fp32" else 180)
    searched = [line for line in ok if line.startswith("beam ") and "  tokens  " in line]
    assert bool(searched) == (dtype == "fp32")
    assert any("scores by forced decoding" in line for line in ok)
    skipped = [line for line in table if "  skipped: " in line]
    assert len(ok) + len(skipped) == len(table)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_gpu_is_within_tolerance(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines, err = _run(FOLDER, capsys, "--device", "cuda", "--dtype", dtype)
    assert (status, err, _missed(lines)) == (0, "", [])


def test_one_wrong_logit_is_missed_and_its_case_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _changed(tmp_path / "copy", "prefix_enc/logits", lambda t: t[0, 0, 5].add_(1e-3))
    status, lines, _ = _run(folder, capsys)
    assert status == 1
    missed = _missed(lines)
    assert [line.split("  ")[0] for line in missed] == ["prefix_enc", "prefix_enc"]
    assert all("logits" in line and "1.0e-03" in line for line in missed)
    assert "2 missed in prefix_enc" in lines[-1]


def test_a_value_at_padding_does_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    padding = load_file(FOLDER / "cases.safetensors")["inputs/prev_output_tokens"] == 1
    assert padding.any()
    folder = _changed(
        tmp_path / "copy", "base/logits", lambda t: t.masked_fill_(padding[..., None], 99.0)
    )
    assert _run(folder, capsys)[0] == 0


def test_a_prompt_that_is_not_applied_is_missed_in_bf16(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "decoder.decoder_prompt_encoder.embedding.weight"
    folder = _changed(tmp_path / "copy", name, lambda t: t.zero_(), file="prefix.safetensors")
    status, lines, _ = _run(folder, capsys, "--dtype", "bf16")
    assert status == 1
    missed = _missed(lines)
    for case in ("prefix_both", "prefix_dec"):
        assert any(line.startswith(f"{case} ") and "  logits  " in line for line in missed)
    assert not any(line.startswith(("base ", "prefix_enc ", "proj_both ")) for line in missed)


def test_every_wrong_number_is_missed_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changeable_copy(tmp_path / "copy")
    losses = json.loads((folder / "losses.json").read_text())
    losses["losses"]["conf"]["nll_sum"] += 0.01
    losses["losses"]["rdrop_fn_plain"]["sample_size"] += 1
    losses["gradients"]["prefix_enc"]["loss_sum"] += 0.01
    losses["vqa"]["allcand"]["src.base"]["predictions"][0] = "w10"
    (folder / "losses.json").write_text(json.dumps(losses))
    beams = json.loads((folder / "beam.json").read_text())
    beams["caption_greedy.base"]["hypotheses"][1][0]["score"] += 0.001
    beams["refcoco_range.prefix_both"]["hypotheses"][0].pop()
    (folder / "beam.json").write_text(json.dumps(beams))
    status, lines, _ = _run(folder, capsys)
    assert status == 1
    assert {line.split("  ")[0] for line in _missed(lines)} == {
        "loss conf",
        "loss rdrop_fn_plain",
        "gradient prefix_enc",
        "candidates src.base",
        "beam caption_greedy.base",
        "beam refcoco_range.prefix_both",
    }


def test_json_has_one_row_a_comparison(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = _changed(tmp_path / "copy", "base/logits", lambda t: t[0, 0, 0].fill_(float("nan")))
    status = run_stage(main, ["--fixtures", str(folder), "--json"])

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    report = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert status == 1
    assert report["ok"] is False
    assert (report["device"], report["dtype"]) == ("cpu", "fp32")
    assert report["torch"] == torch.__version__
    rows = report["comparisons"]
    assert len({(row["case"], row["compared"]) for row in rows}) == len(rows) >= 280
    missed = [row for row in rows if row["result"] == "MISS"]
    assert {(row["case"], row["error"]) for row in missed} == {("base", None)}
    assert all(row["error"] <= row["tolerance"] for row in rows if row["result"] == "ok")
    assert all(set(each) == {"case", "reason"} for each in report["skipped"])


def test_a_truncated_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changeable_copy(tmp_path / "copy")
    whole = (FOLDER / "model.safetensors").read_bytes()
    replace_bytes(folder / "model.safetensors", whole[:1000])
    status, lines, err = _run(folder, capsys)
    assert (status, lines) == (1, [])
    assert "model.safetensors is not a readable safetensors file" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_anything_is_one_line(
    there: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "fixtures"
    if there:
        folder.mkdir()
    status, lines, err = _run(folder, capsys)
    assert (status, lines) == (1, [])
    assert ("config.json is missing" if there else f"no fixture folder at {folder}") in err
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_gpu_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    status, lines, err = _run(FOLDER, capsys, "--device", "cuda")
    assert (status, lines) == (2, [])
    assert "--device=cuda: torch finds no CUDA device" in err
    assert len(err.splitlines()) == 1


def test_help_says_how_to_read_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for word in ("CASE", "COMPARED", "MEASURE", "TOLERANCE", "MISS", "exit status", "--fixtures"):
        assert word in said
