"""``everloop gate``: the verdicts of the gates, with what they stand on."""

from __future__ import annotations

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, table
from everloop.core.gate import Verdict
from everloop.errors import NotFound
from everloop.evaluation.render import verdict_markdown

__all__ = ["gate"]


@click.group()
def gate() -> None:
    """Verdicts of the gates and their evidence."""


@gate.command("list")
@click.argument("model", default="")
@common
def list_(model: str, location: str | None, as_json: bool) -> None:
    """The verdicts on a MODEL (on all if none is named), newest first."""
    with open_workspace(location) as workspace:
        found = workspace.evaluation.verdicts(model)[::-1]
    if as_json:
        return json_document(found)
    table(
        ("verdict", "candidate", "champion", "answer", "use", "attempt", "at"),
        [
            (
                v.id,
                f"{v.model}/{v.candidate}",
                v.champion or None,
                "passed" if v.passed else "refused",
                v.holdout.get("use"),
                v.holdout.get("attempt"),
                v.at,
            )
            for v in found
        ],
    )


@gate.command("show")
@click.argument("verdict", metavar="VERDICT|NAME/VERSION")
@common
def show(verdict: str, location: str | None, as_json: bool) -> None:
    """A verdict with all its evidence, as Markdown; of a version the newest one on it."""
    with open_workspace(location) as workspace:
        found: Verdict
        name, slash, version = verdict.rpartition("/")
        if slash and version.isdigit():
            given = workspace.evaluation.verdicts(name, int(version))
            if not given:
                raise NotFound(
                    f"no verdict on {verdict}", hint=f"everloop gate list {name} shows those given"
                )
            found = given[-1]
        else:
            found = workspace.evaluation.verdict(verdict)
    if as_json:
        return json_document(found)
    click.echo(verdict_markdown(found), nl=False)
