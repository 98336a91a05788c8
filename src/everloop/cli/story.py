"""``everloop why``, ``story``, ``events``, ``maturity``: what happened, and how far that goes."""

from __future__ import annotations

import json

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, table

__all__ = ["events", "maturity", "story", "why"]


@click.command()
@click.argument("prediction")
@click.option(
    "--neighbours", "count", type=int, metavar="N",
    help="Instead: the N training rows that are most like it, with their source rows and owners.",
)  # fmt: skip
@common
def why(prediction: str, count: int | None, location: str | None, as_json: bool) -> None:
    """Everything behind one PREDICTION id: model, run, code, features, rows, owners."""
    from everloop.governance.render import neighbours_text, why_text

    with open_workspace(location) as workspace:
        if count is not None:
            near = workspace.governance.neighbours(prediction, count)
            return json_document(near) if as_json else click.echo(neighbours_text(near))
        found = workspace.governance.why(prediction)
    if as_json:
        return json_document(found)
    click.echo(why_text(found))


@click.command()
@click.argument("loop")
@common
def story(loop: str, location: str | None, as_json: bool) -> None:
    """The chain of causes of a LOOP: alert, trigger, run, verdict, rollout."""
    from everloop.governance.render import story_text

    with open_workspace(location) as workspace:
        found = workspace.governance.story(loop)
    if as_json:
        return json_document(found)
    click.echo(story_text(found))


@click.command()
@click.argument("loop", required=False, default="")
@common
def maturity(loop: str, location: str | None, as_json: bool) -> None:
    """How far a LOOP has come from work by hand, in 12 items graded on what is recorded.

    Prints Markdown. Without a name it is the only loop of the workspace.
    """
    from everloop.governance.render import maturity_text

    with open_workspace(location) as workspace:
        found = workspace.governance.maturity(loop)
    if as_json:
        return json_document(found)
    click.echo(maturity_text(found))


@click.command()
@click.option("--kind", default="", help="Only events of this kind, such as alert.Fired.")
@click.option("--subject", default="", help="Only events of this subject, such as model:churn/3.")
@click.option("--after", default=0, help="Only events after this position.")
@click.option("--limit", default=50, show_default=True, help="At most so many, newest first.")
@common
def events(
    kind: str, subject: str, after: int, limit: int, location: str | None, as_json: bool
) -> None:
    """The event log, newest first."""
    with open_workspace(location) as workspace:
        found = workspace.lineage.events(
            after=after, kind=kind, subject=subject, limit=limit, newest=True
        )
    if as_json:
        return json_document(found)
    table(
        ("seq", "at", "kind", "subject", "actor", "body"),
        [
            (e.seq, e.at, e.kind, e.subject, e.actor, json.dumps(e.body, default=str)[:120])
            for e in found
        ],
    )
