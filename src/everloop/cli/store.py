"""``everloop fsck`` and ``everloop backup``: the store as a whole."""

from __future__ import annotations

import sys

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, key_values, say

__all__ = ["backup", "fsck"]


@click.command()
@click.option("--read-data", is_flag=True, help="Read every object and hold it against its name.")
@click.option("--repair", is_flag=True, help="Mend what can be mended; implies --read-data.")
@click.option("--from", "origin", metavar="FOLDER", help="A workspace or backup to take from.")
@common
def fsck(
    read_data: bool, repair: bool, origin: str | None, location: str | None, as_json: bool
) -> None:
    """Hold the store against the catalog; names what is damaged and what it is a part of.

    Exit code 1 if something that is named is damaged and was not repaired.
    """
    with open_workspace(location) as workspace:
        found = workspace.fsck(read_data=read_data or repair, repair=repair, origin=origin)
    if as_json:
        json_document(found)
    else:
        key_values(
            [
                ("versions", found.versions),
                ("objects read", found.objects),
                ("bytes read", found.size),
                ("damaged", len(found.damaged)),
                ("repaired", sum(bool(bad.repaired) for bad in found.damaged)),
            ]
        )
        for pack in found.packs:
            say(pack)
        for bad in found.damaged:
            rows = f" ({bad.rows} rows)" if bad.rows else ""
            done = f"; repaired {bad.repaired}" if bad.repaired else ""
            for place in bad.places or ("nothing names it",):
                say(f"{place}{rows}: {bad.reason}{done}")
        for model in found.models:
            say(f"model {model} is hit, or came of data that is")
    if not found.is_good:
        sys.exit(1)


@click.command()
@click.argument("folder")
@common
def backup(folder: str, location: str | None, as_json: bool) -> None:
    """Copy the workspace to FOLDER while others write to it; again copies only what is new.

    FOLDER opens as a workspace: ``EVERLOOP_DIR=FOLDER everloop data list``. Exit code 1 if objects
    are missing or damaged here, and so are not in the backup; ``everloop fsck`` says which.
    """
    with open_workspace(location) as workspace:
        done = workspace.backup(folder)
    if as_json:
        json_document(done)
    else:
        key_values(
            [
                ("backup", done.place),
                ("objects", done.objects),
                ("copied", done.copied),
                ("bytes copied", done.copied_size),
                ("removed", done.removed),
            ]
        )
        for digest in done.missing:
            say(f"not in the backup, as it is missing or damaged here: {digest}")
    if done.missing:
        sys.exit(1)
