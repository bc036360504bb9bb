"""Beam search beyond its golden values: constraints, finished sources, prompts, refusals."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.generation import GenerationOptions, generate
from model.ofa.prompts import LayerPrompt, Prompts
from model.step_scores import forbid_repeats, force_prefix, step_log_probs
from model.trie import Trie
from tests.support.golden_micro import BIN_RANGE, LAYERS, base, ids, image_inputs, prompts

EOS = 2


def _generate(rows: slice = slice(None), **settings: Any) -> list[list[Any]]:
    given = {key: settings.pop(key) for key in ("prompts", "prefix_ids_BP") if key in settings}
    given |= {"agree": settings.pop("agree")} if "agree" in settings else {}
    images, present = image_inputs()
    return generate(
        base(),
        ids("inputs/src_tokens")[rows],
        images[rows],
        present[rows],
        options=GenerationOptions(**settings),
        **given,
    )


def _log_probs(decoder_ids: Tensor, row: int) -> Tensor:
    images, present = image_inputs()
    at = slice(row, row + 1)
    many = len(decoder_ids)
    logits = base()(
        ids("inputs/src_tokens")[at].expand(many, -1),
        images[at].expand(many, -1, -1, -1),
        present[at].expand(many),
        decoder_ids,
    )
    return F.log_softmax(logits, dim=-1)


@torch.no_grad()
def test_a_wide_search_finds_the_best_of_all_sequences() -> None:
    allowed = list(range(269, 275))
    trie = Trie([list(pair) for pair in product(allowed, repeat=2)])
    found = _generate(beam_size=36, max_length=2, trie=trie, normalize_scores=False)
    pairs = list(product(allowed, repeat=2))
    for row, hypotheses in enumerate(found):
        log_probs = _log_probs(torch.tensor([[0, *pair] for pair in pairs]), row)
        totals = {}
        for pair, steps in zip(pairs, log_probs, strict=True):
            first, second = steps[0, allowed].log_softmax(0), steps[1, allowed].log_softmax(0)
            totals[pair] = (first[pair[0] - 269] + second[pair[1] - 269]).item()
        ranked = sorted(totals, key=lambda pair: -totals[pair])
        assert [tuple(h.tokens[:-1]) for h in hypotheses] == ranked
        assert [h.score for h in hypotheses] == pytest.approx(
            sorted(totals.values())[::-1], abs=1e-4
        )


@torch.no_grad()
def test_one_beam_follows_the_most_likely_token() -> None:
    for row, (hypothesis, *_) in enumerate(_generate(beam_size=1, max_length=6)):
        tokens = [0]
        while len(tokens) < 7:
            scores = _log_probs(torch.tensor([tokens]), row)[0, -1]
            scores[1] = float("-inf")
            if len(tokens) == 1:
                scores[EOS] = float("-inf")
            tokens.append(int(scores.argmax()))
            if tokens[-1] == EOS:
                break
        expected = tokens[1:] if tokens[-1] == EOS else [*tokens[1:], EOS]
        assert hypothesis.tokens == expected


@pytest.mark.parametrize("variant", ["base", "prefix_both"])
def test_a_source_gets_in_a_batch_what_it_gets_alone(variant: str) -> None:
    # Short lengths end the sources at different steps, so that some leave the batch early.
    settings = {"beam_size": 3, "max_length": 8, "length_penalty": 0.2, "prompts": prompts(variant)}
    together = _generate(**settings)
    for row in range(3):
        alone = _generate(slice(row, row + 1), **settings)[0]
        assert [h.tokens for h in alone] == [h.tokens for h in together[row]]
        for first, second in zip(alone, together[row], strict=True):
            assert first.score == pytest.approx(second.score, abs=1e-5)


def test_sources_leave_the_batch_when_they_are_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    rows_per_step = []
    step = base().decode_step

    def counted(token_ids: Tensor, cache: Any) -> Tensor:
        rows_per_step.append(len(token_ids))
        return step(token_ids, cache)

    monkeypatch.setattr(base(), "decode_step", counted)
    prefixes = torch.tensor([[11, 12, 1], [13, 1, 1], [14, 15, 16]])
    found = _generate(beam_size=1, max_length=12, prefix_ids_BP=prefixes, trie=Trie([[5]]))
    lengths = [len(row[0].tokens) for row in found]
    assert lengths == [4, 3, 5]
    assert rows_per_step == [3, 3, 3, 2, 1]


def test_a_search_that_has_ended_goes_on_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = list(range(269, 275))
    options = {"beam_size": 2, "max_length": 9, "trie": Trie([[token] for token in allowed])}
    told: list[bool] = []

    def agree(goes_on: bool) -> bool:
        told.append(goes_on)
        return True

    model, steps = base(), 0
    step = type(model).decode_step

    def counted(*arguments: Any) -> Tensor:
        nonlocal steps
        steps += 1
        return step(*arguments)

    alone = _generate(**options)
    monkeypatch.setattr(type(model), "decode_step", counted)
    together = _generate(**options, agree=agree)
    assert together == alone
    assert steps == len(told) == 10
    assert told[0]
    assert not told[-1]
    assert told == sorted(told, reverse=True), "a search that has ended begins again"


def _mixed(variants: list[str]) -> Prompts:
    """One prompt for each row; rows without one get filler that nothing may look at."""

    def stack(name: str) -> tuple[LayerPrompt, ...]:
        parts = [getattr(prompts(variant), name) for variant in variants]
        return tuple(
            LayerPrompt(
                torch.cat([part[i].key for part in parts]),
                torch.cat([part[i].value for part in parts]),
            )
            for i in range(LAYERS)
        )

    return Prompts(encoder=stack("encoder"), decoder=stack("decoder"))


@pytest.mark.parametrize("beam_size", [1, 5])
def test_rows_of_one_batch_may_have_different_prompts(beam_size: int) -> None:
    variants = ["prefix_both", "proj_both", "prefix_both"]
    # Short answers are preferred, so that some sources leave the batch before others.
    settings = {"beam_size": beam_size, "max_length": 10, "length_penalty": 0.2}
    mixed = _generate(prompts=_mixed(variants), **settings)
    for row, variant in enumerate(variants):
        alone = _generate(slice(row, row + 1), prompts=prompts(variant), **settings)[0]
        assert [h.tokens for h in alone] == [h.tokens for h in mixed[row]]
        for first, second in zip(alone, mixed[row], strict=True):
            assert first.score == pytest.approx(second.score, abs=1e-5)


@torch.no_grad()
def test_what_belongs_to_a_source_is_kept_once_for_all_its_hypotheses() -> None:
    images, present = image_inputs()
    mixed = _mixed(["prefix_both", "proj_both", "prefix_both"])
    source = base().encode(ids("inputs/src_tokens"), images, present, mixed)
    cache = base().start_cache(source, mixed, rows_per_source=5)
    base().decode_step(torch.zeros(15, dtype=torch.int64), cache)
    buffers = [tensor.data_ptr() for tensor in (*cache.keys, *cache.values)]
    for token in range(4, 8):
        cache.reorder(torch.arange(15).flip(0).view(3, 5).flip(0).flatten())
        base().decode_step(torch.full((15,), token), cache)
    assert [tensor.data_ptr() for tensor in (*cache.keys, *cache.values)] == buffers
    assert all(len(key) == len(value) == 3 for key, value in cache.cross)
    assert all(prompt is not None and len(prompt.key) == 3 for prompt in cache.prompts)
    cache.keep_sources(torch.tensor([0, 2]))
    assert {len(tensor) for tensor in cache.keys} == {10}
    assert all(prompt is not None and len(prompt.key) == 2 for prompt in cache.prompts)
    shared = base().start_cache(source, prompts("prefix_both"), rows_per_source=5)
    assert all(prompt is not None and len(prompt.key) == 1 for prompt in shared.prompts)


@torch.no_grad()
def test_a_target_outgrows_the_first_buffers() -> None:
    images, present = image_inputs()
    source = base().encode(ids("inputs/src_tokens"), images, present, prompts("prefix_both"))
    target = torch.randint(4, 200, (3, 70), generator=torch.Generator().manual_seed(1))
    expected, _ = base().decode(target, source, prompts("prefix_both"))
    cache = base().start_cache(source, prompts("prefix_both"))
    stepped = [base().decode_step(target[:, step], cache) for step in range(70)]
    torch.testing.assert_close(torch.stack(stepped, dim=1), expected, atol=2e-5, rtol=0)


def test_rows_of_one_batch_may_have_prompts_of_different_lengths() -> None:
    whole = _mixed(["prefix_both", "proj_both", "prefix_both"])

    def cut(stack: tuple[LayerPrompt, ...], row: int, length: int) -> tuple[LayerPrompt, ...]:
        at = slice(row, row + 1)
        return tuple(LayerPrompt(p.key[at, :, :length], p.value[at, :, :length]) for p in stack)

    lengths = torch.tensor([5, 2, 0])
    visible = torch.arange(5)[None] < lengths[:, None]
    mixed = _generate(
        beam_size=4,
        max_length=10,
        prompts=Prompts(
            encoder=whole.encoder,
            decoder=whole.decoder,
            encoder_visible_BL=visible,
            decoder_visible_BL=visible,
        ),
    )
    for row, length in enumerate(lengths.tolist()):
        own = Prompts(
            encoder=cut(whole.encoder, row, length), decoder=cut(whole.decoder, row, length)
        )
        alone = _generate(
            slice(row, row + 1), beam_size=4, max_length=10, prompts=own if length else None
        )[0]
        assert [h.tokens for h in alone] == [h.tokens for h in mixed[row]]


def test_a_trie_yields_its_answers_and_stops_when_all_are_said() -> None:
    answers = [[5], [5, 6], [7, 8, 9]]
    found = _generate(beam_size=5, max_length=20, trie=Trie(answers), normalize_scores=False)
    for row in found:
        assert sorted(h.tokens[:-1] for h in row) == answers
        assert sum(2.718281828**h.score for h in row) == pytest.approx(1.0, abs=1e-4)


def test_a_range_leaves_bins_and_specials() -> None:
    for row in _generate(beam_size=5, max_length=4, min_length=4, allowed_range=BIN_RANGE):
        for hypothesis in row:
            assert len(hypothesis.tokens) == 5
            assert all(t < 4 or t >= BIN_RANGE[0] for t in hypothesis.tokens)


def test_no_ngram_occurs_twice() -> None:
    for row in _generate(beam_size=3, max_length=16, no_repeat_ngram_size=2):
        for hypothesis in row:
            pairs = list(zip([0, *hypothesis.tokens], hypothesis.tokens, strict=False))
            assert len(pairs) == len(set(pairs))


def test_a_hard_prefix_is_said_and_scored() -> None:
    prefix = torch.tensor([[11, 12, 13], [14, 1, 1], [15, 16, 1]])
    found = _generate(beam_size=3, max_length=8, prefix_ids_BP=prefix, hard_prefix=True)
    for row, wanted in zip(found, prefix.tolist(), strict=True):
        said = [token for token in wanted if token != 1]
        for hypothesis in row:
            assert hypothesis.tokens[: len(said)] == said
            assert sum(hypothesis.token_scores) / len(hypothesis.tokens) == pytest.approx(
                hypothesis.score, abs=1e-4
            )


def test_a_soft_prefix_leaves_other_tokens_one_below_the_least_likely() -> None:
    scores = torch.log_softmax(torch.randn(3, 9, generator=torch.Generator().manual_seed(0)), 1)
    before = scores.clone()
    force_prefix(scores, torch.tensor([4, 1, 5]), hard=False)
    least = torch.minimum(before[0, 4], before[2, 5]) - 1
    assert scores[0, 4] == before[0, 4]
    assert torch.equal(scores[1], before[1])
    assert (scores[0][torch.arange(9) != 4] == least).all()
    assert (scores[2][torch.arange(9) != 5] == least).all()


def test_repeats_are_found_in_each_row_alone() -> None:
    scores = torch.zeros(2, 9)
    forbid_repeats(scores, torch.tensor([[0, 5, 6, 5], [0, 5, 6, 7]]), 2)
    assert scores[0].isinf().nonzero().flatten().tolist() == [6]
    assert not scores[1].isinf().any()


def test_a_row_without_any_allowed_token_is_impossible_not_nan() -> None:
    scores = step_log_probs(torch.zeros(1, 9), torch.tensor([[0, 5, 2]]), trie=Trie([[5]]))
    assert (scores == float("-inf")).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"beam_size": 0},
        {"min_length": 5, "max_length": 4},
        {"temperature": 0.0},
        {"trie": Trie([[5]]), "no_repeat_ngram_size": 3},
        {"trie": Trie([[5, 6, 7]]), "max_length": 2},
        {"trie": Trie([[5]]), "min_length": 2},
    ],
)
def test_impossible_options_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"beam_size|temperature|trie|answers"):
        GenerationOptions(**settings)


@pytest.mark.parametrize("prefix", [[[5, 2]], [[5] * 20]])
def test_impossible_prefixes_are_refused(prefix: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"eos|room"):
        _generate(slice(0, 1), prefix_ids_BP=torch.tensor(prefix))
