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
from model.ofa.config import OFA_VOCAB, VocabLayout

TOKENIZER_FORMAT = "prefixworks.tokenizer/1"
_SYMBOL = re.compile(r"<mask>|<(code|bin)_(0|[1-9][0-9]*)>")
_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
_FILLER = "madeupword"


class OFATokenizer:
    """Byte-level BPE whose tokens have the ids of a layout, plus the layout's symbols."""

    def __init__(
        self,
        tokens: Sequence[str | None],
        merges: Sequence[tuple[str, str]],
        layout: VocabLayout,
    ) -> None:
        """Builds the BPE.

        Args:
            tokens: the text tokens in the order of their ids, in GPT-2's spelling of bytes; None
                for an id that no text gives. All 256 bytes must be among them.
            merges: pairs of tokens, the earliest learned first.
            layout: where the kinds of tokens sit; `text_count` is the number of tokens.

        Raises:
            CheckpointError: tokens, merges and layout do not fit together.
        """
        if len(tokens) != layout.text_count:
            raise CheckpointError(
                f"tokenizer has {len(tokens)} text tokens, its layout {layout.text_count}"
            )
        vocabulary = {token: place for place, token in enumerate(tokens) if token is not None}
        if len(vocabulary) != sum(1 for token in tokens if token is not None):
            raise CheckpointError("tokenizer has a text token twice")
        missing = set(pre_tokenizers.ByteLevel.alphabet()) - set(vocabulary)
        if missing:
            raise CheckpointError(f"tokenizer lacks {len(missing)} of the 256 bytes")
        for left, right in merges:
            if not {left, right, left + right} <= vocabulary.keys():
                raise CheckpointError(f"tokenizer merges {left!r} and {right!r}, unknown tokens")
        self.layout = layout
        self._tokens = tuple(tokens)
        self._merges = tuple(merges)
        self._bpe = _byte_level(vocabulary, list(merges))

    @classmethod
    def from_file(cls, path: str | Path) -> OFATokenizer:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: the file is missing, not JSON, or of another format.
        """
        content = _read_json(Path(path))
        if content.get("format") != TOKENIZER_FORMAT:
            raise CheckpointError(f"tokenizer {path} is not of format {TOKENIZER_FORMAT}")
        try:
            return cls(
                content["tokens"],
                [(left, right) for left, right in content["merges"]],
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
        """Ids of a text, without bos and eos."""
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
                run.append(token - self.layout.text_first)
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
        return [self.layout.text_first + place for place in self._bpe.encode(text).ids]

    def _decode_plain(self, places: list[int]) -> str:
        known = [place for place in places if self._tokens[place] is not None]
        return str(self._bpe.decode(known, skip_special_tokens=False)) if known else ""

    def _to_text(self) -> str:
        content = {
            "format": TOKENIZER_FORMAT,
            "layout": {
                "text_count": self.layout.text_count,
                "code_count": self.layout.code_count,
                "bin_count": self.layout.bin_count,
            },
            "tokens": self._tokens,
            "merges": self._merges,
        }
        return json.dumps(content, separators=(",", ":")) + "\n"


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
    learned = json.loads(bpe.to_str())["model"]
    tokens = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    return OFATokenizer(
        tokens,
        [(left, right) for left, right in learned["merges"]],
        VocabLayout(text_count=len(tokens), code_count=code_count, bin_count=bin_count),
    )


def load_fairseq_tokenizer(
    folder: str | Path,
    *,
    code_count: int = OFA_VOCAB.code_count,
    bin_count: int = OFA_VOCAB.bin_count,
) -> OFATokenizer:
    """Reads the published vocabulary: `dict.txt`, `encoder.json` and `vocab.bpe` in one folder.

    A line of `dict.txt` names a token by its number in `encoder.json`; the number of the line
    decides the id. The rows `madeupword...` that fill the table up stand for no text.

    Args:
        folder: with the files.
        code_count: number of image codes, which no file says.
        bin_count: number of location bins, which no file says either.

    Raises:
        CheckpointError: a file is missing or damaged, or they do not belong together.
    """
    folder = Path(folder)
    spelling = {str(number): token for token, number in _read_json(folder / "encoder.json").items()}
    tokens: list[str | None] = []
    for line in _read_text(folder / "dict.txt").splitlines():
        symbol = line.split(" ")[0]
        if symbol not in spelling and not symbol.startswith(_FILLER):
            raise CheckpointError(f"{folder / 'dict.txt'}: encoder.json has no token {symbol!r}")
        tokens.append(spelling.get(symbol))
    return _published(tokens, folder / "vocab.bpe", code_count, bin_count)


def load_huggingface_tokenizer(
    folder: str | Path,
    *,
    code_count: int = OFA_VOCAB.code_count,
    bin_count: int = OFA_VOCAB.bin_count,
) -> OFATokenizer:
    """Reads the Hugging Face layout: `vocab.json` and `merges.txt` in one folder.

    There `vocab.json` holds specials, text and `<mask>` under their final ids; codes and bins are
    added by the code that loads it, in the same order as everywhere.

    Args:
        folder: with the files.
        code_count: number of image codes, which no file says.
        bin_count: number of location bins, which no file says either.

    Raises:
        CheckpointError: a file is missing or damaged, or they do not belong together.
    """
    folder = Path(folder)
    ids = _read_json(folder / "vocab.json")
    expected = {token: number for number, token in enumerate(_SPECIALS)}
    if any(ids.get(token) != number for token, number in expected.items()) or "<mask>" not in ids:
        raise CheckpointError(f"{folder / 'vocab.json'} does not begin with OFA's special tokens")
    tokens: list[str | None] = [None] * (ids["<mask>"] - len(_SPECIALS))
    for token, number in ids.items():
        if token in expected or token == "<mask>" or token.startswith(_FILLER):
            continue
        if not 0 <= number - len(_SPECIALS) < len(tokens):
            raise CheckpointError(f"{folder / 'vocab.json'}: {token!r} has the odd id {number}")
        tokens[number - len(_SPECIALS)] = token
    return _published(tokens, folder / "merges.txt", code_count, bin_count)


def _published(
    tokens: list[str | None], merges_file: Path, code_count: int, bin_count: int
) -> OFATokenizer:
    merges = []
    for line in _read_text(merges_file).splitlines():
        if line.startswith("#version") or not line:
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise CheckpointError(f"{merges_file}: {line!r} is not a pair of tokens")
        merges.append((parts[0], parts[1]))
    layout = VocabLayout(text_count=len(tokens), code_count=code_count, bin_count=bin_count)
    return OFATokenizer(tokens, merges, layout)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def _byte_level(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """GPT-2's byte-level BPE: no blank is added in front, and every byte can be written."""
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return bpe
