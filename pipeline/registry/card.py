"""The model card of a prompt, generated from its record so that the two never disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.registry.record import PromptRecord


def render_card(record: PromptRecord, pictures: Mapping[str, str] | None = None) -> str:
    """Renders the card as Markdown.

    Args:
        record: The prompt's record.
        pictures: Where each picture is, as seen from the card, by the name to show.

    Returns:
        Markdown text; equal records give equal text.
    """
    return "\n\n".join(_sections(record, pictures or {})) + "\n"


def describe(
    record: PromptRecord, pictures: Mapping[str, str] | None = None, limit: int = 4000
) -> str:
    """A registered version's description: the card, as far as its sections fit.

    Args:
        record: The prompt's record.
        pictures: As for `render_card`.
        limit: Longest text in characters; stores cut or refuse longer ones.
    """
    shown: list[str] = []
    for section in _sections(record, pictures or {}):
        if sum(len(each) + 2 for each in shown) + len(section) > limit:
            break
        shown.append(section)
    return "\n\n".join(shown) + "\n"


def noted(description: str, note: str) -> str:
    """A description with another note above its card.

    Args:
        description: The description as it is.
        note: The new note; empty for none.
    """
    card = "\n".join(description.split("\n")[_note_lines(description) :])
    quoted = "\n".join(f"> {line}".rstrip() for line in note.strip().splitlines())
    return f"{quoted}\n\n{card}" if quoted else card


def note_of(description: str) -> str:
    """The note above a description's card, or nothing."""
    lines = description.split("\n")[: _note_lines(description)]
    return "\n".join(line.removeprefix(">").strip() for line in lines if line.startswith(">"))


def _note_lines(description: str) -> int:
    lines = description.split("\n")
    return next(
        (at for at, line in enumerate(lines) if line.strip() and not line.startswith(">")),
        len(lines),
    )


def _sections(record: PromptRecord, pictures: Mapping[str, str]) -> list[str]:
    # What people look for first stands first: only the end is left out where space is short.
    meta = record.meta
    tasks = ", ".join(task.name for task in meta.tasks)
    sections = [
        f"# {meta.name}",
        f"What the method `{meta.method}` tuned for {tasks or 'no named task'} on the base"
        f" **{meta.base.name}**. Without that base it does nothing: loading it onto any other base"
        " is refused.",
        _metrics(record),
        _pictures(pictures),
        _data(record),
        _facts(record),
        _tasks(record),
        "## Use\n\n```python\nfrom pipeline.registry.predictor import Predictor\n\n"
        'predictor = Predictor.from_folder("<this folder>")\n'
        f'print(predictor.predict("photo.jpg", "{_example(record)}"))\n```',
        f"## Licence\n\n{meta.licence}. The base and the training data have licences of their own.",
    ]
    return [section for section in sections if section]


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
    return "## Facts\n\n" + _table(["fact", "value"], rows)


def _tasks(record: PromptRecord) -> str:
    if not record.meta.tasks:
        return ""
    rows = [[task.name, f"`{task.instruction.strip()}`", task.metric] for task in record.meta.tasks]
    return "## Tasks\n\n" + _table(["task", "instruction", "metric"], rows)


def _metrics(record: PromptRecord) -> str:
    if not record.meta.metrics:
        return "## Scores\n\nNot evaluated yet."
    rows = [[name, f"{value:.4f}"] for name, value in sorted(record.meta.metrics.items())]
    on = ", ".join(f"{use.name} ({use.samples:,} samples)" for use in record.measured_on)
    measured = f"Measured on {on}.\n\n" if on else ""
    return f"## Scores\n\n{measured}" + _table(["metric", "value"], rows)


def _data(record: PromptRecord) -> str:
    if not record.meta.data:
        return ""
    rows = [[use.role, use.name, f"{use.samples:,}", f"`{use.digest}`"] for use in record.meta.data]
    return "## Data\n\n" + _table(["role", "dataset", "samples", "digest"], rows)


def _pictures(pictures: Mapping[str, str]) -> str:
    if not pictures:
        return ""
    shown = [f"![{name}]({place})" for name, place in sorted(pictures.items())]
    return "## Pictures\n\n" + "\n\n".join(shown)
