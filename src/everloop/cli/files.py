"""``everloop data add``, ``status``, ``checkout`` and ``ls``: files."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, say, table
from everloop.core.dataset import MAIN, FileChange

if TYPE_CHECKING:
    from everloop.workspace import Workspace

__all__ = ["COMMANDS", "tell_difference"]


@click.command()
@click.argument("path", type=click.Path(exists=True))
@click.option("--name", required=True, help="Of the dataset; made if there is none.")
@click.option("--note", default="", help="For people.")
@click.option("--owner", default="", help="Who answers for it.")
@click.option("--branch", default=MAIN, help="The line to add to.")
@common
def add(
    path: str, name: str, note: str, owner: str, branch: str, location: str | None, as_json: bool
) -> None:
    """Make a version of a directory or a file; what did not change is not read."""
    from everloop.data.files import add as add_files

    with open_workspace(location) as workspace:
        made = add_files(workspace, name, path, note=note, owner=owner, branch=branch)
    if as_json:
        return json_document(made)
    table(
        ("version", "files", "bytes", "digest"),
        [(made.ref, made.files, made.size, made.digest[:12])],
    )


@click.command()
@click.argument("path", type=click.Path(exists=True))
@click.argument("version", metavar="NAME[@VERSION]")
@common
def status(path: str, version: str, location: str | None, as_json: bool) -> None:
    """What a directory or file has that a version has not, and the reverse; 1 if they differ."""
    from everloop.data.files import status as status_of

    with open_workspace(location) as workspace:
        found = status_of(workspace, path, *_ref(workspace, version))
    _tell(found, as_json=as_json)
    if found:
        sys.exit(1)


@click.command()
@click.argument("version", metavar="NAME[@VERSION]")
@click.argument("to", type=click.Path(file_okay=False))
@click.option("--force", is_flag=True, help="Replace local changes that no version has.")
@common
def checkout(version: str, to: str, force: bool, location: str | None, as_json: bool) -> None:
    """Make a directory the files of a version; writes only what differs."""
    from everloop.data.files import checkout as check_out

    with open_workspace(location) as workspace:
        done = check_out(workspace, *_ref(workspace, version), to, force=force)
    if as_json:
        return json_document(done._asdict())
    table(("written", "removed", "left"), [(done.written, done.removed, len(done.left))])
    for path in done.left:
        say(f"{path}: in no version, left as it is")


def tell_difference(workspace: Workspace, name: str, old: int, new: int, *, as_json: bool) -> None:
    """Print the paths at which two versions of a directory differ."""
    from everloop.data.files import difference

    _tell(difference(workspace, name, old, new), as_json=as_json)


@click.command("ls")
@click.argument("version", metavar="NAME[@VERSION]")
@click.argument("folder", default="")
@common
def list_(version: str, folder: str, location: str | None, as_json: bool) -> None:
    """What a version has in one of its directories."""
    from everloop.data.files import files_of

    with open_workspace(location) as workspace:
        found = files_of(workspace, *_ref(workspace, version)).folder(folder)
    if as_json:
        return json_document([{"path": p, "kind": k, "size": s} for p, k, s in _shown(found)])
    table(("path", "kind", "bytes"), _shown(found))


COMMANDS = (add, status, checkout, list_)


def _ref(workspace: Workspace, text: str) -> tuple[str, int]:
    """Dataset and number of what was written: ``photos``, ``photos@2``, a tag or a time."""
    found = workspace.data.find(text)
    return found.dataset, found.number


def _tell(found: list[FileChange], *, as_json: bool) -> None:
    # A name may hold bytes that are no text.
    shown = [FileChange(_text(c.path), c.what, c.old_size, c.new_size) for c in found]
    if as_json:
        return json_document(shown)
    table(
        ("path", "change", "bytes before", "bytes now"),
        [(c.path, c.what, c.old_size, c.new_size) for c in shown],
    )


def _shown(found: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    return [(_text(path), kind, size) for path, kind, size in found]


def _text(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
