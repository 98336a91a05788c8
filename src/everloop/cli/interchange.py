"""``everloop data export`` and ``everloop data import``: tables of other products."""

from __future__ import annotations

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, say, table
from everloop.core.context import using

__all__ = ["COMMANDS"]

_FORMAT = click.Choice(["parquet", "delta", "iceberg", "lance"])


@click.command("export")
@click.argument("version", metavar="NAME[@VERSION]")
@click.option("--format", "format_", type=_FORMAT, default="parquet", show_default=True)
@click.option("--to", required=True, type=click.Path(), help="A new or empty folder.")
@common
def export(version: str, format_: str, to: str, location: str | None, as_json: bool) -> None:
    """Write a version of a table to a folder: all of it, or nothing."""
    from everloop.data.api import export as write

    with open_workspace(location) as workspace, using(workspace):
        found = workspace.data.find(version)
        made = write(f"{found.dataset}@{found.number}", to, format_)  # type: ignore[arg-type]
    if as_json:
        return json_document({"version": found.ref, "format": format_, "to": str(made)})
    say(f"{found.ref}: {found.rows} rows in {made}")
    return None


@click.command("import")
@click.argument("folder", type=click.Path(exists=True))
@click.option("--name", required=True, help="Of the dataset; NAME@BRANCH is a branch of it.")
@click.option("--format", "format_", type=_FORMAT, help="Told by what is there if not given.")
@click.option("--at", type=int, help="Version of the Delta or Lance table; the latest if not.")
@click.option("--note", default="", help="For people.")
@common
def import_(
    folder: str,
    name: str,
    format_: str | None,
    at: int | None,
    note: str,
    location: str | None,
    as_json: bool,
) -> None:
    """Make a version of a Parquet, Delta, Iceberg or Lance table."""
    from everloop.data.api import import_table

    with open_workspace(location) as workspace, using(workspace):
        made = import_table(folder, name, format=format_ or "", at=at, note=note)
    if as_json:
        return json_document(made)
    table(("version", "rows", "digest"), [(made.ref, made.rows, made.digest[:12])])
    return None


COMMANDS = (export, import_)
