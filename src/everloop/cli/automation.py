"""``everloop automation``: what happens by itself, and what came of it."""

from __future__ import annotations

from pathlib import Path

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, key_values, say, table
from everloop.core.package import shown_place
from everloop.core.policy import Automation, Firing, LoopSpec, RunPipeline, Trigger
from everloop.core.time import span_text

__all__ = ["automation"]


@click.group()
def automation() -> None:
    """Automations and loops: triggers, firings; declare, pause, fire."""


@automation.command("list")
@common
def list_(location: str | None, as_json: bool) -> None:
    """All automations and loops, with what fires them."""
    with open_workspace(location) as workspace:
        service = workspace.automation
        found: list[LoopSpec | Automation] = [*service.automations(), *service.loops()]
    if as_json:
        return json_document(found)
    table(
        ("name", "state", "does", "on", "owner"),
        [
            (s.name, "paused" if s.paused else "on", _does(s), _on(s.triggers), s.owner)
            for s in found
        ],
    )


@automation.command("show")
@click.argument("name")
@common
def show(name: str, location: str | None, as_json: bool) -> None:
    """One automation: triggers, action, limits, the latest firings."""
    with open_workspace(location) as workspace:
        found = workspace.automation.automation(name)
        firings = workspace.automation.firings(name, limit=5)
    if as_json:
        return json_document({"automation": found, "firings": firings})
    key_values(
        [
            ("name", found.name),
            ("owner", found.owner),
            ("state", "paused" if found.paused else "on"),
            *((f"on {index}", _trigger(t)) for index, t in enumerate(found.triggers, 1)),
            ("does", _does(found)),
            ("debounce", span_text(found.debounce_s) if found.debounce_s else "-"),
            ("cooldown", span_text(found.cooldown_s) if found.cooldown_s else "-"),
            (
                "budget",
                f"{found.budget} in {span_text(found.budget_s)}" if found.budget else "-",
            ),
            ("at once", found.concurrency),
            ("declared in", found.source or "-"),
        ]
    )
    _firings(firings)


@automation.command("firings")
@click.argument("name", default="")
@click.option("--limit", default=20, show_default=True)
@common
def firings(name: str, limit: int, location: str | None, as_json: bool) -> None:
    """The latest firings, the ones that were held back too."""
    with open_workspace(location) as workspace:
        found = workspace.automation.firings(name, limit=limit)
    if as_json:
        return json_document(found)
    _firings(found)


@automation.command("declare")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@common
def declare(files: tuple[str, ...], location: str | None, as_json: bool) -> None:
    """Take over what FILE declares; what it declared before and does not any more is removed."""
    with open_workspace(location, must_exist=False) as workspace:
        runner = workspace.loop_runner()
        found = [spec for file in files for spec in runner.load(Path(file))]
    if as_json:
        return json_document(found)
    table(("name", "does", "on"), [(s.name, _does(s), _on(s.triggers)) for s in found])


@automation.command("pause")
@click.argument("name")
@click.option("--reason", default="", help="Kept in the event log.")
@common
def pause(name: str, reason: str, location: str | None, as_json: bool) -> None:
    """Let a loop or an automation fire no more; what runs already goes on."""
    _set_paused(location, name, True, reason, as_json)


@automation.command("resume")
@click.argument("name")
@click.option("--reason", default="", help="Kept in the event log.")
@common
def resume(name: str, reason: str, location: str | None, as_json: bool) -> None:
    """Let a loop or an automation fire again."""
    _set_paused(location, name, False, reason, as_json)


@automation.command("remove")
@click.argument("name")
@click.option("--reason", default="", help="Kept in the event log.")
@common
def remove(name: str, reason: str, location: str | None, as_json: bool) -> None:
    """Remove an automation; what it did stays."""
    with open_workspace(location) as workspace:
        workspace.automation.remove(name, reason)
    if as_json:
        return json_document({"removed": name})
    say(f"{name} is removed")


@automation.command("fire")
@click.argument("name")
@click.option("--reason", default="", help="Kept in the event log.")
@common
def fire(name: str, reason: str, location: str | None, as_json: bool) -> None:
    """Act now: the supervisor (everloop up) takes it up at once."""
    with open_workspace(location) as workspace:
        made = workspace.automation.fire(name, reason)
    if as_json:
        return json_document(made)
    say(f"firing {made.id} is {made.outcome}")


def _set_paused(location: str | None, name: str, paused: bool, reason: str, as_json: bool) -> None:
    with open_workspace(location) as workspace:
        changed = workspace.automation.pause(name, paused, reason)
    if as_json:
        return json_document({"name": name, "paused": paused, "changed": changed})
    say(f"{name} is {'paused' if paused else 'on'}{'' if changed else ', as it was'}")


def _firings(found: list[Firing]) -> None:
    columns = ("created_at", "loop", "outcome", "scheduled_for", "run_id", "reason")
    table(
        ("at", "name", "outcome", "for", "run", "reason"),
        [[getattr(firing, column) for column in columns] for firing in found],
    )


def _does(spec: LoopSpec | Automation) -> str:
    if isinstance(spec, LoopSpec):
        return f"retrains by {shown_place(spec.pipeline)}"
    if isinstance(spec.action, RunPipeline):
        given = " ".join(f"{name}={value}" for name, value in spec.action.arguments.items())
        return f"runs {shown_place(spec.action.pipeline)} {given}".rstrip()
    return f"tells {spec.action.to}"


def _on(triggers: tuple[Trigger, ...]) -> str:
    return ", ".join(_trigger(trigger) for trigger in triggers) or "by hand"


def _trigger(trigger: Trigger) -> str:
    zone = f" {trigger.zone}" if trigger.zone else ""
    where = f" where {trigger.where}" if trigger.where else ""
    return f"{trigger.on} {trigger.value}{zone}{where}"
