"""`prefixworks predict`: one answer from one prompt, for one image.

prefixworks predict --model models:/grounding@champion --image photo.jpg --text "the red circle"
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.cli import run_stage
from pipeline.registry.drawn_answer import annotate
from pipeline.registry.picture_input import open_image
from pipeline.registry.predictor import BEAM_SIZE, Predictor, opened_reference


def build_parser() -> argparse.ArgumentParser:
    """The command line of `prefixworks predict`."""
    parser = argparse.ArgumentParser(
        prog="prefixworks predict", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--model",
        required=True,
        help="models:/name@alias, models:/name/version, or the folder of a prompt artifact",
    )
    parser.add_argument("--image", required=True, help="image file, or its URL")
    parser.add_argument("--text", help="question, expression or hypothesis")
    parser.add_argument("--task", help="which task, for a prompt that knows several")
    parser.add_argument(
        "--base", help="folder, name or hub id of the base (else PREFIXWORKS_BASE, else packaged)"
    )
    parser.add_argument(
        "--uri", help="MLflow store (else MLFLOW_TRACKING_URI, else runs/mlflow.db)"
    )
    parser.add_argument(
        "--beam-size", type=int, default=BEAM_SIZE, help="beams (default %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="PNG file to draw the answer into")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command; errors are raised for the `prefixworks` command to print."""
    arguments = build_parser().parse_args(argv)
    with opened_reference(arguments.model, arguments.uri) as folder:
        predictor = Predictor.from_folder(folder, arguments.base)
    # Read once: a URL may answer otherwise the second time.
    image = open_image(arguments.image)
    answer = predictor.predict(
        image, arguments.text, task=arguments.task, beam_size=arguments.beam_size
    )
    if arguments.output is not None:
        annotate(image, answer, arguments.text).save(arguments.output, format="PNG")
    if arguments.json:
        box = None if answer.box is None else [float(corner) for corner in answer.box]
        print(json.dumps({"text": answer.text, "box": box, "score": float(answer.score)}))
        return 0
    if answer.text is not None:
        print(answer.text)
    if answer.box is not None:
        print("box " + " ".join(f"{corner:.1f}" for corner in answer.box))
    print(f"score {answer.score:.4f}")
    if arguments.output is not None:
        print(f"drawn into {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
