"""``everloop approve`` and ``everloop refuse``: answer runs that wait for a person."""

from __future__ import annotations

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, say, table

__all__ = ["approve", "refuse"]

_QUESTION = click.option("--question", default="", help="Which one, where a run asks several.")


@click.command()
@click.argument("run_id", metavar="[RUN]", default="")
@click.option("--note", default="", help="Why, for those who read it later.")
@_QUESTION
@common
def approve(run_id: str, note: str, question: str, location: str | None, as_json: bool) -> None:
    """Let a RUN that waits go on; without RUN, list what waits."""
    with open_workspace(location) as workspace:
        service = workspace.approvals
        if not run_id:
            found = service.approvals(state="asked")
            if as_json:
                return json_document(found)
            columns = ("run", "question", "asked", "expires", "four eyes")
            rows = [(a.run_id, a.question, a.asked_at, a.expires_at, a.four_eyes) for a in found]
            return table(columns, rows)
        given = service.approve(run_id, note, question)
    if as_json:
        return json_document(given)
    say(f"approved: {given.question}; the supervisor goes on with run {run_id}")
    say(f"where none runs: everloop run {given.target or 'FILE.py:PIPELINE'} --resume {run_id}")


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--reason", required=True, help="Why; the run fails with it.")
@_QUESTION
@common
def refuse(run_id: str, reason: str, question: str, location: str | None, as_json: bool) -> None:
    """Refuse what a RUN waits for: it fails, with the reason."""
    with open_workspace(location) as workspace:
        given = workspace.approvals.refuse(run_id, reason, question)
    if as_json:
        return json_document(given)
    say(f"refused: {given.question}; run {run_id} failed")
