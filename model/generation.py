"""Beam search over an OFA, with the semantics of the generator that the published models use.

Every step looks at the best 2K continuations of a source's K hypotheses: those that end among the
first K are finished, the first K others live on. A source stops when K hypotheses are finished, or
at the maximum length, where the end is forced; it then leaves the batch. The source is encoded once
and its cross-attention keys and values are computed once, however many hypotheses it has.

Dimensions: B sources, S source tokens, K hypotheses of a source, N = B * K rows (those of one
source adjacent), P tokens of a decoder prompt, L tokens so far (bos included), V vocabulary,
C candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.ofa.model import OFA
from model.ofa.prompts import Prompts
from model.step_scores import forbid_repeats, force_prefix, step_log_probs
from model.trie import Trie

_NEVER = float("-inf")


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How an answer is searched. Lengths count tokens without bos; eos is one beyond max_length."""

    beam_size: int = 5
    """Hypotheses of a source that are kept at each step, and returned."""
    max_length: int = 16
    """Tokens after which the end is forced."""
    min_length: int = 1
    """Tokens before which no hypothesis may end."""
    length_penalty: float = 1.0
    """Exponent of the length (eos counted) that a normalised score is divided by."""
    no_repeat_ngram_size: int = 0
    """No sequence of this many tokens, bos counted, occurs twice; 0 allows all."""
    normalize_scores: bool = True
    """Divide scores by the length."""
    temperature: float = 1.0
    """Divisor of logits."""
    allowed_range: tuple[int, int] | None = None
    """(first, end) ids that may be said beside the specials."""
    trie: Trie | None = None
    """The only answers that may be said."""
    hard_prefix: bool | None = None
    """Whether a decoder prompt is forced. False leaves every other token one below the least likely
    prompt token of the batch, as the published code does; None forces it where there is a trie."""

    def __post_init__(self) -> None:
        if self.beam_size < 1 or not 0 <= self.min_length <= self.max_length:
            raise ValueError(
                f"beam_size {self.beam_size}, min_length {self.min_length}, "
                f"max_length {self.max_length}: need beam >= 1 and 0 <= min <= max"
            )
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")
        if self.trie is not None:
            self._check_trie(self.trie)

    def _check_trie(self, trie: Trie) -> None:
        # With these a source could be left without any answer.
        if self.allowed_range is not None or self.no_repeat_ngram_size:
            raise ValueError("a trie excludes a range and a ban on repeats")
        if self.min_length >= trie.shortest or self.max_length < trie.longest - 1:
            raise ValueError(
                f"answers of {trie.shortest - 1} to {trie.longest - 1} tokens do not fit lengths "
                f"from {self.min_length} to {self.max_length}"
            )

    @property
    def forces_prefix(self) -> bool:
        """Whether nothing but the decoder prompt may be said where it stands."""
        return self.trie is not None if self.hard_prefix is None else self.hard_prefix


@dataclass(frozen=True)
class Hypothesis:
    """One finished answer."""

    tokens: list[int]
    """Ids, decoder prompt included, with eos and without bos."""
    score: float
    """Sum of token_scores, divided by the length unless the options say otherwise."""
    token_scores: list[float]
    """Log-probability of each token under the constraints."""


