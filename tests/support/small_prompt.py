"""Prompts for a small random base: real parts, made in a second."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image, ImageDraw

from model.boxes import box_to_bins
from model.checkpoint import fingerprint
from model.images import to_pixels
from model.ofa.model import OFA
from model.tokenizer import OFATokenizer
from model.tuning import TunedModel, build_tuned_model
from model.tuning.config import AdapterConfig, PrefixConfig, TuningConfig
from pipeline.registry.artifact import save_prompt
from pipeline.registry.describe import describe_prompt
from pipeline.registry.record import DataUse, PromptMeta
from tests.support.small_base import small_model, small_tokenizer, write_base

TEXTS = [
    ' which region does the text " the small red circle " describe?',
    " what color is the circle?",
    " red",
    " blue",
    " a large blue square left of a small red circle",
]


@dataclass(frozen=True)
class Lesson:
    """One image and text, and what a base shall answer."""

    image: Path
    source: str
    answer: str | tuple[float, float, float, float]
    """A text, or a box in pixels."""


def small_base(
    folder: Path, *, seed: int = 0, name: str = "ofa-small", lessons: Sequence[Lesson] = ()
) -> OFA:
    """Makes a base folder with random weights, taught a few answers, and returns the base."""
    tokenizer = small_tokenizer(TEXTS)
    base = small_model(tokenizer, seed=seed, name=name)
    if lessons:
        teach(base, tokenizer, lessons)
    write_base(base, tokenizer, folder)
    return base.eval()


def teach(base: OFA, tokenizer: OFATokenizer, lessons: Sequence[Lesson], steps: int = 60) -> None:
    """Trains the whole base until it says the answers."""
    optimizer = torch.optim.Adam(base.parameters(), lr=3e-3)
    threads = torch.get_num_threads()
    # Threads that share so little work mostly wait for each other, for minutes on a busy machine.
    torch.set_num_threads(1)
    try:
        for _ in range(steps):
            losses = [_loss(base, tokenizer, lesson) for lesson in lessons]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
    finally:
        torch.set_num_threads(threads)


def _loss(base: OFA, tokenizer: OFATokenizer, lesson: Lesson) -> torch.Tensor:
    config = base.config
    with Image.open(lesson.image) as image:
        if isinstance(lesson.answer, str):
            answer = tokenizer.encode(lesson.answer)
        else:
            sizes = (config.image_size, config.max_image_size, config.vocab.bin_count)
            answer = tokenizer.bin_ids(box_to_bins(lesson.answer, image.size, *sizes))
        pixels = to_pixels(image.convert("RGB"), config.image_size)[None]
    source = torch.tensor([[0, *tokenizer.encode(lesson.source), 2]])
    target = torch.tensor([*answer, 2])
    decoder = torch.tensor([[0, *answer]])
    logits = base(source, pixels, torch.tensor([True]), decoder)
    return torch.nn.functional.cross_entropy(logits[0], target)


def tuned(
    base: OFA,
    *,
    seed: int = 1,
    projection_dim: int | None = None,
    init_std: float = 0.1,
    method: Literal["prefix", "adapter", "adapter_prefix", "bitfit"] = "prefix",
) -> TunedModel:
    """A base with something tuned, such as a prefix on both stacks, to random values."""
    torch.manual_seed(seed)
    prefix = PrefixConfig(length=4, projection_dim=projection_dim, init_std=init_std)
    adapter = AdapterConfig(dim=3, init_std=init_std)
    model = build_tuned_model(base, TuningConfig(method=method, prefix=prefix, adapter=adapter))
    if not model.freezes_base:
        state = model.trainable_state()
        model.load_trainable_state(
            {n: t + init_std * torch.randn(t.shape) for n, t in state.items()}
        )
    return model.eval()


def small_meta(
    model: TunedModel,
    *,
    name: str = "shapes",
    tasks: tuple[str, ...] = ("vqa",),
    score: float = 0.5,
    base_fingerprint: str | None = None,
) -> PromptMeta:
    """A record as the trainer would give it."""
    return describe_prompt(
        model,
        name=name,
        tasks=tasks,
        base_fingerprint=base_fingerprint or fingerprint(model.base),
        tokenizer_digest=small_tokenizer(TEXTS).digest,
        image_size=64,
        data=(DataUse(role="train", name="world", digest="sha256:cc", samples=9),),
        config={"seed": 1, "data": {"max_source_length": 40}},
        metrics={f"{tasks[0]}/accuracy": score},
    )


def evaluated_meta(
    model: TunedModel,
    *,
    name: str = "shapes",
    score: float = 0.5,
    digest: str = f"sha256:{'dd' * 32}",
) -> PromptMeta:
    """A record with the score of an evaluation."""
    meta = small_meta(model, name=name, score=score)
    use = DataUse(role="evaluation", name="world_test", digest=digest, samples=5)
    return dataclasses.replace(meta, data=(*meta.data, use))


def small_prompt(
    folder: Path,
    base: OFA,
    *,
    seed: int = 1,
    tasks: tuple[str, ...] = ("vqa",),
    name: str = "shapes",
) -> TunedModel:
    """Writes a prompt artifact for a base, and returns the model it was made from."""
    model = tuned(base, seed=seed)
    save_prompt(folder, model, small_meta(model, name=name, tasks=tasks))
    return model


def picture(folder: Path) -> Path:
    """A drawn picture, wider than high, so that boxes show which side is which."""
    image = Image.new("RGB", (96, 64), "white")
    ImageDraw.Draw(image).ellipse((20, 16, 44, 40), fill="red")
    path = folder / "picture.png"
    image.save(path)
    return path
