"""A commit: bytes first, without a lock; then one short transaction that names them.

The draft is made against the latest version that was seen. Where another commit came between, the
transaction gives up and the draft is brought up to date: blocks are kept, and keys are held
against the new blocks alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from everloop.catalog import datasets as statements
from everloop.catalog.engine import Transaction
from everloop.catalog.lineage import link, link_all
from everloop.core.context import current_actor
from everloop.core.dataset import Block, DatasetVersion, RowChangeSummary
from everloop.core.lineage import external_ref
from everloop.core.schema import Schema
from everloop.data.blocks import version_digest, write_blocks
from everloop.data.checks import MOST_FAULTS, CheckReport, check, faulty, row_faults
from everloop.data.evolve import schema_for
from everloop.data.keys import repeated
from everloop.data.ledger import Entry, entries_of
from everloop.errors import Conflict
from everloop.ports.blobs import BlobStore

__all__ = ["Draft", "publish"]


class Draft:
    """Rows on their way to a version."""

    def __init__(
        self,
        blobs: BlobStore,
        name: str,
        rows: pa.Table,
        stated: Schema | None,
        *,
        append: bool,
        expect: int | None,
    ) -> None:
        self.name = name
        self.append = append
        self.expect = expect
        self.schema: Schema
        self.entries: list[Entry] = []
        self.dropped = 0
        self._blobs = blobs
        self._given = rows
        self._stated = stated
        self._written: list[tuple[Block, pa.Table]] = []
        self._report: CheckReport | None = None
        self._compared: set[str] = set()

    def prepare(self, base: DatasetVersion | None, owner: str) -> None:
        """Check the rows and store their blocks, as far as that is not done yet.

        Raises:
            InvalidInput: With every fault.
            Conflict: If the version that the caller expects is not the latest.
        """
        expected(self, base)
        schema = schema_for(self._given, self._stated, base, append=self.append)
        if self._report is None or schema != self.schema:
            self.schema = schema
            self._compared.clear()
            self._report = check(self._given, schema)
            self._report.raise_faults(self.name)
            kept = self._report.kept()
            self._written = list(write_blocks(self._blobs, kept))
            self.entries = entries_of(self._blobs, self._report, schema, owner)
            self.dropped = self._report.table.num_rows - kept.num_rows
        if self.append and base is not None and schema.key:
            self._compare_keys(base)

    def blocks(self, base: DatasetVersion | None) -> tuple[Block, ...]:
        """The blocks of the version that follows `base`."""
        earlier = base.blocks if base is not None and self.append else ()
        return (*earlier, *(block for block, _ in self._fresh(earlier)))

    def objects(self) -> list[tuple[str, int]]:
        """The blocks that the draft stored: digest and bytes."""
        return [(block.digest, block.size) for block, _ in self._written]

    def _fresh(self, earlier: tuple[Block, ...]) -> list[tuple[Block, pa.Table]]:
        # With a key, a block that is there already can only be this very commit done again.
        known = {block.digest for block in earlier} if self.schema.key else set()
        return [(block, rows) for block, rows in self._written if block.digest not in known]

    def _compare_keys(self, base: DatasetVersion) -> None:
        fresh = self._fresh(base.blocks)
        news = [block for block in base.blocks if block.digest not in self._compared]
        if fresh and news:
            rows = pa.concat_tables([rows for _, rows in fresh])
            found = repeated(self._blobs, news, rows, self.schema.key)
            if found.size:
                raise self._repeats(base, rows.take(pa.array(found)))
        self._compared.update(block.digest for block in news)

    def _repeats(self, base: DatasetVersion, rows: pa.Table) -> Exception:
        # Rows of a block are numbered after drops; people count in the frame that they gave.
        assert self._report is not None
        keys = list(self.schema.key)
        given = self._report.table.select(keys)
        wanted = {tuple(row.values()) for row in rows.select(keys).to_pylist()}
        numbers = [n for n, row in enumerate(given.to_pylist()) if tuple(row.values()) in wanted]
        message = f"the key ({', '.join(keys)}) stands in {base.ref} already"
        faults = row_faults(np.array(numbers[:MOST_FAULTS]), "", message)
        return faulty(self.name, faults, {"key.unique": len(numbers)})


def expected(draft: Draft, latest: DatasetVersion | None) -> None:
    """Hold the latest version against what the caller expects.

    Raises:
        Conflict: If it is another.
    """
    number = latest.number if latest else 0
    if draft.expect is None or draft.expect == number:
        return
    there = "there is none yet"
    if latest is not None:
        at = f"{latest.created_at:%Y-%m-%d %H:%M:%S} UTC"
        there = f"the latest is {latest.ref} by {latest.author}, {at}"
    raise Conflict(
        f"{draft.name} was expected at version {draft.expect}; {there}",
        hint="read the latest version, then commit again",
        details={"winner": number},
    )


def publish(
    tx: Transaction,
    draft: Draft,
    base: DatasetVersion | None,
    *,
    owner: str,
    note: str,
    run_id: str,
    sources: Sequence[str] = (),
) -> DatasetVersion | None:
    """Name the draft's blocks in the catalog; None if `base` is no longer the latest version."""
    latest = statements.find_version(tx, draft.name)
    expected(draft, latest)
    if (latest.number if latest else 0) != (base.number if base else 0):
        return None
    blocks = draft.blocks(base)
    digest = version_digest(draft.schema, blocks)
    if base is not None and base.digest == digest:
        _record(tx, draft, base, again=True)
        _link_sources(tx, base, sources)
        return base
    version = DatasetVersion(
        dataset=draft.name,
        number=base.number + 1 if base else 1,
        digest=digest,
        schema=draft.schema,
        blocks=blocks,
        rows=sum(block.rows for block in blocks),
        parent=base.number if base else 0,
        run_id=run_id,
        author=current_actor() or tx.actor,
        note=note,
        dropped=draft.dropped,
        created_at=tx.now,
    )
    statements.add_objects(tx, draft.objects())
    statements.add_version(tx, version, owner)
    _record(tx, draft, version, again=False)
    _link_sources(tx, version, sources)
    _tell(tx, draft, version, base)
    return version


