"""``everloop data``: datasets, versions, and what rules did to rows."""

from __future__ import annotations

import json

import click

from everloop.cli.files import COMMANDS
from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, key_values, table
from everloop.errors import InvalidInput

__all__ = ["data"]


@click.group()
def data() -> None:
    """Datasets, versions, dropped and changed rows; directories and files."""


for _command in COMMANDS:
    data.add_command(_command)


@data.command("list")
@common
def list_(location: str | None, as_json: bool) -> None:
    """The datasets."""
    with open_workspace(location) as workspace:
        found = workspace.data.datasets()
    if as_json:
        return json_document(found)
    table(
        ("name", "versions", "owner", "created"),
        [(d.name, d.latest, d.owner, d.created_at) for d in found],
    )


@data.command("log")
@click.argument("name")
@common
def log(name: str, location: str | None, as_json: bool) -> None:
    """The versions of a dataset, newest first."""
    with open_workspace(location) as workspace:
        found = workspace.data.versions(name)[::-1]
    if as_json:
        return json_document(found)
    is_table = found[0].kind == "table"
    table(
        ("version", "rows" if is_table else "files", "dropped" if is_table else "bytes",
         "author", "created", "digest", "note"),
        [
            (v.ref, *((v.rows, v.dropped) if is_table else (v.files, v.size)), v.author,
             v.created_at, v.digest[:12], v.note)
            for v in found
        ],
    )  # fmt: skip


@data.command("show")
@click.argument("name")
@click.option("--version", type=int, default=None, help="Version number; the latest if not given.")
@common
def show(name: str, version: int | None, location: str | None, as_json: bool) -> None:
    """One version: of a table its schema and blocks, else its files."""
    with open_workspace(location) as workspace:
        found = workspace.data.version(name, version)
    if as_json:
        return json_document(found)
    extent = [("files", found.files), ("bytes", found.size)]
    if found.kind == "table":
        extent = [
            ("rows", found.rows), ("dropped", found.dropped), ("blocks", len(found.blocks)),
        ]  # fmt: skip
    key_values(
        [
            ("version", found.ref),
            ("kind", found.kind),
            ("digest", found.digest),
            *extent,
            ("author", found.author),
            ("created", found.created_at),
        ]
    )
    if found.kind != "table":
        return None
    table(
        ("column", "type", "nullable", "unit", "owner", "description"),
        [(f.name, f.type, f.nullable, f.unit, f.owner, f.description) for f in found.schema.fields],
    )


@data.command("changes")
@click.argument("name")
@click.option("--rule", default="", help="Only what this rule did.")
@click.option(
    "--where",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Show the rows themselves that have this value (may be given again).",
)
@common
def changes(
    name: str, rule: str, where: tuple[str, ...], location: str | None, as_json: bool
) -> None:
    """What rules dropped or changed in a dataset, with the reason and the owner."""
    with open_workspace(location) as workspace:
        if where:
            rows = workspace.data.changed_rows(dataset=name, where=_pairs(where), rule=rule)
            if as_json:
                return json_document(rows)
            return table(
                ("rule", "action", "reason", "owner", "row"),
                [
                    (r.rule, r.action, r.reason, r.owner, json.dumps(r.row, default=str))
                    for r in rows
                ],
            )
        found = workspace.data.changes(dataset=name, rule=rule)
    if as_json:
        return json_document(found)
    table(
        ("rule", "action", "rows", "reason", "owner", "where"),
        [(c.rule, c.action, c.rows, c.reason, c.owner, c.scope) for c in found],
    )


def _pairs(where: tuple[str, ...]) -> dict[str, object]:
    pairs: dict[str, object] = {}
    for item in where:
        column, equals, value = item.partition("=")
        if not equals or not column:
            raise InvalidInput(f"--where {item!r} is not COLUMN=VALUE")
        try:
            pairs[column] = json.loads(value)
        except ValueError:
            pairs[column] = value
    return pairs
