"""A prefix tree of token sequences: which tokens may follow, when only these answers are allowed.

Dimensions: B batch, T target tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class _Node:
    children: dict[int, _Node] = field(default_factory=dict)


class Trie:
    """The allowed answers, each ended by eos so that one answer may be the beginning of another."""

    def __init__(self, sequences: Iterable[Sequence[int]], *, eos: int = 2) -> None:
        """Builds the tree.

        Args:
            sequences: ids of the answers without bos and eos.
            eos: id that ends an answer.

        Raises:
            ValueError: there is no sequence, or one holds eos itself.
        """
        self.eos = eos
        self.longest = 0
        """Tokens of the longest answer, eos included."""
        self.shortest = 0
        """Tokens of the shortest answer, eos included."""
        self._root = _Node()
        for sequence in sequences:
            self._insert(sequence)
        if not self._root.children:
            raise ValueError("a trie needs at least one answer")

    def _insert(self, sequence: Sequence[int]) -> None:
        if self.eos in sequence:
            raise ValueError(f"answer {list(sequence)} holds eos {self.eos} itself")
        node = self._root
        for token in (*sequence, self.eos):
            node = node.children.setdefault(token, _Node())
        length = len(sequence) + 1
        self.longest = max(self.longest, length)
        self.shortest = min(self.shortest, length) if self.shortest else length

    def following(self, prefix: Sequence[int]) -> list[int]:
        """The tokens that may follow a prefix; none after a whole answer or a foreign prefix."""
        node = self._root
        for token in prefix:
            child = node.children.get(token)
            if child is None:
                return []
            node = child
        return list(node.children)

    def mask(self, target_BT: Tensor, vocabulary_size: int, *, pad: int = 1) -> Tensor:
        """The tokens allowed at each position of training targets, for a constrained loss.

        Args:
            target_BT: int64 labels; a decoder prompt in front of the answer is marked by pad.
            vocabulary_size: V.
            pad: id of positions without a label.

        Returns:
            bool [B, T, V] on the target's device. All False where the decoder prompt stands and all
            True behind the answer; neither position carries a loss.
        """
        batch, length = target_BT.shape
        mask_BTV = torch.zeros(batch, length, vocabulary_size, dtype=torch.bool)
        for row, labels in enumerate(target_BT.tolist()):
            places = [place for place, label in enumerate(labels) if label != pad]
            if not places:
                continue
            first, end = places[0], places[-1] + 1
            for place in range(first, end):
                mask_BTV[row, place, self.following(labels[first:place])] = True
            mask_BTV[row, end:] = True
        return mask_BTV.to(target_BT.device)
