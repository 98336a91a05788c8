"""The objects of directories in a merge: the catalog names their roots alone."""

from __future__ import annotations

import itertools

from sqlalchemy import select

from everloop.catalog import tables
from everloop.catalog.engine import Transaction
from everloop.data.trees import reachable
from everloop.errors import BackendError, NotFound
from everloop.ports.blobs import BlobStore
from everloop.transfer.report import Findings

__all__ = ["merge_trees"]

#: Objects that are read at once, of at most 4 MB each; bytes that are put at once, about.
_AT_ONCE, _BYTES = 32, 32 << 20


def merge_trees(
    there: Transaction,
    source: BlobStore,
    target: BlobStore,
    missing: set[str],
    findings: Findings,
) -> None:
    """Copy what versions of directories and files are made of; what is here is not read.

    Args:
        there: The other catalog.
        source: Its objects.
        target: The objects here.
        missing: Takes the roots that could not be copied as a whole.
        findings: What happened.
    """
    table = tables.dataset_versions
    query = select(table.c.root).where(table.c.root != "").distinct().order_by(table.c.root)
    seen: set[str] = set()
    for row in there.all(query):
        walked = set(seen)  # of a directory that fails the parts are looked at again
        try:
            _copy(row.root, source, target, walked, findings)
        except (BackendError, NotFound) as error:
            if isinstance(error, BackendError) and "could not store" in error.message:
                raise  # this side failed: a full disk stops the merge
            missing.add(row.root)
            findings.fail("object", row.root, error.message)
        else:
            seen = walked


def _copy(
    root: str, source: BlobStore, target: BlobStore, seen: set[str], findings: Findings
) -> None:
    waiting: list[bytes] = []
    size = 0
    found = iter(reachable(source.get_many, root, seen))
    while some := list(dict.fromkeys(itertools.islice(found, _AT_ONCE))):
        lacking = target.keep_many(some)
        data = source.get_many(lacking)
        waiting += data
        size += sum(map(len, data))
        findings.add("object", found=len(some), imported=len(lacking))
        findings.add("object", there=len(some) - len(lacking))
        if size >= _BYTES:
            target.put_many(waiting)
            findings.bytes += size
            waiting, size = [], 0
    target.put_many(waiting)
    findings.bytes += size
