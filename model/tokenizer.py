"""Text to ids and back: byte-level BPE in OFA's vocabulary of specials, text, mask, codes, bins.

Text is encoded exactly as it stands: a word at the beginning has other ids than after a blank, so
instructions keep their leading blank. Only `<mask>`, `<code_i>` and `<bin_i>` inside a text are
symbols; `<s>` and its like are plain characters there, since no sentence may end another.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model.errors import CheckpointError
from model.ofa.config import VocabLayout

TOKENIZER_FORMAT = "prefixworks.tokenizer/1"
_SYMBOL = re.compile(r"<mask>|<(code|bin)_(0|[1-9][0-9]*)>")
_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")


class OFATokenizer:
    """Byte-level BPE whose tokens have the ids of a layout, plus the layout's symbols."""

    def __init__(self, bpe: Tokenizer, text_order: Sequence[int], layout: VocabLayout) -> None:
        """Joins a BPE and a layout.

        Args:
            bpe: byte-level BPE without special tokens.
            text_order: for each text id, from `text_first` on, the id that `bpe` gives the token;
                -1 for an id that no text gives.
            layout: where the kinds of tokens sit; `text_count` must be the length of `text_order`.

        Raises:
            CheckpointError: the order does not fit the layout or the BPE.
        """
        if len(text_order) != layout.text_count:
            raise CheckpointError(
                f"tokenizer has {len(text_order)} text tokens, its layout {layout.text_count}"
            )
        self.layout = layout
        self._bpe = bpe
        self._text_order = tuple(text_order)
        self._id_of = {
            bpe_id: layout.text_first + place
            for place, bpe_id in enumerate(text_order)
            if bpe_id >= 0
        }
        if len(self._id_of) != sum(1 for bpe_id in text_order if bpe_id >= 0):
            raise CheckpointError("tokenizer names one text token twice")
        if any(bpe.id_to_token(bpe_id) is None for bpe_id in self._id_of):
            raise CheckpointError("tokenizer orders text tokens that its BPE does not have")

    @classmethod
    def from_file(cls, path: str | Path) -> OFATokenizer:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: the file is missing, not JSON, or of another format.
        """
        try:
            content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"cannot read tokenizer {path}: {error.strerror}") from error
        except ValueError as error:
            raise CheckpointError(f"tokenizer {path} is not JSON: {error}") from error
        if not isinstance(content, dict) or content.get("format") != TOKENIZER_FORMAT:
            raise CheckpointError(f"tokenizer {path} is not of format {TOKENIZER_FORMAT}")
        try:
            return cls(
                _byte_level(content["vocabulary"], [tuple(m) for m in content["merges"]]),
                content["text_order"],
                VocabLayout(**content["layout"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"tokenizer {path} is damaged: {error}") from error

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer as JSON; the same tokenizer gives the same bytes."""
        Path(path).write_text(self._to_text(), encoding="utf-8")

    @property
    def digest(self) -> str:
        """`sha256:<hex>` over everything that decides an id."""
        return "sha256:" + hashlib.sha256(self._to_text().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without bos and eos. What the vocabulary lacks becomes unk."""
        ids: list[int] = []
        position = 0
        for match in _SYMBOL.finditer(text):
            symbol = self._symbol_id(match)
            if symbol is None:
                continue
            # The blank before a symbol separates symbols and is no text of its own.
            ids += self._encode_plain(text[position : match.start()].removesuffix(" "))
            ids.append(symbol)
            position = match.end()
        return ids + self._encode_plain(text[position:])

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids: specials vanish, `<mask>`, codes and bins appear as symbols after a blank.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        parts: list[str] = []
        run: list[int] = []
        for token in ids:
            if not 0 <= token < self.layout.size:
                raise ValueError(f"id {token} is outside the vocabulary of {self.layout.size}")
            if token < self.layout.text_first:
                continue
            if token < self.layout.mask:
                run.append(self._text_order[token - self.layout.text_first])
                continue
            parts.append(self._decode_plain(run))
            parts.append(("" if not any(parts) else " ") + self._symbol(token))
            run = []
        parts.append(self._decode_plain(run))
        return "".join(parts)

    def bin_ids(self, bins: Sequence[int]) -> list[int]:
        """Ids of location bins.

        Raises:
            ValueError: a bin does not exist.
        """
        wrong = [number for number in bins if not 0 <= number < self.layout.bin_count]
        if wrong:
            raise ValueError(f"bin {wrong[0]} does not exist: there are {self.layout.bin_count}")
        return [self.layout.bin_first + number for number in bins]

    def bins_of(self, ids: Iterable[int]) -> list[int]:
        """The location bins among ids, in their order; all else is left out."""
        return [token - self.layout.bin_first for token in ids if token >= self.layout.bin_first]

    def _symbol_id(self, match: re.Match[str]) -> int | None:
        kind, number = match.groups()
        if kind is None:
            return self.layout.mask
        first, count = (
            (self.layout.code_first, self.layout.code_count)
            if kind == "code"
            else (self.layout.bin_first, self.layout.bin_count)
        )
        return first + int(number) if int(number) < count else None

    def _symbol(self, token: int) -> str:
        if token == self.layout.mask:
            return "<mask>"
        if token < self.layout.bin_first:
            return f"<code_{token - self.layout.code_first}>"
        return f"<bin_{token - self.layout.bin_first}>"

    def _encode_plain(self, text: str) -> list[int]:
        if not text:
            return []
        unknown = self.layout.unk
        return [self._id_of.get(bpe_id, unknown) for bpe_id in self._bpe.encode(text).ids]

    def _decode_plain(self, bpe_ids: list[int]) -> str:
        known = [bpe_id for bpe_id in bpe_ids if bpe_id >= 0]
        return str(self._bpe.decode(known, skip_special_tokens=False)) if known else ""

    def _to_text(self) -> str:
        model = json.loads(self._bpe.to_str())["model"]
        vocabulary = sorted(model["vocab"].items(), key=lambda item: item[1])
        content = {
            "format": TOKENIZER_FORMAT,
            "layout": {
                "text_count": self.layout.text_count,
                "code_count": self.layout.code_count,
                "bin_count": self.layout.bin_count,
            },
            "vocabulary": dict(vocabulary),
            "merges": model["merges"],
            "text_order": list(self._text_order),
        }
        return json.dumps(content, ensure_ascii=True, indent=None, separators=(",", ":")) + "\n"


def train_tokenizer(
    texts: Iterable[str], *, text_count: int, bin_count: int, code_count: int
) -> OFATokenizer:
    """Learns a byte-level BPE from texts.

    Args:
        texts: what the model will read and write, with the leading blanks that it will have there;
            symbols such as `<bin_3>` in them are left out of the learning.
        text_count: most text tokens to learn; at least 256, the bytes. Where the texts give fewer
            merges, the layout says what came out.
        bin_count: number of location bins.
        code_count: number of image codes.

    Raises:
        ValueError: `text_count` is below 256.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if text_count < len(alphabet):
        raise ValueError(f"text_count {text_count} is below {len(alphabet)}, the bytes")
    bpe = _byte_level({}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=text_count,
        initial_alphabet=alphabet,
        special_tokens=[],
        show_progress=False,
        min_frequency=2,
    )
    bpe.train_from_iterator((_SYMBOL.sub("", text) for text in texts), trainer)
    learned = bpe.get_vocab_size()
    layout = VocabLayout(text_count=learned, code_count=code_count, bin_count=bin_count)
    return OFATokenizer(bpe, range(learned), layout)


def _byte_level(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """GPT-2's byte-level BPE: no blank is added in front, and every byte can be written."""
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return bpe
