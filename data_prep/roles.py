"""Which columns a sample of each task needs: the vocabulary of `columns` in a recipe."""

from typing import Final

TASK_ROLES: Final[dict[str, tuple[str, ...]]] = {
    "caption": ("references",),
    "vqa": ("text",),
    "grounding": ("text", "box"),
    "entailment": ("text", "label"),
    "detection": ("boxes", "labels"),
}
"""Roles that every row of a task must fill, besides `uid` and `image`."""

OPTIONAL_ROLES: Final[dict[str, tuple[str, ...]]] = {
    "caption": (),
    "vqa": ("answers",),
    "grounding": (),
    "entailment": ("premise",),
    "detection": (),
}
"""Roles that a task uses where there is such a column."""


def roles_of(task: str) -> tuple[str, ...]:
    """All roles of a task: uid and image, image_id (a name for the image), and the task's own."""
    return ("uid", "image", "image_id", *TASK_ROLES[task], *OPTIONAL_ROLES[task])
