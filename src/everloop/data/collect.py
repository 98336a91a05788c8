"""Collection of garbage: purge what was deleted long ago, then remove objects that nothing names.

The order makes it safe beside any number of writers. A writer puts (or keeps) an object first and
names it in the catalog afterwards, within the grace period; both renew the object's age. So an
object that is old when it is removed, and was named nowhere in a state of the catalog read after
its age had passed the grace period, can be named by nobody any more.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import delete, select

from everloop.catalog import references, tables
from everloop.catalog.engine import Catalog
from everloop.catalog.erasures import strike_erased
from everloop.catalog.purge import purge
from everloop.catalog.transaction import Transaction
from everloop.core.collect import Collected
from everloop.data.backup import refuse_while_backed_up
from everloop.data.trees import reachable
from everloop.errors import NotFound, StateError
from everloop.ports.blobs import BlobStore, HasAges

__all__ = ["collect"]

# Rows of ``objects`` that one statement removes.
_AT_ONCE = 500


class _Undo(Exception):
    """Ends the transaction of a dry run, so that nothing of it stays."""


def collect(
    catalog: Catalog, blobs: BlobStore, *, before: datetime, grace_s: float, dry_run: bool
) -> Collected:
    """Purge what was deleted at or before `before`, and remove old objects that nothing names.

    Killed at any moment it leaves a catalog and a store that are right, and it can be run again.

    Args:
        before: End of the window in which a delete could be undone.
        grace_s: Objects put or kept within so many seconds stay.
        dry_run: Only count.

    Raises:
        StateError: If the store does not know the age of its objects, or a backup is being made.
        BackendError: If an object that names others is damaged; nothing is removed then.
        NotFound: If an object of a directory is missing; nothing is removed then, as what it named
            may still be wanted when it is restored.
    """
    if not isinstance(blobs, HasAges):
        raise StateError(
            "this object store cannot be collected: it does not know the age of objects"
        )
    with catalog.read() as tx:
        refuse_while_backed_up(tx)
    limit = time.time() - grace_s
    ages = list(blobs.ages())  # before the catalog is read; see above
    counts: dict[str, int] = {}
    kept = 0
    named: set[str] = set()
    try:
        with catalog.write() as tx:
            counts, kept = purge(tx, before)
            if dry_run:
                named = _named(tx, blobs)
                raise _Undo
            if counts:
                tx.append("workspace.Purged", "workspace", {"before": before, **counts})
    except _Undo:
        pass
    if not dry_run:
        with catalog.read() as tx:
            named = _named(tx, blobs)
    rubbish = [age for age in ages if age.digest not in named]
    old = [age for age in rubbish if age.put_at < limit]
    leftovers = (0, 0)
    if not dry_run:
        removed = set(blobs.remove_old_many([age.digest for age in old], limit))
        old = [age for age in old if age.digest in removed]
        leftovers = blobs.remove_leftovers(limit)
        _strike(catalog, blobs, named)
        with catalog.write() as tx:
            strike_erased(tx, catalog.clock.now() - timedelta(seconds=grace_s))
    return Collected(
        dry_run=dry_run,
        before=before,
        purged=counts,
        kept=kept,
        objects=len(old),
        size=sum(age.size for age in old),
        leftovers=leftovers[0],
        leftover_size=leftovers[1],
        young=len(rubbish) - len(old),
    )


def _named(tx: Transaction, blobs: BlobStore) -> set[str]:
    """Every digest that a row names, directly or through an object that names others."""
    found = references.find(tx)
    named = set(found.digests)
    for digest in found.opened:
        try:
            named.update(references.digests_in(blobs.get(digest)))
        except NotFound:
            continue  # what it named cannot be found by anybody any more
    seen: set[str] = set()
    for root in sorted(found.trees):
        named.update(reachable(blobs.get_many, root, seen))
    return named


def _strike(catalog: Catalog, blobs: HasAges, named: set[str]) -> None:
    """Strike objects off the list that are not in the store, also those of a killed collection."""
    objects = tables.objects
    with catalog.read() as tx:
        listed = {row.digest for row in tx.all(select(objects.c.digest))}
    for digests in _chunks(sorted(listed - named)):
        with catalog.write() as tx:
            gone = blobs.missing(digests)
            tx.execute(delete(objects).where(objects.c.digest.in_(gone)))


def _chunks(items: list[str]) -> Iterable[list[str]]:
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))
