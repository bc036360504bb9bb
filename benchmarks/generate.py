"""Time, memory and arithmetic of answering: encoding, one greedy step, and a beam search.

    python benchmarks/generate.py --arch base --image-size 384 --batch 4 --prompt-length 64

The search keeps five hypotheses and takes as many steps as the target has tokens. It is held
against what it cannot do without: one pass of the encoder, and as many greedy steps.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

# Started by its path, a script sees its own folder only.
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.measure import Build, Row, Work, measure, report
from benchmarks.settings import Inputs, Settings, build_base, build_inputs, parse
from model.generation import GenerationOptions, generate
from model.ofa import OFA, DecoderCache, Prompts
from model.tuning import PrefixConfig, TuningConfig, build_tuned_model

_BEAM_SIZE = 5
_ENCODER, _GREEDY, _BEAM = "encoder pass", "greedy step", f"beam-{_BEAM_SIZE} search"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    settings = parse("Time, memory and arithmetic of answering.", argv)
    arms = known_arms()
    unknown = [name for name in settings.arms if name not in arms]
    if unknown:
        sys.exit(f"no arm {unknown[0]!r}; there are: {', '.join(arms)}")
    rows = measure({name: arms[name] for name in settings.arms or arms}, settings)
    report("Answering", rows, settings, _comparison(rows, settings.tgt_len))


def known_arms() -> dict[str, Build]:
    """Return all arms by name."""
    return {_ENCODER: _encoder, _GREEDY: _greedy, _BEAM: _beam}


def _encoder(settings: Settings) -> Work:
    base, prompts, inputs = _prepared(settings)

    def run() -> None:
        with torch.no_grad(), settings.autocast():
            base.encode(inputs.source_ids_BS, inputs.images_BCHW, inputs.image_present_B, prompts)

    return Work(run)


def _greedy(settings: Settings) -> Work:
    """One step of one hypothesis a source, the cache's beginning not counted."""
    base, prompts, inputs = _prepared(settings)
    with torch.no_grad(), settings.autocast():
        source = base.encode(
            inputs.source_ids_BS, inputs.images_BCHW, inputs.image_present_B, prompts
        )
    begun: list[DecoderCache] = []

    def prepare() -> None:
        with torch.no_grad(), settings.autocast():
            begun[:] = [base.start_cache(source, prompts)]

    def run() -> None:
        ids_N = inputs.decoder_ids_BT[:, 0]
        with torch.no_grad(), settings.autocast():
            for _ in range(settings.tgt_len):
                ids_N = base.decode_step(ids_N, begun[0]).argmax(dim=-1)

    return Work(run, times=settings.tgt_len, prepare=prepare)


def _beam(settings: Settings) -> Work:
    base, prompts, inputs = _prepared(settings)
    # All hypotheses end with the last step, so that every one of them is taken.
    tokens = settings.tgt_len - 1
    options = GenerationOptions(beam_size=_BEAM_SIZE, max_length=tokens, min_length=tokens)

    def run() -> None:
        with settings.autocast():
            found = generate(
                base,
                inputs.source_ids_BS,
                inputs.images_BCHW,
                inputs.image_present_B,
                prompts=prompts,
                options=options,
            )
        assert all(len(answer[0].tokens) == settings.tgt_len for answer in found)

    return Work(run)


def _prepared(settings: Settings) -> tuple[OFA, Prompts | None, Inputs]:
    prefix = PrefixConfig(length=settings.prompt_length)
    model = build_tuned_model(build_base(settings), TuningConfig(prefix=prefix))
    model = model.to(settings.device).eval()
    with torch.no_grad():
        prompts = model.prompts()
    return model.base, prompts, build_inputs(settings)


def _comparison(rows: list[Row], steps: int) -> list[str]:
    found = {row.arm: row for row in rows}
    if len(found) < len(known_arms()):
        return []
    floor = found[_ENCODER].median_s + steps * found[_GREEDY].median_s
    return [
        f"The search of {steps} tokens takes {found[_BEAM].median_s / floor:.2f} times one encoder"
        f" pass and {steps} greedy steps, {floor:.3f} s."
    ]


if __name__ == "__main__":
    main()
