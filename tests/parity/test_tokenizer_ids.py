"""Ids equal those of the published vocabulary, which is too large to keep here.

Set PREFIXWORKS_OFA_VOCAB to a folder with `dict.txt`, `encoder.json` and `vocab.bpe` to run it.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from model.tokenizer import OFATokenizer, load_fairseq_tokenizer, load_huggingface_tokenizer

FOLDER = os.environ.get("PREFIXWORKS_OFA_VOCAB")
GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent / "fixtures" / "text" / "text.json").read_text(encoding="utf-8")
)

pytestmark = pytest.mark.skipif(
    FOLDER is None, reason="PREFIXWORKS_OFA_VOCAB names no folder with the published vocabulary"
)


@pytest.fixture(scope="module", params=["fairseq", "huggingface"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> OFATokenizer:
    folder = Path(str(FOLDER))
    if request.param == "fairseq":
        return load_fairseq_tokenizer(folder)
    other = tmp_path_factory.mktemp("huggingface")
    spelling = {n: token for token, n in json.loads((folder / "encoder.json").read_text()).items()}
    symbols = [line.split(" ")[0] for line in (folder / "dict.txt").read_text().splitlines()]
    tokens = [spelling[int(symbol)] if symbol.isdigit() else symbol for symbol in symbols]
    order = ["<s>", "<pad>", "</s>", "<unk>", *tokens, "<mask>"]
    (other / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(order)}))
    (other / "merges.txt").write_text((folder / "vocab.bpe").read_text())
    return load_huggingface_tokenizer(other)


def test_layout(tokenizer: OFATokenizer) -> None:
    expected = GOLDEN["vocabulary_layout"]
    layout = tokenizer.layout
    assert layout.size == expected["total"]
    assert layout.mask == expected["mask"]
    assert layout.code_first == expected["code_0"]
    assert layout.bin_first == expected["bin_0"]


@pytest.mark.parametrize("case", GOLDEN["texts"], ids=lambda case: repr(case["text"])[:30])
def test_texts(tokenizer: OFATokenizer, case: dict[str, Any]) -> None:
    assert tokenizer.encode(case["text"]) == case["encode_raw"]
    ids = tokenizer.encode(" " + case["text"])
    assert ids == case["encode_with_leading_space"]
    assert tokenizer.decode(ids) == case["roundtrip"]
    for name in ("vqa", "refcoco", "snli_ve"):
        source = tokenizer.encode(case[f"{name}_source"])
        assert [0, *source, 2] == case[f"{name}_source_ids"]


def test_templates_and_symbols(tokenizer: OFATokenizer) -> None:
    for template, ids in GOLDEN["templates"].items():
        assert tokenizer.encode(template) == ids, template
    bins = "<bin_0> <bin_1> <bin_500> <bin_999>"
    assert tokenizer.encode(bins) == GOLDEN["literal_symbols"][bins]
    assert tokenizer.encode("<code_0> <code_8191> <mask>") == [50265, 58456, 50264]
