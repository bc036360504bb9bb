"""Beam search, its scores by forced decoding, scores of all candidates, and masks of tries.

Dimensions: B sources, M rows (hypotheses of one source adjacent), T target tokens, P tokens of a
decoder prompt, A answers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from model.candidates import score_candidates
from model.errors import CheckpointError
from model.generation import generate
from model.losses import PAD
from model.step_scores import step_log_probs
from model.trie import Trie
from model.verify.cases import BeamCase, CandidateCase, RecordedHypothesis
from model.verify.finding import Finding, Kind, finding, padded
from model.verify.subjects import Subjects


@torch.no_grad()
def searched(subjects: Subjects, case: BeamCase) -> Iterator[Finding]:
    """Compare the hypotheses of a search: tokens, scores, and scores of tokens.

    Raises:
        CheckpointError: the options can't be searched with.
    """
    subject, fixtures = subjects.of(case.variant), subjects.fixtures
    inputs = fixtures.batch(case.source, case.source).to(subjects.device)
    try:
        found = generate(
            subject.base,
            inputs.source_ids_BS,
            inputs.images_BCHW,
            inputs.image_present_B,
            prompts=subject.prompts(),
            options=case.options,
            prefix_ids_BP=_prefix(subjects, case.prefix),
        )
    except ValueError as error:
        raise CheckpointError(f"{fixtures.folder}: beam {case.name}: {error}") from error
    pairs = [
        [RecordedHypothesis(h.tokens, h.score, h.token_scores) for row in found for h in row],
        [hypothesis for row in case.hypotheses for hypothesis in row],
    ]
    title, place = f"beam {case.name}", f"beam.{case.name}"
    counts = [torch.tensor([len(row) for row in rows]) for rows in (found, case.hypotheses)]
    yield finding(title, "hypotheses a source", Kind.EXACT, place, *counts)
    tokens = [padded([h.tokens for h in side], fill=-1) for side in pairs]
    yield finding(title, "tokens", Kind.EXACT, place, *tokens)
    scores = [torch.tensor([h.score for h in side]) for side in pairs]
    yield finding(title, "scores", Kind.SCORE, place, *scores)
    token_scores = [padded([h.token_scores for h in side], fill=0.0) for side in pairs]
    yield finding(title, "scores of tokens", Kind.SCORE, place, *token_scores)


@torch.no_grad()
def forced(subjects: Subjects, case: BeamCase) -> Iterator[Finding]:
    """Compare the scores of the recorded hypotheses, computed in one pass instead of a search.

    Where a decoder prompt is a preference and not forced, the score of another token there depends
    on the hypotheses beside it in the search: these tokens don't count.

    Raises:
        CheckpointError: the hypotheses belong to another number of sources.
    """
    subject, fixtures, options = subjects.of(case.variant), subjects.fixtures, case.options
    inputs = fixtures.batch(case.source, case.source).to(subjects.device)
    if len(case.hypotheses) != len(inputs.source_ids_BS):
        raise CheckpointError(f"{fixtures.folder}: beam {case.name} has other sources")
    rows = [(b, h) for b, row in enumerate(case.hypotheses) for h in row]
    tokens_MT = padded([h.tokens for _, h in rows], fill=PAD).long().to(subjects.device)
    rows_M = torch.tensor([b for b, _ in rows], device=subjects.device)
    bos_M1 = torch.full_like(tokens_MT[:, :1], subject.base.config.vocab.bos)
    decoder_MT = torch.cat([bos_M1, tokens_MT[:, :-1]], dim=1)
    prompts = subject.prompts()
    source = subject.base.encode(
        inputs.source_ids_BS, inputs.images_BCHW, inputs.image_present_B, prompts
    )
    chosen = None if prompts is None else prompts.select(rows_M)
    logits_MTV, _ = subject.base.decode(decoder_MT, source.select(rows_M), chosen)
    prefix_MT = _prefix_of_rows(_prefix(subjects, case.prefix), rows_M, tokens_MT)
    lengths = (prefix_MT != PAD).sum(dim=1).tolist()
    scores = []
    for step in range(tokens_MT.shape[1]):
        log_probs_MV = step_log_probs(
            logits_MTV[:, step],
            decoder_MT[:, : step + 1],
            temperature=options.temperature,
            allowed_range=options.allowed_range,
            trie=options.trie,
            prefix_lengths=lengths,
        )
        scores.append(log_probs_MV.gather(1, tokens_MT[:, step : step + 1]))
    counts_MT = (tokens_MT != PAD) & ((prefix_MT == PAD) | (prefix_MT == tokens_MT))
    yield finding(
        f"beam {case.name}",
        "scores by forced decoding",
        Kind.SCORE,
        f"beam.{case.name}",
        torch.cat(scores, dim=1),
        padded([h.token_scores for _, h in rows], fill=0.0),
        counts_MT,
    )


@torch.no_grad()
def candidates(subjects: Subjects, case: CandidateCase) -> Iterator[Finding]:
    """Compare the scores of all answers and, in float32, which answer is best."""
    subject, fixtures = subjects.of(case.variant), subjects.fixtures
    source = f"{case.place}/src_tokens"
    inputs = fixtures.batch(source, source).to(subjects.device)
    scores_BA = score_candidates(
        subject.base,
        inputs.source_ids_BS,
        inputs.images_BCHW,
        inputs.image_present_B,
        candidates=list(fixtures.cases.answers.values()),
        prompts=subject.prompts(),
        prefix_ids_BP=_prefix(subjects, f"{case.place}/prefix_tokens"),
    )
    title, expected = f"candidates {case.name}", fixtures.tensor(case.scores)
    yield finding(title, "scores of answers", Kind.SCORE, case.scores, scores_BA, expected)
    if subjects.dtype == "fp32":
        names = list(fixtures.cases.answers)
        best = torch.tensor([names.index(answer) for answer in case.predictions])
        place = f"vqa.allcand.{case.name}"
        yield finding(title, "best answer", Kind.EXACT, place, scores_BA.argmax(dim=1), best)


def trie_masks(subjects: Subjects, place: str) -> Iterator[Finding]:
    """Compare which tokens the tree of answers allows at each place of recorded targets."""
    fixtures = subjects.fixtures
    target_BT = fixtures.ids(f"{place}/target").to(subjects.device)
    trie = Trie(fixtures.cases.answers.values())
    recorded = f"{place}/constraint_masks"
    found = trie.mask(target_BT, fixtures.config.vocab.size)
    title = f"trie {place}"
    yield finding(title, "allowed tokens", Kind.EXACT, recorded, found, fixtures.tensor(recorded))


def _prefix(subjects: Subjects, name: str | None) -> Tensor | None:
    """Return the decoder prompts `[B, P]` of this name, None where they are empty."""
    if name is None:
        return None
    prefix_BP = subjects.fixtures.ids(name).to(subjects.device)
    return prefix_BP if prefix_BP.shape[1] else None


def _prefix_of_rows(prefix_BP: Tensor | None, rows_M: Tensor, tokens_MT: Tensor) -> Tensor:
    """Return the decoder prompt of each row `[M, T]`, pad where it has ended."""
    prefix_MT = torch.full_like(tokens_MT, PAD)
    if prefix_BP is not None:
        length = min(prefix_BP.shape[1], tokens_MT.shape[1])
        prefix_MT[:, :length] = prefix_BP[rows_M, :length]
    return prefix_MT
