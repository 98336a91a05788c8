"""The objects of directories in a merge: the catalog names their roots alone."""

from __future__ import annotations

from sqlalchemy import select

from everloop.catalog import tables
from everloop.catalog.transaction import Transaction
from everloop.data.trees import copy_tree
from everloop.errors import BackendError, NotFound
from everloop.ports.blobs import BlobStore
from everloop.transfer.report import Findings

__all__ = ["merge_trees"]


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
            found, news, size = copy_tree(row.root, source, target, walked)
        except (BackendError, NotFound) as error:
            if isinstance(error, BackendError) and "could not store" in error.message:
                raise  # this side failed: a full disk stops the merge
            missing.add(row.root)
            findings.fail("object", row.root, error.message)
        else:
            seen = walked
            findings.add("object", found=found, imported=news, there=found - news)
            findings.bytes += size
