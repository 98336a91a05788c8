"""``everloop data why``, ``changes``, ``work``, ``fix``, ``dismiss``: what became of rows."""

from __future__ import annotations

import json
from typing import Any

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, key_values, say, table
from everloop.core.dataset import RowChange, RowChangeSummary, Value
from everloop.core.work import WorkItem
from everloop.errors import InvalidInput

__all__ = ["COMMANDS"]

_ACTIONS = ("dropped", "changed", "warned", "quarantined", "found", "fixed", "dismissed")


@click.command("why")
@click.argument("name", metavar="NAME[@VERSION]")
@click.argument("where", nargs=-1, required=True, metavar="COLUMN=VALUE...")
@click.option("--run", default="", help="Follow it through the steps of this run, too.")
@common
def why(name: str, where: tuple[str, ...], run: str, location: str | None, as_json: bool) -> None:
    """Why a row is not there: through versions, rules, quarantine and the steps of a run.

    NAME may be NAME@2, NAME@TAG or NAME@TIME; alone it is the version that the run read, else the
    latest.
    """
    with open_workspace(location) as workspace:
        dataset, _, which = name.partition("@")
        number = workspace.data.find(name).number if which else None
        found = workspace.data.why_absent(dataset, pairs(where, ""), number, run=run)
    if as_json:
        return json_document(found)
    key_values([("row", _cells(found.where)), ("version", found.ref), ("answer", found.answer)])
    table(
        ("at", "place", "what", "told"),
        [(s.at, s.place, s.what, s.told) for s in found.stations],
    )


@click.command("changes")
@click.argument("name", required=False, default="")
@click.option("--rule", default="", help="Only what this rule did.")
@click.option("--run", default="", help="Only what the steps of this run did.")
@click.option("--action", type=click.Choice(_ACTIONS), help="Only what this happened to.")
@click.option(
    "--where",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Show the rows themselves that have this value (may be given again).",
)
@click.option("--rows", is_flag=True, help="Show the rows themselves.")
@click.option("--entries", is_flag=True, help="Show each commit and step, and not the totals.")
@click.option("--limit", default=100, show_default=True, help="Most lines to show.")
@click.option(
    "--to", "file", default="", metavar="FILE", help="Write all the rows to .jsonl, .csv, .parquet."
)
@common
def changes(
    name: str,
    rule: str,
    run: str,
    action: str | None,
    where: tuple[str, ...],
    rows: bool,
    entries: bool,
    limit: int,
    file: str,
    location: str | None,
    as_json: bool,
) -> None:
    """What rules dropped, changed or warned of, in all: of a dataset NAME, or of all of them."""
    asked: dict[str, Any] = {"dataset": name, "rule": rule, "act": action or ""}
    asked["scope"] = f"run:{run}" if run else ""
    with open_workspace(location) as workspace:
        data = workspace.data
        if file:
            from everloop.data.handed import ledger_rows, write_file

            count = write_file(file, ledger_rows(data, data.changes(**asked)))
            return say(f"{count} rows in {file}")
        if where or rows:
            return _show_rows(
                data.changed_rows(**asked, where=pairs(where), limit=limit), as_json=as_json
            )
        if entries:
            return _show_entries(data.changes(**asked, limit=limit), as_json=as_json)
        totals = data.change_totals(**asked)
    if as_json:
        return json_document(totals[:limit])
    table(
        ("dataset", "rule", "action", "rows", "times", "owner", "first", "last"),
        [
            (t.dataset, t.rule, t.action, t.rows, t.entries, t.owner, t.first_at, t.last_at)
            for t in totals[:limit]
        ],
    )
    if len(totals) > limit:
        say(f"{len(totals) - limit} lines more: --limit shows them")
    return None


def _show_rows(found: list[RowChange], *, as_json: bool) -> None:
    if as_json:
        return json_document(found)
    table(
        ("rule", "action", "reason", "owner", "where", "row"),
        [(r.rule, r.action, r.reason, r.owner, r.scope, json.dumps(r.row)) for r in found],
    )
    return None


def _show_entries(found: list[RowChangeSummary], *, as_json: bool) -> None:
    if as_json:
        return json_document(found)
    table(
        ("rule", "action", "rows", "reason", "owner", "where", "at"),
        [(c.rule, c.action, c.rows, c.reason, c.owner, c.scope, c.at) for c in found],
    )
    return None