def _link_sources(tx: Transaction, version: DatasetVersion, sources: Sequence[str]) -> None:
    refs = [external_ref(source) for source in sources]
    link_all(tx, refs, f"dataset:{version.ref}", "read")


def _record(tx: Transaction, draft: Draft, version: DatasetVersion, *, again: bool) -> None:
    for entry in draft.entries:
        change = RowChangeSummary(
            scope=f"dataset:{version.ref}",
            dataset=draft.name,
            rule=entry.rule,
            action=entry.action,
            reason=entry.reason,
            owner=entry.owner,
            rows=entry.block.rows,
            detail=entry.block.digest,
            at=tx.now,
        )
        # A commit that made no version may have been done before, with the same rows left out.
        if not (again and statements.has_change(tx, change)):
            statements.add_objects(tx, [(entry.block.digest, entry.block.size)])
            statements.add_change(tx, change)


def _tell(
    tx: Transaction, draft: Draft, version: DatasetVersion, base: DatasetVersion | None
) -> None:
    subject = f"dataset:{version.ref}"
    if base is not None:
        link(tx, f"dataset:{base.ref}", subject, "parent" if draft.append else "replaced")
    if version.run_id:
        link(tx, f"run:{version.run_id}", subject, "produced")
    body = {
        "dataset": version.dataset,
        "number": version.number,
        "rows": version.rows,
        "added": version.rows - (base.rows if base and draft.append else 0),
        "dropped": version.dropped,
        "mode": "append" if draft.append else "replace",
        "run_id": version.run_id,
        "digest": version.digest,
    }
    tx.append("dataset.VersionCommitted", subject, body)
