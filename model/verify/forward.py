"""Activations of whole passes, step by step decoding, and the tables that positions use.

Dimensions: B batch, N source positions (image and text), T target positions, M rows of a step,
V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from model.errors import CheckpointError
from model.ofa import OFA
from model.ofa.encoder import EncoderOutput
from model.ofa.positions import image_buckets, token_buckets
from model.ofa.prompts import Prompts, StackPrompt
from model.verify.cases import ForwardCase
from model.verify.finding import Finding, Kind, finding
from model.verify.subjects import Subjects

_INPUTS = {"src_tokens", "prev_output_tokens", "encoder_positions", "logit_positions"}
_WORDS = {
    "encoder_padding_mask": "encoder padding",
    "encoder_out": "encoder output",
    "position_embeddings": "position embeddings",
    "encoder_prompt_kv": "encoder prompts",
    "decoder_prompt_kv": "decoder prompts",
}


@torch.no_grad()
def activations(subjects: Subjects, case: ForwardCase) -> Iterator[Finding]:
    """Compare everything that the folder holds of a pass.

    Encoder positions count where the reference saw no padding, target positions where the decoder
    input is no padding. A case may record some positions only.

    Raises:
        CheckpointError: an input is missing, or an output is of an unknown name.
    """
    fixtures = subjects.fixtures
    inputs = fixtures.inputs_of(case).to(subjects.device)
    subject = subjects.of(case.variant)
    model, prompts = subject.base, subject.prompts()
    source = model.encode(
        inputs.source_ids_BS,
        inputs.images_BCHW,
        inputs.image_present_B,
        prompts,
        keep_layer_inputs=True,
    )
    logits_BTV, decoder_inputs = model.decode(
        inputs.decoder_ids_BT, source, prompts, inputs.code_mask_B
    )
    found = {
        "logits": logits_BTV,
        **{f"decoder_hidden.{index}": x for index, x in enumerate(decoder_inputs)},
        **_of_encoder(source),
        **_of_prompts(prompts),
    }
    real_BN = ~fixtures.tensor(f"{case.name}/encoder_padding_mask").bool()
    real_BT = inputs.decoder_ids_BT != model.config.vocab.pad
    for name in outputs_of(subjects, case):
        if name not in found:
            raise CheckpointError(f"{fixtures.folder}: {case.name}/{name} cannot be compared")
        yield _judged(subjects, case, name, found[name], real_BN, real_BT)
    if inputs.code_mask_B is None:
        stepped_BTV = step_logits(model, inputs.decoder_ids_BT, source, prompts)
        yield _judged(subjects, case, "logits", stepped_BTV, real_BN, real_BT, " step by step")


def outputs_of(subjects: Subjects, case: ForwardCase) -> list[str]:
    """Return the names of what is recorded of a case, without its inputs."""
    names = [name.split("/", 1) for name in sorted(subjects.fixtures.tensors)]
    return [
        rest for group, *tail in names if group == case.name for rest in tail if rest not in _INPUTS
    ]


def step_logits(
    model: OFA, decoder_ids_BT: Tensor, source: EncoderOutput, prompts: Prompts | None
) -> Tensor:
    """Return the logits `[B, T, V]` of a target decoded token by token.

    Each source has two hypotheses, alike, that change places at every step as in a search.
    """
    cache = model.start_cache(source, prompts, rows_per_source=2)
    ids_MT = decoder_ids_BT.repeat_interleave(2, dim=0)
    swapped_M = torch.arange(len(ids_MT), device=ids_MT.device) ^ 1
    steps = []
    for step in range(ids_MT.shape[1]):
        steps.append(model.decode_step(ids_MT[:, step], cache)[::2])
        cache.reorder(swapped_M)
    return torch.stack(steps, dim=1)


@torch.no_grad()
def image_trunk(subjects: Subjects) -> Iterator[Finding]:
    """Compare the features of the image trunk, before they are projected."""
    expected = subjects.fixtures.tensor("inputs/resnet_features")
    images, _ = subjects.fixtures.images()
    base = subjects.base()
    trunk = base.image_trunk()
    features, _ = base.encoder.image_features(images.to(subjects.device), trunk)
    # [batch, positions, channels] here, [batch, channels, rows, columns] there.
    yield finding(
        "image trunk",
        "features",
        Kind.ACTIVATION,
        "inputs/resnet_features",
        features.transpose(1, 2).reshape(len(features), features.shape[2], -1),
        expected.flatten(2),
    )


def buckets(subjects: Subjects) -> Iterator[Finding]:
    """Compare the buckets of relative positions, which are integers."""
    config, fixtures, device = subjects.fixtures.config, subjects.fixtures, subjects.device
    by_distance = fixtures.tensor("buckets/token_bucket_by_distance")
    reach = len(by_distance) // 2
    found = token_buckets(
        torch.arange(len(by_distance), device=device) - reach,
        torch.zeros(1, dtype=torch.int64, device=device),
        bucket_size=config.token_bucket_size,
        max_positions=config.max_positions,
    )
    yield finding(
        "buckets",
        "text",
        Kind.EXACT,
        "buckets/token_bucket_by_distance",
        found[:, 0],
        by_distance,
    )
    ids = fixtures.tensor("buckets/image_ids").long().to(device)
    yield finding(
        "buckets",
        "image",
        Kind.EXACT,
        "buckets/image_bucket_sub",
        image_buckets(ids, ids, bucket_size=config.image_bucket_size),
        fixtures.tensor("buckets/image_bucket_sub"),
    )


def _of_encoder(source: EncoderOutput) -> dict[str, Tensor]:
    return {
        "encoder_out": source.hidden_BND,
        "encoder_padding_mask": source.padding_BN,
        "position_embeddings": source.positions_ND.expand_as(source.hidden_BND),
        **{f"encoder_hidden.{index}": x for index, x in enumerate(source.layer_inputs)},
    }


def _of_prompts(prompts: Prompts | None) -> dict[str, Tensor]:
    def stacked(stack: StackPrompt) -> Tensor:
        return torch.stack([torch.stack(layer) for layer in stack if layer is not None])

    stacks = {} if prompts is None else {"encoder": prompts.encoder, "decoder": prompts.decoder}
    return {f"{name}_prompt_kv": stacked(s) for name, s in stacks.items() if s is not None}


def _judged(
    subjects: Subjects,
    case: ForwardCase,
    name: str,
    found: Tensor,
    real_BN: Tensor,
    real_BT: Tensor,
    how: str = "",
) -> Finding:
    """Put one output beside the recorded one, at the positions that count."""
    recorded = f"{case.name}/{name}"
    layer = re.fullmatch(r"(encoder|decoder)_hidden\.(\d+)", name)
    what = f"{layer[1]} hidden states {layer[2]}" if layer else _WORDS.get(name, name)
    kind = Kind.LOGITS if name == "logits" else Kind.ACTIVATION
    counts: Tensor | None = real_BT if name == "logits" or name.startswith("decoder_h") else real_BN
    if name == "encoder_padding_mask":
        kind, counts = Kind.EXACT, None
    elif name.endswith("prompt_kv"):
        counts = None
    some = {"logits": "logit_positions", "encoder_out": "encoder_positions"}.get(name)
    if some is not None and f"{case.name}/{some}" in subjects.fixtures.tensors:
        places = subjects.fixtures.positions(f"{case.name}/{some}", found.shape[1])
        found = found[:, places.to(found.device)]
        counts = None if counts is None else counts[:, places.to(counts.device)]
    expected = subjects.fixtures.tensor(recorded)
    return finding(case.name, what + how, kind, recorded, found, expected, counts)
