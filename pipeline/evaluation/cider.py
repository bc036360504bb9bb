"""CIDEr-D: how much a caption says what people said, weighted by how telling each phrase is.

Source: Vedantam et al., arXiv 1411.5726 (CIDEr-D). Captions are compared as the reference does:
split at blanks, case kept, punctuation deleted before.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

Phrase = tuple[str, ...]

_LONGEST = 4
"""Words of the longest phrase that is counted."""
_LENGTH_SIGMA = 6.0
_SCALE = 10.0


class CiderD:
    """CIDEr-D with the document frequencies of a corpus of references."""

    def __init__(self, corpus: Sequence[Sequence[str]]) -> None:
        """Counts in how many reference sets each phrase occurs.

        Args:
            corpus: The references of each image.
        """
        self._log_images = math.log(float(len(corpus))) if corpus else 0.0
        self._frequency: Counter[Phrase] = Counter()
        for references in corpus:
            self._frequency.update({phrase for text in references for phrase in _phrases(text)})

    def score(self, hypothesis: str, references: Sequence[str]) -> float:
        """Score of one caption against its references; 10 where it equals all of them."""
        if not references:
            return 0.0
        said = self._weigh(hypothesis)
        total = sum(_similarity(said, self._weigh(reference)) for reference in references)
        return _SCALE * total / len(references)

    def _weigh(self, text: str) -> _Weighed:
        vectors: list[dict[Phrase, float]] = [{} for _ in range(_LONGEST)]
        pairs = 0
        for phrase, count in _phrases(text).items():
            rarity = self._log_images - math.log(max(1.0, self._frequency[phrase]))
            vectors[len(phrase) - 1][phrase] = count * rarity
            pairs += count if len(phrase) == 2 else 0
        norms = [math.sqrt(sum(w * w for w in vector.values())) for vector in vectors]
        return _Weighed(vectors, norms, pairs)


class _Weighed:
    """A caption as one weighted vector for each phrase length."""

    def __init__(self, vectors: list[dict[Phrase, float]], norms: list[float], pairs: int) -> None:
        self.vectors = vectors
        self.norms = norms
        # The published scorer takes the number of word pairs for the length of a caption.
        self.length = pairs


def corpus_cider(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    """CIDEr-D with the document frequencies of the references themselves.

    Args:
        hypotheses: One caption for each image.
        references: The references of each image.

    Returns:
        The mean, and the score of each caption. One image alone scores 0: no phrase is telling.
    """
    scorer = CiderD(references)
    scores = [scorer.score(h, r) for h, r in zip(hypotheses, references, strict=True)]
    return (sum(scores) / len(scores) if scores else 0.0), scores


def _phrases(text: str) -> Counter[Phrase]:
    words = text.split()
    return Counter(
        tuple(words[start : start + length])
        for length in range(1, _LONGEST + 1)
        for start in range(len(words) - length + 1)
    )


def _similarity(said: _Weighed, reference: _Weighed) -> float:
    gap = said.length - reference.length
    penalty = math.exp(-(gap**2) / (2 * _LENGTH_SIGMA**2))
    total = 0.0
    for index in range(_LONGEST):
        there = reference.vectors[index]
        # Repeating a phrase more often than the reference does earns nothing.
        shared = sum(
            min(weight, there[phrase]) * there[phrase]
            for phrase, weight in said.vectors[index].items()
            if phrase in there
        )
        norm = said.norms[index] * reference.norms[index]
        total += penalty * (shared / norm if norm else shared)
    return total / _LONGEST
