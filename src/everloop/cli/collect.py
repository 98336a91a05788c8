"""``everloop gc``: purge what was deleted long ago, reclaim what nothing refers to."""

from __future__ import annotations

import click
import msgspec

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

    Versions of datasets go by the rules of ``everloop data keep``, each with its name or with the
    reason why it stays. Erasures that were broken off are finished.

    The window is EVERLOOP_UNDO, 30 days if nothing is said. What is purged cannot be restored.
    """
    with open_workspace(location) as workspace:
        if not dry_run:
            workspace.data.finish_erasures()
        expired = workspace.data.expire(dry_run=dry_run)
        done = workspace.objects.collect(older_than=older_than, grace=grace, dry_run=dry_run)
    if as_json:
        return json_document({**msgspec.to_builtins(done), "expired": expired.items})
    key_values(
        [
            *((kind.replace("_", " "), count) for kind, count in done.purged.items()),
            *([("dataset versions", len(expired.going))] if expired.items else []),
            ("objects", done.objects),
            ("bytes", done.size),
            ("half-written files", done.leftovers),
            ("their bytes", done.leftover_size),
        ]
    )
    for item in expired.items:
        kept = f"stays: {', '.join(item.stays)}" if item.stays else "goes by its rule of retention"
        say(f"{item.ref} of {item.created_at:%Y-%m-%d} {kept}")
    if done.kept:
        say(f"{done.kept} deleted runs or logged models stay: a version came from them")
    if done.young:
        say(f"{done.young} unreferenced objects are younger than {grace} and stay for now")
    if dry_run:
        say("nothing was changed")
