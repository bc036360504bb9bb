"""`prefixworks model`: what it prints, what it leaves behind, and how much memory it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jobs.cli import main
from jobs.model import SUBCOMMANDS
from model.checkpoint import fingerprint, load_base
from model.ofa import OFA, OFAConfig, VocabLayout
from model.tokenizer import OFATokenizer
from tests.support import golden_micro
from tests.support.foreign_checkpoints import (
    BINS,
    CODES,
    TEXTS,
    golden_tensors,
    huggingface_names,
    write_fairseq,
    write_huggingface,
    write_vocabulary,
)

ROOT = Path(__file__).parents[3]


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return printed


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["model", name, "--help"])
    assert caught.value.code == 0
    assert f"prefixworks model {name}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["model", "--help"])
    assert SUBCOMMANDS[name].summary in capsys.readouterr().out


def test_inspection_for_scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_huggingface(tmp_path / "hf", shards=2)
    write_vocabulary(folder, huggingface=True)
    assert main(["model", "inspect", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    golden = golden_micro.base()
    assert found["layout"] == "huggingface"
    assert found["fingerprint"] == fingerprint(golden)
    assert found["parameters"] == sum(parameter.numel() for parameter in golden.parameters())
    assert found["preset"] == "ofa-tiny"
    assert "d_model" in found["differing"]
    assert set(found["dtypes"]) == {"float16", "int64"}
    assert len(found["files"]) == 2
    assert found["file_bytes"] > found["tensor_bytes"] > 2 * found["parameters"]
    assert found["architecture"]["vocab"]["text_count"] == TEXTS
    assert found["tokenizer"].startswith("sha256:")
    assert found["notes"] == []


def test_inspection_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = golden_tensors()
    name = "encoder.embed_image_positions.weight"
    tensors[name] = tensors[name][:900].clone()
    assert main(["model", "inspect", str(write_fairseq(tmp_path / "micro.pt", tensors))]) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'micro.pt'} (fairseq)" in printed
    assert "ofa-tiny, differs in d_model" in printed
    assert "none beside the weights" in printed
    assert f"note            {name}: 865 rows drawn at the end of 900" in printed


def test_conversion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_fairseq(tmp_path / "micro.pt")
    vocab = write_vocabulary(tmp_path / "vocab", huggingface=False)
    output = tmp_path / "bases" / "micro"
    words = ["model", "convert", str(file), str(output), f"--vocab={vocab}"]
    assert main([*words, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"would write  {output}" in printed
    assert "micro, nearest to ofa-tiny" in printed
    assert not output.parent.exists()
    assert main([*words, "--dtype=fp32", "--name=golden"]) == 0
    printed = capsys.readouterr().out
    made = load_base(str(output))
    assert made.config.name == "golden"
    assert fingerprint(made) == fingerprint(golden_micro.base())
    assert f"fingerprint  {fingerprint(made)}" in printed
    tokenizer = OFATokenizer.from_file(output / "tokenizer.json")
    assert tokenizer.digest in printed
    assert tokenizer.layout == made.config.vocab
    assert sorted(path.name for path in output.parent.iterdir()) == ["micro"]
    # What came out is a checkpoint too, and makes the same base in another dtype that holds it.
    assert main(["model", "convert", str(output), str(tmp_path / "half"), "--dtype=fp16"]) == 0
    assert fingerprint(load_base(str(tmp_path / "half"))) == fingerprint(made)
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.6 * (
        output / "model.safetensors"
    ).stat().st_size


def test_the_same_checkpoint_makes_the_same_bytes(tmp_path: Path) -> None:
    file = write_fairseq(tmp_path / "micro.pt")
    write_vocabulary(tmp_path, huggingface=False)
    for name in ("first", "second"):
        assert main(["model", "convert", str(file), str(tmp_path / name)]) == 0
    for first in (tmp_path / "first").iterdir():
        assert first.read_bytes() == (tmp_path / "second" / first.name).read_bytes()


def test_an_existing_output_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_fairseq(tmp_path / "micro.pt")
    output = tmp_path / "taken"
    output.mkdir()
    (output / "mine").write_text("mine")
    assert main(["model", "convert", str(file), str(output)]) == 2
    assert f"{output} exists" in complaint(capsys)
    assert [path.name for path in output.iterdir()] == ["mine"]


def test_a_failed_conversion_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_vocabulary(tmp_path, huggingface=False)
    tensors = {name: each.float() for name, each in golden_tensors().items() if each.dim()}
    tensors |= {name: each for name, each in golden_tensors().items() if not each.dim()}
    tensors["encoder.layers.1.fc2.weight"][3, 4] = 1e6
    file = write_fairseq(tmp_path / "micro.pt", tensors)
    output = tmp_path / "bases" / "micro"
    assert main(["model", "convert", str(file), str(output), "--dtype=fp16"]) == 1
    assert "encoder.layers.1.fc2.weight has values up to 1e+06" in complaint(capsys)
    assert list(output.parent.iterdir()) == []


def test_a_missing_vocabulary_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_fairseq(tmp_path / "micro.pt")
    assert main(["model", "convert", str(file), str(tmp_path / "base")]) == 1
    assert "give --vocab a folder with dict.txt" in complaint(capsys)


def test_a_model_of_the_hub_that_is_not_reached_is_one_line(tmp_path: Path) -> None:
    words = ["model", "inspect", "OFA-Sys/ofa-large"]
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        done = run(words, HF_HOME=str(tmp_path), **environment)
        assert done.returncode == 1
        assert done.stderr.startswith("error: OFA-Sys/ofa-large is no file or folder here")
        assert done.stderr.count("\n") == 1


def test_a_model_in_the_cache_of_the_hub_needs_no_network(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--someone--micro"
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = write_huggingface(cached / "snapshots" / commit)
    write_vocabulary(folder, huggingface=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    words = ["model", "inspect", "someone/micro", "--json"]
    done = run(words, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fingerprint"] == fingerprint(golden_micro.base())
    assert found["architecture"]["name"] == "micro"


PEAK = """
import sys
from pathlib import Path
import jobs.model_convert
from jobs.model_convert import main
status = main(sys.argv[1:]) if len(sys.argv) > 1 else 0
peak = next(line for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))
print(peak.split()[1])
sys.exit(status)
"""


def peak_bytes(arguments: list[str]) -> int:
    """Largest resident memory of a process that converts, or that imports only.

    As the kernel counts it for this program: `ru_maxrss` of a child begins with its parent's peak.
    """
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) * 1024


@pytest.mark.parametrize(
    ("layout", "dtype"), [("fairseq", "bf16"), ("huggingface", None), ("shards", None)]
)
def test_conversion_takes_little_more_memory_than_the_checkpoint(
    layout: str, dtype: str | None, tmp_path: Path
) -> None:
    config = OFAConfig(
        name="wide",
        d_model=512,
        ffn_dim=8192,
        encoder_layers=4,
        decoder_layers=2,
        attention_heads=8,
        resnet_blocks=(1, 1, 1),
        vocab=VocabLayout(text_count=TEXTS, code_count=CODES, bin_count=BINS),
    )
    model = OFA(config).state_dict()
    settings = {"model_type": "ofa", "code_dict_size": CODES, "num_bins": BINS}
    vocab = write_vocabulary(tmp_path / "vocab", huggingface=False)
    if layout == "fairseq":
        source = write_fairseq(tmp_path / "wide.pt", model, settings)
        size = source.stat().st_size
    else:
        shards = 2 if layout == "shards" else 1
        tensors = huggingface_names(model)
        source = write_huggingface(
            tmp_path / "wide", tensors, settings, shards=shards, safetensors=layout != "shards"
        )
        size = sum(file.stat().st_size for file in source.iterdir())
    assert size > 200e6
    words = [str(source), str(tmp_path / "base"), f"--vocab={vocab}"]
    words += [] if dtype is None else [f"--dtype={dtype}"]
    taken = peak_bytes(words) - peak_bytes([])
    print(f"{layout}: {taken / 1e6:.0f} MB for {size / 1e6:.0f} MB")
    assert taken < 1.3 * size
    loaded = load_base(str(tmp_path / "base")).state_dict()
    weight = model["encoder.layers.3.fc2.weight"]
    expected = weight if dtype is None else weight.to(torch.bfloat16).float()
    assert torch.equal(loaded["encoder.layers.3.fc2.weight"], expected)
