"""From the words of a fixture folder to its cases.

The names of a folder's cases are part of its format: they say which inputs a case takes, as
docs/how-to/verify.md lists. Only this file reads meaning out of names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from model.generation import GenerationOptions
from model.ofa.config import OFAConfig, VocabLayout
from model.trie import Trie
from model.verify.cases import (
    BeamCase,
    CandidateCase,
    ForwardCase,
    GradientCase,
    LossCase,
    LossInputs,
    RecordedHypothesis,
    Variant,
)
from model.verify.record import Record

_STACKS = ("encoder", "decoder")
_KINDS_OF_PROMPT = ("prev_output", "none", "src")


def read_config(record: Record) -> OFAConfig:
    """Build the architecture from the section `config` of config.json."""
    vocab = record.child("vocab")
    blocks = record.integers("resnet_layers")
    if len(blocks) != 3:
        record.fail("resnet_layers", f"must be three numbers, not {blocks}")
    counts = {name: vocab.take(name, int) for name in ("text_count", "code_count", "bin_count")}
    layers = ("encoder_layers", "decoder_layers", "attention_heads", "ffn_dim")
    same = (*layers, "resnet_width", "image_bucket_size", "token_bucket_size")
    try:
        return OFAConfig(
            name=record.take("name", str),
            d_model=record.take("embed_dim", int),
            resnet_blocks=(blocks[0], blocks[1], blocks[2]),
            vocab=VocabLayout(**counts),
            image_size=record.take("image_height", int),
            max_positions=record.take("max_source_positions", int),
            **{name: record.take(name, int) for name in same},
        )
    except (ValueError, ZeroDivisionError) as error:
        record.fail("embed_dim", f"and the other sizes don't fit: {error}")


def read_ids(record: Record, name: str, vocab: VocabLayout) -> list[int]:
    """Read a list of ids of the vocabulary."""
    ids = record.integers(name)
    if not ids or not 0 <= min(ids) <= max(ids) < vocab.size:
        record.fail(name, f"must hold ids from 0 to {vocab.size - 1}")
    return ids


def read_variant(name: str, record: Record) -> Variant:
    """Read a variant: its methods follow from the options that the reference was built with."""
    options = record.child("options")
    settings = _prompt_settings(options)
    for option, on in options.values.items():
        if on is True and not option.startswith(_STACKS):
            settings[option] = {
                other.removeprefix(f"{option}_"): value
                for other, value in options.values.items()
                if other.startswith(f"{option}_")
            }
    return Variant(
        name=name,
        methods=tuple(settings),
        settings=settings,
        files=tuple(record.texts("weights")[1:]),
    )


def _prompt_settings(options: Record) -> dict[str, Mapping[str, object]]:
    """Return the settings of the prompts by their kind; nothing where no stack has any."""
    prompted = [s for s in _STACKS if options.take(f"{s}_prompt", bool, False)]
    found = {
        (
            options.take(f"{stack}_prompt_type", str),
            options.take(f"{stack}_prompt_length", int),
            options.take(f"{stack}_prompt_dim", int)
            if options.take(f"{stack}_prompt_projection", bool, False)
            else None,
        )
        for stack in prompted
    }
    if not found:
        return {}
    if len(found) > 1:
        options.fail("decoder_prompt", "differs from the encoder's in kind, length or projection")
    kind, length, projection = found.pop()
    stacks = "both" if len(prompted) == len(_STACKS) else prompted[0]
    return {kind: {"length": length, "stacks": stacks, "projection_dim": projection}}


def read_forward(name: str, record: Record, tensor_names: frozenset[str]) -> ForwardCase:
    """Read a forward case of config.json."""
    codes: Literal["none", "all", "alternate"] = "none"
    if name.startswith("codes"):
        codes = "alternate" if name.endswith("mixed") else "all"
    return ForwardCase(
        name=name,
        variant=record.take("variant", str),
        has_images=record.take("num_patches", int) > 0,
        own_tokens=f"{name}/src_tokens" in tensor_names,
        codes=codes,
    )


def read_loss(name: str, record: Record, vocab: VocabLayout) -> LossCase:
    """Read a loss of losses.json."""
    options = record.child("options")
    of_model = "function" not in record.values
    late = options.take("update_num", int, 1) > options.take("drop_worst_after", int, 0)
    epsilon = options.number("label_smoothing" if of_model else "epsilon")
    return LossCase(
        name=name,
        variant=record.take("variant", str) if of_model else None,
        inputs=_loss_inputs(name) if of_model else _function_inputs(options),
        epsilon=epsilon,
        rdrop_alpha=options.number("reg_alpha", 1.0)
        if options.take("use_rdrop", bool, False)
        else None,
        drop_worst_ratio=options.number("drop_worst_ratio", 0.0) if late else 0.0,
        ignore_prefix_size=options.take("ignore_prefix_size", int, 0),
        ignore_eos=options.take("ignore_eos", bool, False),
        allowed_range=_range(options, vocab),
        loss_sum=record.number("loss_sum"),
        nll_sum=record.number("nll_sum"),
        sample_size=record.take("sample_size", int),
    )


def read_gradient(name: str, record: Record, vocab: VocabLayout) -> GradientCase:
    """Read a gradient case of losses.json."""
    bins = (vocab.bin_first, vocab.bin_first + vocab.bin_count)
    return GradientCase(
        name=name,
        variant=record.take("variant", str),
        inputs=_loss_inputs(name),
        batch_norm_trains=record.take("batchnorm", str).startswith("train"),
        allowed_range=bins if "range" in name else None,
        parameters=tuple(record.texts("params")),
        loss_sum=record.number("loss_sum"),
        sample_size=record.take("sample_size", int),
    )


def read_beam(
    name: str, record: Record, answers: Mapping[str, list[int]], vocab: VocabLayout
) -> BeamCase:
    """Read a search of beam.json."""
    place = f"vqa_{name.split('.')[1]}" if name.startswith("vqa") and "." in name else None
    trie = Trie(answers.values()) if name.startswith("vqa_trie") and answers else None
    return BeamCase(
        name=name,
        variant=record.take("variant", str),
        source=f"{place or 'inputs'}/src_tokens",
        prefix=f"{place}/prefix_tokens" if place is not None else None,
        options=_generation_options(record.child("options"), trie, vocab),
        hypotheses=[
            [
                RecordedHypothesis(
                    read_ids(hypothesis, "tokens", vocab),
                    hypothesis.number("score"),
                    hypothesis.numbers("positional_scores"),
                )
                for hypothesis in row
            ]
            for row in record.rows("hypotheses")
        ],
    )


def read_candidates(name: str, record: Record, answers: Mapping[str, list[int]]) -> CandidateCase:
    """Read one entry of `vqa.allcand` of losses.json, named `<kind of prompt>.<variant>`."""
    kind, _, variant = name.partition(".")
    predictions = record.texts("predictions")
    if not set(predictions) <= set(answers):
        record.fail("predictions", "must be among the answers")
    return CandidateCase(
        name=name,
        variant=variant,
        place=f"vqa_{kind}",
        scores=f"vqa_{kind}/allcand_scores.{variant}",
        predictions=predictions,
    )


def _loss_inputs(name: str) -> LossInputs:
    place = "loss"
    names = {}
    if name.startswith("vqa_"):
        kind = next((k for k in _KINDS_OF_PROMPT if name.startswith(f"vqa_{k}")), "")
        place = f"vqa_{kind}"
        names = {
            "source": f"{place}/src_tokens",
            "decoder": f"{place}/prev_output_tokens",
            "target": f"{place}/target",
        }
    elif "range" in name:
        names = {"decoder": "loss/bin_prev_output_tokens", "target": "loss/bin_target"}
    return LossInputs(
        confidence=f"{place}/conf" if "conf" in name else None,
        constraint_mask=f"{place}/constraint_masks" if "trie" in name else None,
        **names,
    )


def _function_inputs(options: Record) -> LossInputs:
    ranged = "constraint_start" in options.values
    return LossInputs(target="rdrop_fn/target_bins" if ranged else "rdrop_fn/target")


def _range(options: Record, vocab: VocabLayout) -> tuple[int, int] | None:
    if "constraint_start" in options.values:
        first, end = (options.take(f"constraint_{edge}", int) for edge in ("start", "end"))
    elif "constraint_range" in options.values:
        words = options.take("constraint_range", str).split(",")
        if len(words) != 2 or not all(word.strip().isdigit() for word in words):
            options.fail("constraint_range", "must be `FIRST,END`")
        first, end = (int(word) for word in words)
    else:
        return None
    if not vocab.text_first <= first < end <= vocab.size:
        options.fail("constraint_range", f"{first},{end} lies outside the vocabulary")
    return first, end


def _generation_options(
    options: Record, trie: Trie | None, vocab: VocabLayout
) -> GenerationOptions:
    options.known(
        *("beam_size", "max_len_a", "max_len_b", "min_len", "len_penalty", "temperature"),
        *("no_repeat_ngram_size", "normalize_scores", "constraint_range"),
    )
    if options.number("max_len_a", 0):
        options.fail("max_len_a", "must be 0: lengths that depend on the source are not supported")
    try:
        return GenerationOptions(
            beam_size=options.take("beam_size", int),
            max_length=options.take("max_len_b", int),
            min_length=options.take("min_len", int, 1),
            length_penalty=options.number("len_penalty", 1.0),
            no_repeat_ngram_size=options.take("no_repeat_ngram_size", int, 0),
            normalize_scores=options.take("normalize_scores", bool, True),
            temperature=options.number("temperature", 1.0),
            allowed_range=_range(options, vocab),
            trie=trie,
        )
    except ValueError as error:
        options.fail("beam_size", f"and the other options don't fit: {error}")
