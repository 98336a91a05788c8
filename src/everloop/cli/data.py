"""``everloop data``: datasets, versions, and what rules did to rows."""

from __future__ import annotations

import json

import click

from everloop.cli import (
    branches,
    data_tests,
    erase,
    files,
    interchange,
    ledger,
    quality,
    sources,
)
from everloop.cli.files import tell_difference
from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, key_values, table
from everloop.core.dataset import MAIN, DatasetTag, Value
from everloop.errors import InvalidInput

__all__ = ["data"]


@click.group()
def data() -> None:
    """Datasets, versions, dropped and changed rows; files; sources that rows are pulled from."""


for _command in (
    *files.COMMANDS,
    *sources.COMMANDS,
    *quality.COMMANDS,
    *ledger.COMMANDS,
    *data_tests.COMMANDS,
    *branches.COMMANDS,
    *interchange.COMMANDS,
    *erase.COMMANDS,
):
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
@click.argument("name", metavar="NAME[@BRANCH]")
@click.option("--all", "every", is_flag=True, help="The versions of all branches.")
@common
def log(name: str, every: bool, location: str | None, as_json: bool) -> None:
    """The versions of a dataset, newest first: of the main line, of a branch, or all."""
    name, _, branch = name.partition("@")
    with open_workspace(location) as workspace:
        line = None if every else branch or MAIN
        found = workspace.data.versions(name, branch=line)[::-1]
        tags = _by_version(workspace.data.tags(name))
    if as_json:
        return json_document(found)
    is_table = found[0].kind == "table"
    table(
        ("version", "branch", "parents", "tags",
         "rows" if is_table else "files", "dropped" if is_table else "bytes",
         "author", "run", "created", "digest", "note"),
        [
            (v.ref, v.branch, ", ".join(str(n) for n in (v.parent, v.merged) if n),
             tags.get(v.number, ""),
             *((v.rows, v.dropped) if is_table else (v.files, v.size)),
             v.author, v.run_id, v.created_at,
             v.digest[:12] + (" (rows erased)" if v.content else ""), v.note)
            for v in found
        ],
    )  # fmt: skip


def _by_version(tags: list[DatasetTag]) -> dict[int, str]:
    found: dict[int, str] = {}
    for tag in tags:
        found[tag.number] = ", ".join(filter(None, (found.get(tag.number), tag.tag)))
    return found


@data.command("show")
@click.argument("name")
@click.option("--version", type=int, default=None, help="Version number; the latest if not given.")
@common
def show(name: str, version: int | None, location: str | None, as_json: bool) -> None:
    """One version: of a table its schema and blocks, else its files.

    NAME may be NAME@2, NAME@TAG, NAME@BRANCH or NAME@TIME.
    """
    with open_workspace(location) as workspace:
        if version is None:
            found = workspace.data.find(name)
        else:
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
            *([("rows erased, content now", found.content)] if found.content else []),
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


@data.command("tag")
@click.argument("version", metavar="NAME@VERSION")
@click.argument("tag")
@click.option("--expected", type=int, help="Version that TAG must name now; 0 for none.")
@click.option("--reason", default="", help="Why; kept with the event.")
@click.option("--off", is_flag=True, help="Remove the tag, if it names this version.")
@common
def tag(
    version: str,
    tag: str,
    expected: int | None,
    reason: str,
    off: bool,
    location: str | None,
    as_json: bool,
) -> None:
    """Give a version a name, or move a name to it."""
    with open_workspace(location) as workspace:
        found = workspace.data.find(version)
        if off:
            workspace.data.untag(found.dataset, tag, expected=found.number, reason=reason)
        else:
            workspace.data.tag(found.dataset, tag, found.number, expected=expected, reason=reason)
        tags = workspace.data.tags(found.dataset)
    _show_tags(tags, as_json)


@data.command("tags")
@click.argument("name")
@common
def tags(name: str, location: str | None, as_json: bool) -> None:
    """The tags of a dataset."""
    with open_workspace(location) as workspace:
        found = workspace.data.tags(name)
    _show_tags(found, as_json)


def _show_tags(found: list[DatasetTag], as_json: bool) -> None:
    if as_json:
        return json_document(found)
    table(
        ("tag", "version", "by", "at", "reason"),
        [(t.tag, f"{t.dataset}@{t.number}", t.actor, t.updated_at, t.reason) for t in found],
    )


@data.command("diff")
@click.argument("old", metavar="NAME@OLD")
@click.argument("new", metavar="NAME@NEW")
@click.option("--rows", default=10, show_default=True, help="Most rows of each kind to show.")
@common
def diff(old: str, new: str, rows: int, location: str | None, as_json: bool) -> None:
    """What was added, removed and changed from one version to another: rows, or files."""
    with open_workspace(location) as workspace:
        before, after = workspace.data.find(old), workspace.data.find(new)
        if before.dataset != after.dataset:
            raise InvalidInput(f"{old} and {new} are versions of two datasets")
        if after.kind != "table":
            return tell_difference(
                workspace, after.dataset, before.number, after.number, as_json=as_json
            )
        found = workspace.data.diff(before.dataset, before.number, after.number, rows=rows)
    if as_json:
        return json_document(found)
    columns = found.columns
    key_values(
        [
            ("from", found.old),
            ("to", found.new),
            ("rows added", found.added),
            ("rows removed", found.removed),
            ("rows changed", found.changed),
            *(("column added", name) for name in columns.added),
            *(("column removed", name) for name in columns.removed),
            *(("column type", f"{n}: {a} -> {b}") for n, (a, b) in columns.retyped.items()),
            *(("column rules", name) for name in columns.rules),
        ]
    )
    if found.rows:
        cells = [
            (r.kind, _cell(r.key), _cell(_beside(r.old, r.key)), _cell(_beside(r.new, r.key)))
            for r in found.rows
        ]
        table(("row", "key", "old", "new"), cells)


def _beside(row: dict[str, Value], key: dict[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in row.items() if name not in key}


def _cell(row: dict[str, Value]) -> str:
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in row.items())
