"""The model card of a prompt, generated from its record so that the two never disagree."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.registry.record import PromptRecord


def render_card(record: PromptRecord, pictures: Sequence[str] = ()) -> str:
    """Renders the card as Markdown.

    Args:
        record: The prompt's record.
        pictures: Paths of pictures, relative to the card.

    Returns:
        Markdown text; equal records give equal text.
    """
    meta = record.meta
    tasks = ", ".join(task.name for task in meta.tasks)
    parts = [
        f"# {meta.name}",
        f"What the method `{meta.method}` tuned for {tasks or 'no named task'} on the base"
        f" **{meta.base.name}**. Without that base it does nothing: loading it onto any other base"
        " is refused.",
        _facts(record),
        _tasks(record),
        _metrics(record),
        _data(record),
        _pictures(pictures),
        "## Use\n\n```python\nfrom pipeline.registry.predictor import Predictor\n\n"
        'predictor = Predictor.from_folder("<this folder>")\n'
        f'print(predictor.predict("photo.jpg", "{_example(record)}"))\n```',
        f"## Licence\n\n{meta.licence}. The base and the training data have licences of their own.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def describe(record: PromptRecord, limit: int = 4000) -> str:
    """A registered version's description: the card without pictures, which a registry cannot show.

    Args:
        record: The prompt's record.
        limit: Longest text in characters; stores cut or refuse longer ones.
    """
    text = render_card(record)
    return text if len(text) <= limit else text[: limit - 2].rstrip() + " …"


def _example(record: PromptRecord) -> str:
    names = {task.name for task in record.meta.tasks}
    return "what is in the image?" if "vqa" in names else "the red circle"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines
    )


def _facts(record: PromptRecord) -> str:
    meta = record.meta
    rows = [["method", meta.method]]
    if record.length is not None:
        rows.append(["prompt length", str(record.length)])
    rows += [
        ["layers", ", ".join(f"{count} {stack}" for stack, count in sorted(meta.depth.items()))],
        ["numbers in the artifact", f"{record.parameters:,}"],
        ["trainable parameters", f"{meta.trainable_parameters:,}"],
        ["image size", f"{meta.image_size} px"],
        ["base", meta.base.name],
        ["base fingerprint", f"`{meta.base.fingerprint}`"],
        ["tokenizer", f"`{meta.tokenizer_digest}`"],
        ["prompt digest", f"`{record.digest}`"],
    ]
    rows += [[name, version] for name, version in sorted(meta.libraries.items())]
    return _table(["fact", "value"], rows)


def _tasks(record: PromptRecord) -> str:
    if not record.meta.tasks:
        return ""
    rows = [[task.name, f"`{task.instruction.strip()}`", task.metric] for task in record.meta.tasks]
    return "## Tasks\n\n" + _table(["task", "instruction", "metric"], rows)


def _metrics(record: PromptRecord) -> str:
    if not record.meta.metrics:
        return "## Scores\n\nNot evaluated yet."
    rows = [[name, f"{value:.4f}"] for name, value in sorted(record.meta.metrics.items())]
    return "## Scores\n\n" + _table(["metric", "value"], rows)


def _data(record: PromptRecord) -> str:
    if not record.meta.data:
        return ""
    rows = [[use.role, use.name, f"{use.samples:,}", f"`{use.digest}`"] for use in record.meta.data]
    return "## Data\n\n" + _table(["role", "dataset", "samples", "digest"], rows)


def _pictures(pictures: Sequence[str]) -> str:
    if not pictures:
        return ""
    return "## Pictures\n\n" + "\n\n".join(f"![{path}]({path})" for path in pictures)
