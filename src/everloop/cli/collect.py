"""``everloop gc``: purge what was deleted long ago, reclaim what nothing refers to."""

from __future__ import annotations

import click

from everloop.cli.main import common, open_workspace
from everloop.cli.output import json_document, key_values, say

__all__ = ["gc"]


@click.command()
@click.option("--older-than", default="", metavar="30d", help="Purge what was deleted so long ago.")
@click.option("--grace", default="24h", help="Leave objects that were stored so lately.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@common
def gc(older_than: str, grace: str, dry_run: bool, location: str | None, as_json: bool) -> None:
    """Purge what was deleted before its window ended, and objects that nothing refers to.

    The window is EVERLOOP_UNDO, 30 days if nothing is said. What is purged cannot be restored.
    """
    with open_workspace(location) as workspace:
        if not dry_run:
            workspace.data.finish_erasures()
        done = workspace.objects.collect(older_than=older_than, grace=grace, dry_run=dry_run)
    if as_json:
        return json_document(done)
    key_values(
        [
            *((kind.replace("_", " "), count) for kind, count in done.purged.items()),
            ("objects", done.objects),
            ("bytes", done.size),
            ("half-written files", done.leftovers),
            ("their bytes", done.leftover_size),
        ]
    )
    if done.kept:
        say(f"{done.kept} deleted runs or logged models stay: a version came from them")
    if done.young:
        say(f"{done.young} unreferenced objects are younger than {grace} and stay for now")
    if dry_run:
        say("nothing was changed")
