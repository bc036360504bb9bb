"""Changing what the aliases stand for: promote through the gate, roll back, delete."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import RegistryError
from pipeline.registry.gate import demand, judge
from pipeline.registry.history import Event, events, former_version
from pipeline.registry.interface import PROMOTION_TAG
from pipeline.registry.reference import CHAMPION, RegisteredPrompt
from pipeline.registry.store import PromptRegistry, refusals


@dataclass(frozen=True, kw_only=True)
class Move:
    """An alias that goes from one version to another."""

    alias: str
    to: RegisteredPrompt
    former: RegisteredPrompt | None
    reason: str
    action: str = "promote"

    @property
    def changes(self) -> bool:
        """Whether the alias is elsewhere now."""
        return self.former is None or self.former.version != self.to.version


def plan_promotion(
    registry: PromptRegistry,
    reference: str,
    *,
    alias: str = CHAMPION,
    metric: str | None = None,
    dataset: str | None = None,
    force: bool = False,
) -> Move:
    """Says what a promotion would do, and asks the gate where the alias is `champion`.

    Args:
        registry: The registry.
        reference: The version to promote.
        alias: The alias; only `champion` is behind the gate.
        metric: Metric to compare by; the present champion's headline metric by default.
        dataset: Name or digest of the data set that both must have been measured on.
        force: Promote without being better.

    Raises:
        RegistryError: there is no such version, or the gate refuses it.
    """
    new = registry.get(reference)
    present = registry.holder(new.name, alias)
    if present is None:
        return Move(alias=alias, to=new, former=None, reason=f"first {alias}")
    if present.version == new.version or alias != CHAMPION:
        return Move(alias=alias, to=new, former=present, reason="by hand")
    if force:
        return Move(alias=alias, to=new, former=present, reason="forced")
    verdict = judge(registry.record(new.title), registry.record(present.title), metric, dataset)
    demand(verdict, new.title)
    return Move(alias=alias, to=new, former=present, reason=verdict.reason)


def plan_rollback(registry: PromptRegistry, name: str, alias: str = CHAMPION) -> Move:
    """Says which version a rollback would bring back.

    Args:
        registry: The registry.
        name: Name of the registered prompt.
        alias: The alias to move back.

    Raises:
        RegistryError: there is no such prompt, or its history knows no former version.
    """
    versions = {prompt.version: prompt for prompt in registry.versions(name)}
    present = registry.holder(name, alias)
    past = [event for _, event in history(registry, name)]
    number = former_version(past, alias, present.version if present else None, set(versions))
    if number is None:
        raise RegistryError(
            f"{name}@{alias} has no former version to go back to; name one:"
            f" prefixworks registry promote {name}/VERSION --force"
        )
    reason = f"back from version {present.version}" if present else "back"
    return Move(alias=alias, to=versions[number], former=present, reason=reason, action="rollback")


def carry_out(registry: PromptRegistry, move: Move) -> RegisteredPrompt:
    """Moves the alias and keeps the event.

    The event comes first: were the alias moved before and the process killed, the way back would
    be lost, while an event without its move is recognised by the alias being elsewhere.
    """
    if not move.changes:
        return move.to
    event = Event(
        alias=move.alias,
        action=move.action,
        version=move.to.version,
        former=move.former.version if move.former else None,
        reason=move.reason,
    )
    keep(registry, move.to.name, event)
    if move.alias == CHAMPION:
        with refusals(f"{move.to.title} was not tagged"):
            registry.client.set_model_version_tag(
                move.to.name, str(move.to.version), PROMOTION_TAG, f"{move.action}: {move.reason}"
            )
    return registry.set_alias(move.to.title, move.alias)


def delete_version(registry: PromptRegistry, reference: str, *, force: bool = False) -> None:
    """Deletes a version; the files and the run that it was made from stay in the store.

    Args:
        registry: The registry.
        reference: The version.
        force: Also delete one that an alias stands for; the alias goes with it.

    Raises:
        RegistryError: there is no such version, or an alias stands for it.
    """
    prompt = registry.get(reference)
    check_deletable(prompt, force=force)
    digest = prompt.tags.get("prompt_digest", "unknown digest")
    for alias in prompt.aliases or ("",):
        keep(
            registry,
            prompt.name,
            Event(
                alias=alias,
                action="delete",
                version=prompt.version,
                former=prompt.version if alias else None,
                reason=f"deleted, {digest}",
            ),
        )
    with refusals(f"{prompt.title} was not deleted"):
        registry.client.delete_model_version(prompt.name, str(prompt.version))


def check_deletable(prompt: RegisteredPrompt, *, force: bool) -> None:
    """Refuses to delete what is in use.

    Raises:
        RegistryError: an alias stands for the version and force is False.
    """
    if prompt.aliases and not force:
        held = ", ".join(prompt.aliases)
        raise RegistryError(
            f"{prompt.title} is {held}: promote another version first, or delete it with --force"
        )


def history(registry: PromptRegistry, name: str) -> list[tuple[str, Event]]:
    """The changes of a prompt's aliases, oldest first, each with its time (UTC)."""
    with refusals(f"the history of {name} cannot be read"):
        return events(registry.client.get_registered_model(name).tags)


def keep(registry: PromptRegistry, name: str, event: Event) -> None:
    """Adds an event to the history of a registered prompt."""
    tag, value = event.as_tag()
    with refusals(f"the history of {name} was not kept"):
        registry.client.set_registered_model_tag(name, tag, value)
