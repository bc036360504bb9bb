"""Losses of the model and of given log-probabilities, and gradients of what is tuned.

Dimensions: B batch, T target tokens, V vocabulary, N labelled tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from model.errors import CheckpointError
from model.losses import LossOutput, label_smoothed_loss, loss_of_log_probs, restrict
from model.verify.cases import GradientCase, LossCase
from model.verify.finding import Finding, Kind, finding
from model.verify.subjects import Subject, Subjects


@torch.no_grad()
def losses(subjects: Subjects, case: LossCase) -> Iterator[Finding]:
    """Compare the loss, the negative log-likelihood and the tokens that they are summed over."""
    of_model = case.variant is not None
    found = _loss_of_model(subjects, case) if of_model else _loss_of_recorded(subjects, case)
    yield finding(
        f"loss {case.name}",
        "loss and likelihood",
        Kind.LOSS if of_model else Kind.FUNCTION_LOSS,
        f"losses.{case.name}",
        torch.stack([found.loss_sum, found.nll_sum]),
        torch.tensor([case.loss_sum, case.nll_sum]),
    )
    yield _sample_size(f"loss {case.name}", f"losses.{case.name}", found, case.sample_size)


def gradients(subjects: Subjects, case: GradientCase) -> Iterator[Finding]:
    """Compare the gradient of every tuned parameter, and what moves besides where anything does.

    Raises:
        CheckpointError: the folder lists other parameters than the variant has.
    """
    fixtures = subjects.fixtures
    subject = _ready(subjects.of(case.variant), case)
    tuned = subject.tuned
    if tuned is None or tuned.method is None:
        raise CheckpointError(f"{fixtures.folder}: variant {case.variant} tunes nothing")
    parameters = {subject.recorded_name(n): p for n, p in tuned.method.named_parameters()}
    if set(parameters) != set(case.parameters):
        odd = min(set(parameters) ^ set(case.parameters))
        raise CheckpointError(f"{fixtures.folder}: gradient {case.name} and {odd} don't fit")
    inputs = fixtures.batch(case.inputs.source, case.inputs.decoder).to(subjects.device)
    target_BT = fixtures.ids(case.inputs.target).to(subjects.device)
    with torch.enable_grad():
        logits_BTV = tuned(
            inputs.source_ids_BS, inputs.images_BCHW, inputs.image_present_B, inputs.decoder_ids_BT
        )
        loss = label_smoothed_loss(
            logits_BTV, target_BT, epsilon=case.epsilon, allowed_range=case.allowed_range
        )
        grads = torch.autograd.grad(loss.loss_sum / loss.sample_size, list(parameters.values()))
    tuned.eval()
    title, place = f"gradient {case.name}", f"gradients.{case.name}"
    expected = torch.tensor([case.loss_sum])
    yield finding(title, "loss", Kind.LOSS, place, loss.loss_sum.reshape(1), expected)
    yield _sample_size(title, place, loss, case.sample_size)
    for name, grad in zip(parameters, grads, strict=True):
        recorded = f"grad_{case.name}/{name}"
        yield finding(title, name, Kind.GRADIENT, recorded, grad, fixtures.tensor(recorded))
    buffers = dict(tuned.base.named_buffers())
    for recorded in sorted(fixtures.tensors):
        name = recorded.removeprefix(f"grad_{case.name}/after/")
        if name != recorded:
            if name not in buffers:
                raise CheckpointError(f"{fixtures.folder}: {recorded} cannot be compared")
            expected = fixtures.tensor(recorded)
            yield finding(title, name, Kind.ACTIVATION, recorded, buffers[name], expected)


def _ready(subject: Subject, case: GradientCase) -> Subject:
    """Put a subject into training mode; one whose BatchNorm moves is a copy of its own."""
    if subject.tuned is not None:
        if case.batch_norm_trains:
            tuned = copy.deepcopy(subject.tuned)
            tuned.base.batch_norm_trains = True
            subject = replace(subject, base=tuned.base, tuned=tuned)
        assert subject.tuned is not None
        subject.tuned.train()
    return subject


def _loss_of_model(subjects: Subjects, case: LossCase) -> LossOutput:
    fixtures, device, names = subjects.fixtures, subjects.device, case.inputs
    assert case.variant is not None
    subject = subjects.of(case.variant)
    inputs = fixtures.batch(names.source, names.decoder).to(device)
    logits_BTV = subject.base(
        inputs.source_ids_BS,
        inputs.images_BCHW,
        inputs.image_present_B,
        inputs.decoder_ids_BT,
        subject.prompts(),
    )
    target_BT = fixtures.ids(names.target).to(device)
    confidence_B = mask_BTV = None
    if names.confidence is not None:
        confidence_B = fixtures.tensor(names.confidence).to(device)
    if names.constraint_mask is not None:
        mask_BTV = fixtures.tensor(names.constraint_mask).bool().to(device)
    # Without dropout the two passes of R-Drop are alike: one is enough.
    twice = 1 if case.rdrop_alpha is None else 2

    def repeated(tensor: Tensor) -> Tensor:
        return tensor.repeat(twice, *[1] * (tensor.dim() - 1))

    return label_smoothed_loss(
        repeated(logits_BTV),
        repeated(target_BT),
        epsilon=case.epsilon,
        confidence_B=None if confidence_B is None else repeated(confidence_B),
        allowed_range=case.allowed_range,
        constraint_mask_BTV=None if mask_BTV is None else repeated(mask_BTV),
        drop_worst_ratio=case.drop_worst_ratio,
        rdrop_alpha=case.rdrop_alpha,
        ignore_prefix_size=case.ignore_prefix_size,
        ignore_eos=case.ignore_eos,
    )


def _loss_of_recorded(subjects: Subjects, case: LossCase) -> LossOutput:
    log_probs_NV = subjects.fixtures.tensor("rdrop_fn/lprobs").to(subjects.device)
    target_N = subjects.fixtures.tensor(case.inputs.target).long().to(subjects.device)
    if case.allowed_range is not None:
        log_probs_NV, target_N = restrict(log_probs_NV, target_N, case.allowed_range)
    return loss_of_log_probs(
        log_probs_NV,
        target_N,
        epsilon=case.epsilon,
        drop_worst_ratio=case.drop_worst_ratio,
        rdrop_alpha=case.rdrop_alpha,
    )


def _sample_size(case: str, recorded: str, found: LossOutput, expected: int) -> Finding:
    sizes = torch.tensor([found.sample_size]), torch.tensor([expected])
    return finding(case, "tokens counted", Kind.EXACT, recorded, *sizes)
