"""Beam search and candidate scores of the reference: the same tokens, scores within 1e-4."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.golden_micro import computable, findings, largest_error, read_json, tensors

BEAMS: dict[str, Any] = read_json("beam.json")
ANSWERS: dict[str, list[int]] = read_json("losses.json")["vqa"]["answers"]
ALL_CANDIDATES: dict[str, Any] = read_json("losses.json")["vqa"]["allcand"]
COMPUTED = [
    name.removeprefix("beam ").removesuffix(", search")
    for name in computable("beam ")
    if name.endswith(", search")
]
CANDIDATES = [name.removeprefix("candidates ") for name in computable("candidates ")]
TOLERANCE = 1e-4
# A decoder prompt without a trie gives all other tokens one score. Here three hundred of them tie
# for the last places of the beam, and which get them is the choice of the sort.
DECIDED_BY_A_TIE = {("vqa_prefix_notrie.prev_output.adapter", 1)}


@pytest.mark.parametrize("name", COMPUTED)
def test_search_equals_the_reference(name: str) -> None:
    counts, *tables = findings(f"beam {name}, search")
    expected = BEAMS[name]["hypotheses"]
    assert counts.found.tolist() == [len(row) for row in expected]
    by_source = zip(*(table.found.split(counts.found.tolist()) for table in tables), strict=True)
    for place, ((tokens, scores, token_scores), row) in enumerate(
        zip(by_source, expected, strict=True)
    ):
        if (name, place) in DECIDED_BY_A_TIE:
            continue
        said = [[token for token in ids if token >= 0] for ids in tokens.tolist()]
        assert said == [golden["tokens"] for golden in row]
        assert scores.tolist() == pytest.approx([g["score"] for g in row], abs=TOLERANCE)
        for found, golden in zip(token_scores.tolist(), row, strict=True):
            length = len(golden["tokens"])
            assert found[:length] == pytest.approx(golden["positional_scores"], abs=TOLERANCE)


@pytest.mark.parametrize("name", COMPUTED)
def test_forced_decoding_gives_the_scores_of_the_search(name: str) -> None:
    (scores,) = findings(f"beam {name}, forced")
    expected = [golden for row in BEAMS[name]["hypotheses"] for golden in row]
    assert scores.counts is not None
    counted = 0
    for row, counts, golden in zip(scores.found, scores.counts, expected, strict=True):
        length = len(golden["tokens"])
        counted += int(counts.sum())
        assert not counts[length:].any()
        given = torch.tensor(golden["positional_scores"])[counts[:length]]
        assert row[counts].tolist() == pytest.approx(given.tolist(), abs=TOLERANCE)
    whole = sum(len(golden["tokens"]) for golden in expected)
    # Only where a decoder prompt is a preference do tokens beside it not count.
    assert counted == whole or (name.startswith("vqa_prefix_notrie") and counted > 0.8 * whole)


def test_the_searches_are_all_here() -> None:
    kinds = {name.split(".")[0] for name in BEAMS}
    assert {name.split(".")[0] for name in COMPUTED} == kinds
    assert {name for name in BEAMS if "adapter" not in name} <= set(COMPUTED)
    assert {name for name in ALL_CANDIDATES if "adapter" not in name} <= set(CANDIDATES)


@pytest.mark.parametrize("name", CANDIDATES)
def test_candidate_scores_equal_the_reference(name: str) -> None:
    kind, variant = name.split(".")
    scores, best = findings(f"candidates {name}")
    assert torch.equal(scores.expected, tensors()[f"vqa_{kind}/allcand_scores.{variant}"])
    assert largest_error(scores) <= TOLERANCE
    said = [list(ANSWERS)[index] for index in best.found.tolist()]
    assert said == ALL_CANDIDATES[name]["predictions"]


@pytest.mark.parametrize("kind", ["none", "src", "prev_output"])
def test_trie_masks_equal_the_reference(kind: str) -> None:
    (mask,) = findings(f"trie vqa_{kind}")
    assert torch.equal(mask.found, tensors()[f"vqa_{kind}/constraint_masks"].long())