@torch.no_grad()
def generate(
    model: OFA,
    source_ids_BS: Tensor,
    images_BCHW: Tensor | None = None,
    image_present_B: Tensor | None = None,
    *,
    prompts: Prompts | None = None,
    options: GenerationOptions,
    prefix_ids_BP: Tensor | None = None,
    agree: Callable[[bool], bool] = bool,
) -> list[list[Hypothesis]]:
    """Search the best answers of a batch. Set the model to eval before.

    Args:
        model: The base.
        source_ids_BS: int64, bos first, eos last, right-padded.
        images_BCHW: float, scaled to -1..1.
        image_present_B: bool, False for sources without an image.
        prompts: Shared by the batch (leading dimension 1) or one for each source.
        options: Lengths, constraints and width of the search.
        prefix_ids_BP: int64 decoder prompts without bos, right-padded; no eos.
        agree: Told after each step whether this search goes on, says whether another step is
            computed. Processes that hold the model together have to take the same steps.

    Returns:
        for each source its finished hypotheses, best first: at least one, at most beam_size.

    Raises:
        ValueError: A decoder prompt holds eos or leaves no room, or the vocabulary is smaller than
            the search is wide.
    """
    layout = model.config.vocab
    _check_prefix(prefix_ids_BP, options, layout.eos)
    if 2 * options.beam_size >= layout.size:
        raise ValueError(f"beam_size {options.beam_size} is too wide for {layout.size} tokens")
    source = model.encode(source_ids_BS, images_BCHW, image_present_B, prompts)
    cache = model.start_cache(source, prompts, rows_per_source=options.beam_size)
    search = _Search(source_ids_BS, options, prefix_ids_BP, layout.bos, layout.eos)
    last_step = min(options.max_length, model.config.max_positions - 1)
    searching = True
    for step in range(last_step + 1):
        logits_NV = model.decode_step(search.tokens_NL[:, -1], cache)
        if searching:
            rows_N, kept_sources = search.advance(logits_NV, step, last=step == last_step)
            searching = rows_N is not None
            if kept_sources is not None:
                cache.keep_sources(kept_sources)
            if rows_N is not None and options.beam_size > 1:
                cache.reorder(rows_N)
        if not agree(searching):
            break
    return search.results()


