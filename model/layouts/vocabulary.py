"""The tokenizer of a checkpoint, whichever files it comes in."""

from __future__ import annotations

from pathlib import Path

from model.checkpoint import TOKENIZER_FILE
from model.errors import CheckpointError
from model.ofa.config import VocabLayout
from model.tokenizer import OFATokenizer, load_fairseq_tokenizer, load_huggingface_tokenizer

_FAIRSEQ = ("dict.txt", "encoder.json", "vocab.bpe")
_HUGGINGFACE = ("vocab.json", "merges.txt")


def find_tokenizer(folder: Path, layout: VocabLayout) -> OFATokenizer | None:
    """Read the tokenizer that lies in a folder, None where there is none.

    Args:
        folder: with our `tokenizer.json`, or fairseq's or Hugging Face's files.
        layout: of the checkpoint; it says how many codes and bins follow the text.

    Raises:
        CheckpointError: the files are damaged, or made for another vocabulary.
    """
    codes, bins = layout.code_count, layout.bin_count
    if (folder / TOKENIZER_FILE).is_file() and not _all_there(folder, _HUGGINGFACE):
        tokenizer = OFATokenizer.from_file(folder / TOKENIZER_FILE)
    elif _all_there(folder, _FAIRSEQ):
        tokenizer = load_fairseq_tokenizer(folder, code_count=codes, bin_count=bins)
    elif _all_there(folder, _HUGGINGFACE):
        tokenizer = load_huggingface_tokenizer(folder, code_count=codes, bin_count=bins)
    else:
        return None
    if tokenizer.layout != layout:
        raise CheckpointError(
            f"the vocabulary in {folder} has {tokenizer.layout.text_count} text tokens,"
            f" {tokenizer.layout.code_count} codes and {tokenizer.layout.bin_count} bins, the"
            f" checkpoint {layout.text_count}, {layout.code_count} and {layout.bin_count}"
        )
    return tokenizer


def demand_tokenizer(folder: Path, layout: VocabLayout) -> OFATokenizer:
    """Read the tokenizer that lies in a folder; see `find_tokenizer`.

    Raises:
        CheckpointError: there is none as well.
    """
    tokenizer = find_tokenizer(folder, layout)
    if tokenizer is None:
        raise CheckpointError(
            f"{folder} has no vocabulary: give --vocab a folder with {', '.join(_FAIRSEQ)}, or with"
            f" {' and '.join(_HUGGINGFACE)}"
        )
    return tokenizer


def _all_there(folder: Path, names: tuple[str, ...]) -> bool:
    return all((folder / name).is_file() for name in names)
