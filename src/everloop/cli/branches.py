"""``everloop data branch``, ``branches`` and ``merge``."""

from __future__ import annotations

import json
from typing import Literal

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, key_values, say, table
from everloop.core.dataset import MAIN, DatasetBranch

__all__ = ["COMMANDS"]


@click.command("branch")
@click.argument("name", metavar="NAME[@VERSION]")
@click.argument("branch")
@click.option("--note", default="", help="For people.")
@click.option("--off", is_flag=True, help="Forget the branch; its versions stay.")
@click.option("--expected", type=int, help="With --off: version that it must be at.")
@common
def branch_(
    name: str,
    branch: str,
    note: str,
    off: bool,
    expected: int | None,
    location: str | None,
    as_json: bool,
) -> None:
    """Begin a line of versions at NAME's latest version, or at NAME@3, NAME@TAG or NAME@TIME."""
    with open_workspace(location) as workspace:
        dataset, _, at = name.partition("@")
        if off:
            workspace.data.delete_branch(dataset, branch, expected=expected)
        else:
            workspace.data.branch(dataset, branch, at=at or None, note=note)
        found = workspace.data.branches(dataset)
    _show(found, as_json)


@click.command("branches")
@click.argument("name")
@common
def branches(name: str, location: str | None, as_json: bool) -> None:
    """The branches of a dataset beside the main line."""
    with open_workspace(location) as workspace:
        found = workspace.data.branches(name)
    _show(found, as_json)


@click.command("merge")
@click.argument("source", metavar="NAME@BRANCH")
@click.option("--into", default=MAIN, show_default=True, help="The line that gets the version.")
@click.option(
    "--strategy",
    type=click.Choice(["refuse", "ours", "theirs"]),
    default="refuse",
    show_default=True,
    help="What decides conflicts: nothing, the line that is merged into, or BRANCH.",
)
@click.option("--note", default="", help="For people.")
@common
def merge(
    source: str,
    into: str,
    strategy: Literal["refuse", "ours", "theirs"],
    note: str,
    location: str | None,
    as_json: bool,
) -> None:
    """Bring what a branch changed to the main line; conflicts are named, and exit with 6."""
    name, _, branch = source.partition("@")
    if not branch:
        raise click.UsageError(f"{source!r} is not NAME@BRANCH")
    with open_workspace(location) as workspace:
        done = workspace.data.merge(name, branch, into=into, strategy=strategy, note=note)
    if as_json:
        return json_document(done)
    key_values(
        [
            ("version", done.version.ref),
            ("merged", f"{name}@{done.theirs} into {name}@{done.ours}"),
            ("in common", f"{name}@{done.base}"),
            (f"conflicts, {strategy} taken", done.conflicted),
        ]
    )
    if done.conflicts:
        table(
            ("key", "column", "base", "ours", "theirs"),
            [
                (c.path or json.dumps(c.key), c.column, c.base, c.ours, c.theirs)
                for c in done.conflicts[:20]
            ],
        )
    if done.version.merged != done.theirs:
        say(f"{name}@{branch} has nothing that {into} lacks")
    return None


def _show(found: list[DatasetBranch], as_json: bool) -> None:
    if as_json:
        return json_document(found)
    table(
        ("branch", "version", "began at", "by", "at", "note"),
        [
            (b.branch, f"{b.dataset}@{b.number}", f"{b.dataset}@{b.base}", b.actor, b.updated_at,
             b.note)
            for b in found
        ],
    )  # fmt: skip


COMMANDS = (branch_, branches, merge)