class _Search:
    """The hypotheses of the sources that are still searched, and the finished ones of all."""

    def __init__(
        self,
        source_ids_BS: Tensor,
        options: GenerationOptions,
        prefix_ids_BP: Tensor | None,
        bos: int,
        eos: int,
    ) -> None:
        sources, device = source_ids_BS.shape[0], source_ids_BS.device
        self.options = options
        self.eos = eos
        self.prefix_ids_BP = prefix_ids_BP
        self.tokens_NL = torch.full((sources * options.beam_size, 1), bos, device=device)
        self.totals_NL = torch.zeros(sources * options.beam_size, 0, device=device)
        """Score of each hypothesis after each of its tokens."""
        self.places = list(range(sources))
        """Place in the batch of each source that is still searched."""
        self.finished: list[list[Hypothesis]] = [[] for _ in range(sources)]

    def advance(
        self, logits_NV: Tensor, step: int, *, last: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Take one step.

        Returns:
            for each row of the sources that go on, the row that it continues, and the sources that
            go on where some do not. The first is None when no source goes on.
        """
        width = self.options.beam_size
        scores_NV = self._score(logits_NV, step, last)
        totals_BC, parents_BC, tokens_BC = self._candidates(scores_NV, step)
        ends_BC = (tokens_BC == self.eos) & (totals_BC > _NEVER)
        rows_BC = parents_BC + self._first_rows(ends_BC.device)
        self._finish(ends_BC[:, :width], rows_BC, totals_BC, step)
        going = self._going(totals_BC, ends_BC, last)
        if not any(going):
            return None, None
        # The first `width` candidates that do not end: a stable sort puts them in front, in order.
        live_BK = ends_BC.to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        kept = None
        if not all(going):
            kept = torch.tensor([i for i, goes in enumerate(going) if goes], device=live_BK.device)
            live_BK, parents_BC, tokens_BC, totals_BC = (
                x.index_select(0, kept) for x in (live_BK, parents_BC, tokens_BC, totals_BC)
            )
            self._keep(kept)
        rows_N = (parents_BC.gather(1, live_BK) + self._first_rows(live_BK.device)).flatten()
        self.tokens_NL = torch.cat(
            [self.tokens_NL[rows_N], tokens_BC.gather(1, live_BK).view(-1, 1)], dim=1
        )
        self.totals_NL = torch.cat(
            [self.totals_NL[rows_N], totals_BC.gather(1, live_BK).view(-1, 1)], dim=1
        )
        return rows_N, kept

    def results(self) -> list[list[Hypothesis]]:
        """Finished hypotheses of every source of the batch, best first."""
        return [sorted(found, key=lambda h: -h.score) for found in self.finished]

    def _score(self, logits_NV: Tensor, step: int, last: bool) -> Tensor:
        """Return the log-probabilities `[N, V]` that the options allow at this step."""
        options = self.options
        scores_NV = step_log_probs(
            logits_NV,
            self.tokens_NL,
            temperature=options.temperature,
            allowed_range=options.allowed_range,
            trie=options.trie,
            prefix_lengths=self._prefix_lengths(),
        )
        if last:
            ending_N = scores_NV[:, self.eos].clone()
            scores_NV.fill_(_NEVER)
            scores_NV[:, self.eos] = ending_N
        prefix = self.prefix_ids_BP
        if prefix is not None and step < prefix.shape[1] and not last:
            prefix_N = prefix[:, step].repeat_interleave(options.beam_size)
            force_prefix(scores_NV, prefix_N, hard=options.forces_prefix)
        elif step < options.min_length:
            scores_NV[:, self.eos] = _NEVER
        if options.no_repeat_ngram_size:
            forbid_repeats(scores_NV, self.tokens_NL, options.no_repeat_ngram_size)
        return scores_NV

    def _prefix_lengths(self) -> list[int] | None:
        if self.prefix_ids_BP is None:
            return None
        lengths_B = (self.prefix_ids_BP != 1).sum(dim=1)
        return [int(n) for n in lengths_B.repeat_interleave(self.options.beam_size).tolist()]

    def _candidates(self, scores_NV: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return totals, hypothesis within the source and token `[B, C]` of the 2K best."""
        width, vocabulary = self.options.beam_size, scores_NV.shape[1]
        if step == 0:
            # All hypotheses of a source are alike before the first token.
            totals_BV = scores_NV[::width].contiguous()
        else:
            totals_BV = (scores_NV + self.totals_NL[:, -1:]).view(-1, width * vocabulary)
        totals_BC, flat_BC = totals_BV.topk(2 * width, dim=1)
        return totals_BC, flat_BC // vocabulary, flat_BC % vocabulary

    def _finish(self, ends_BK: Tensor, rows_BC: Tensor, totals_BC: Tensor, step: int) -> None:
        sources, ranks = ends_BK.nonzero(as_tuple=True)
        if not len(sources):
            return
        rows = rows_BC[sources, ranks]
        ended_M = totals_BC[sources, ranks]
        totals_ML = torch.cat([self.totals_NL[rows], ended_M[:, None]], dim=1)
        steps_ML = totals_ML.diff(dim=1, prepend=totals_ML.new_zeros(len(rows), 1))
        divisor = (step + 1) ** self.options.length_penalty if self.options.normalize_scores else 1
        for source, tokens, score, steps in zip(
            sources.tolist(),
            self.tokens_NL[rows, 1:].tolist(),
            (ended_M / divisor).tolist(),
            steps_ML.tolist(),
            strict=True,
        ):
            found = self.finished[self.places[source]]
            if len(found) < self.options.beam_size:
                found.append(Hypothesis([*tokens, self.eos], score, steps))

    def _going(self, totals_BC: Tensor, ends_BC: Tensor, last: bool) -> list[bool]:
        if last:
            return [False] * len(self.places)
        # Under a trie every answer may be said already: what is left is impossible.
        possible = ((totals_BC > _NEVER) & ~ends_BC).any(dim=1).tolist()
        return [
            alive and len(self.finished[place]) < self.options.beam_size
            for alive, place in zip(possible, self.places, strict=True)
        ]

    def _first_rows(self, device: torch.device) -> Tensor:
        """Return the first row `[B, 1]` of each source."""
        return torch.arange(len(self.places), device=device)[:, None] * self.options.beam_size

    def _keep(self, kept: Tensor) -> None:
        width = self.options.beam_size
        rows_N = (kept[:, None] * width + torch.arange(width, device=kept.device)).flatten()
        self.tokens_NL = self.tokens_NL[rows_N]
        self.totals_NL = self.totals_NL[rows_N]
        self.places = [self.places[i] for i in kept.tolist()]
        if self.prefix_ids_BP is not None:
            self.prefix_ids_BP = self.prefix_ids_BP.index_select(0, kept)


def _check_prefix(prefix_ids_BP: Tensor | None, options: GenerationOptions, eos: int) -> None:
    if prefix_ids_BP is None:
        return
    if bool((prefix_ids_BP == eos).any()):
        raise ValueError("a decoder prompt must not hold eos: it would end the answer")
    need = prefix_ids_BP.shape[1] + (options.trie.longest - 1 if options.trie else 0)
    if options.max_length < need:
        raise ValueError(f"max_length {options.max_length} leaves no room: {need} tokens needed")