@click.command("work")
@click.argument("name", required=False, default="")
@click.option("--owner", default="", help="Only what is theirs.")
@click.option("--rule", default="", help="Only because of this rule.")
@click.option("--dismissed", is_flag=True, help="What was dismissed, instead of what is open.")
@click.option("--limit", default=20, show_default=True, help="Most items to show one by one.")
@click.option(
    "--to", "file", default="", metavar="FILE",
    help="Write the rows of the dataset NAME to a .csv or .parquet, to be corrected.",
)  # fmt: skip
@common
def work(
    name: str,
    owner: str,
    rule: str,
    dismissed: bool,
    limit: int,
    file: str,
    location: str | None,
    as_json: bool,
) -> None:
    """Who must correct what: rows in quarantine, rows that a rule warned of, and findings.

    The file that --to writes is corrected and given back to: everloop data fix NAME FILE.
    """
    with open_workspace(location) as workspace:
        if file:
            from everloop.data.handed import write_file

            if not name:
                raise InvalidInput("rows of one dataset make a file: name it")
            out = workspace.data.work_rows(name, owner=owner, rule=rule)
            write_file(file, [out])
            return say(f"{out.num_rows} rows in {file}; correct them, then: "
                       f"everloop data fix {name} {file}")  # fmt: skip
        found = workspace.data.work(
            owner=owner, dataset=name, rule=rule, dismissed=dismissed, limit=limit
        )
    if as_json:
        return json_document(found)
    table(
        ("owner", "dataset", "kind", "rule", "items"),
        [(c.owner or "nobody", c.dataset, c.kind, c.rule, c.items) for c in found.counts],
    )
    if found.items:
        click.echo("")
        table(
            ("id", "dataset", "row", "rule", "reason", "owner", "suggestion"),
            [
                (i.id, i.dataset, _row(i), i.rule, _why(i), i.owner, i.suggestion)
                for i in found.items
            ],
        )
    if found.total > len(found.items):
        say(f"{found.total - len(found.items)} items more: --limit shows them")
    return None


def _row(item: WorkItem) -> str:
    return _cells(item.key) if item.key else f"{item.rows} rows"


def _why(item: WorkItem) -> str:
    return f"{item.reason}; {item.by}: {item.note}" if item.note else item.reason


@click.command("fix")
@click.argument("name")
@click.argument("file", metavar="FILE.csv|parquet")
@click.option("--note", default="", help="For people; kept in the ledger.")
@common
def fix(name: str, file: str, note: str, location: str | None, as_json: bool) -> None:
    """Hand corrected rows back: a new version of NAME, whose ledger says what it closed.

    FILE is what `everloop data work NAME --to FILE` wrote, corrected. Nothing is taken while a row
    in it still breaks its rule.
    """
    from everloop.data.handed import read_file

    with open_workspace(location) as workspace:
        version = workspace.data.fix_rows(name, read_file(file), note=note)
        closed = workspace.data.change_totals(scope=f"dataset:{version.ref}", act="fixed")
    if as_json:
        return json_document(version)
    key_values([("version", version.ref), ("rows", version.rows), ("by", version.author)])
    table(("rule", "closed", "owner"), [(c.rule, c.rows, c.owner) for c in closed])
    return None


@click.command("dismiss")
@click.argument("name")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--reason", required=True, help="Why it is no fault.")
@common
def dismiss(
    name: str, ids: tuple[str, ...], reason: str, location: str | None, as_json: bool
) -> None:
    """Say of items on the work list that they are no faults; the ledger keeps who said so."""
    with open_workspace(location) as workspace:
        found = workspace.data.dismiss(name, list(ids), reason)
    if as_json:
        return json_document(found)
    table(("rule", "rows", "reason"), [(c.rule, c.rows, c.reason) for c in found])
    return None


def pairs(where: tuple[str, ...], option: str = "--where ") -> dict[str, object]:
    """``COLUMN=VALUE`` as a dict; a value that is JSON is what JSON makes of it.

    Raises:
        InvalidInput: If one is no pair.
    """
    found: dict[str, object] = {}
    for item in where:
        column, equals, value = item.partition("=")
        if not equals or not column:
            raise InvalidInput(f"{option}{item!r} is not COLUMN=VALUE")
        try:
            found[column] = json.loads(value)
        except ValueError:
            found[column] = value
    return found


def _cells(row: dict[str, Value]) -> str:
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in row.items())


COMMANDS = (why, changes, work, fix, dismiss)
