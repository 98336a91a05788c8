"""A commit: bytes first, without a lock; then one short transaction that names them.

The draft is made against the latest version that was seen. Where another commit came between, the
transaction gives up and the draft is brought up to date: of an append blocks are kept, and keys are
held against the new blocks alone; a replacement of a keyed table is made of the other commit and of
its own changes where both changed different rows, and refused where they did not.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pyarrow as pa

from everloop.catalog import datasets as statements
from everloop.catalog.edges import link, link_all
from everloop.catalog.transaction import Transaction
from everloop.core.context import current_actor
from everloop.core.dataset import Block, DatasetVersion, RowChangeSummary
from everloop.core.lineage import external_ref
from everloop.core.schema import Schema
from everloop.data.blocks import version_digest, write_blocks
from everloop.data.check_rules import ValuesOf
from everloop.data.checks import MOST_FAULTS, CheckReport, faulty, insist, row_faults
from everloop.data.evolve import schema_for
from everloop.data.keys import repeated
from everloop.data.ledger import Entry, entries_of, repairs_of
from everloop.data.quarantine import Aside, set_aside
from everloop.data.rebase import rebased
from everloop.data.repairs import mended
from everloop.data.replace import Plan, plan_whole, set_digest
from everloop.data.rowhash import Hashes, row_hashes
from everloop.data.rows import are_hashed, counting, hashed, store_hashes
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
        expect: int | None = None,
        values_of: ValuesOf | None = None,
        is_release: bool = False,
    ) -> None:
        self.name = name
        self.append = append
        self.expect = expect
        self.schema: Schema
        self.plan: Plan
        self.entries: list[Entry] = []
        self.dropped = 0
        self.aside: Aside | None = None
        self._values_of = values_of
        self._is_release = is_release
        self._blobs = blobs
        self._given = rows
        self._stated = stated
        self._kept: pa.Table
        self._hashes: Hashes | None = None
        self._written: list[tuple[Block, pa.Table]] = []
        self._report: CheckReport | None = None
        self._compared: set[str] = set()
        self._seen: list[DatasetVersion | None] = []

    def prepare(self, base: DatasetVersion | None, owner: str) -> None:
        """Check the rows and store their blocks, as far as that is not done yet.

        Raises:
            InvalidInput: With every fault.
            Conflict: If the version that the caller expects is not the latest, or another commit
                replaced meanwhile what this one would.
        """
        expected(self, base)
        schema = schema_for(self._given, self._stated, base, append=self.append)
        if self._report is None or schema != self.schema:
            self.schema = schema
            self._compared.clear()
            self._written, self._hashes = [], None
            self._report, changes = mended(self._given, schema, self._values_of)
            if self._is_release:  # who corrects a row must not see it leave again unseen
                left = [r for r in self._report.broken if r.on_fail in ("quarantine", "drop")]
                self._report = insist(self._report, left, "")
            self._report.raise_faults(self.name)
            self._kept = self._report.kept()
            self.entries = repairs_of(self._blobs, changes, owner)
            self.entries += entries_of(self._blobs, self._report, schema, owner)
            self.aside = set_aside(self._report, schema, owner)
            self.dropped = self._report.table.num_rows - self._kept.num_rows
        if self.append:
            self.plan = self._append(base)
        else:
            self._seen.append(base)
            self.plan = self._replace_keyed(base) if schema.key else self._replace(base)

    def _append(self, base: DatasetVersion | None) -> Plan:
        counted = counting(self._blobs, base) if base else []
        # With a key, a block that is there already can only be this very commit done again.
        there = {block.digest for block, mask in counted if mask is None and self.schema.key}
        fresh = [(block, rows) for block, rows in self._blocks() if block.digest not in there]
        if base is not None and self.schema.key:
            self._compare_keys(base, counted, fresh)
        added = [block for block, _ in fresh]
        objects = [(block.digest, block.size) for block in added]
        earlier, layout = (base.blocks, base.layout) if base else ((), "")
        count = (base.rows if base else 0) + sum(block.rows for block in added)
        if base is None or not (are_hashed(base) and self.schema.key):
            blocks = (*earlier, *added)
            digest = version_digest(self.schema, blocks, layout)
            return Plan(blocks, layout, digest, count, objects, is_same=False)
        known = hashed(self._blobs, base)
        every = [known.hashes]
        for n, (block, rows) in enumerate(fresh):
            every.append(row_hashes(rows))
            kept, size = store_hashes(self._blobs, every[-1])
            added[n] = msgspec.structs.replace(block, hashes=kept)
            objects.append((kept, size))
        digest = set_digest(self.schema, count, Hashes.concat(every).total())
        blocks = (*known.blocks, *added)
        return Plan(blocks, layout, digest, count, objects + known.made, is_same=False)

    def _replace(self, base: DatasetVersion | None) -> Plan:
        blocks = tuple(block for block, _ in self._blocks())
        digest = version_digest(self.schema, blocks)
        self._refuse_race(base, is_same=base is not None and base.digest == digest)
        objects = [(block.digest, block.size) for block in blocks]
        return Plan(blocks, "", digest, self._kept.num_rows, objects, is_same=False)

    def _replace_keyed(self, base: DatasetVersion | None) -> Plan:
        if self._hashes is None:
            self._hashes = row_hashes(self._kept)
        first = self._seen[0]
        if base is not None and first is not None and first.number != base.number:
            merged = rebased(self._blobs, first, base, self.schema, self._kept, self._hashes)
            if merged is not None:
                return merged
        plan = plan_whole(self._blobs, base, self.schema, self._kept, self._hashes)
        self._refuse_race(base, is_same=plan.is_same)
        return plan

    def _refuse_race(self, base: DatasetVersion | None, *, is_same: bool) -> None:
        """Refuse to replace a version that was made while this commit was on its way."""
        first = self._seen[0]
        if base is None or is_same or (first is not None and first.number == base.number):
            return
        at = f"{base.created_at:%Y-%m-%d %H:%M:%S} UTC"
        raise Conflict(
            f"{base.ref} by {base.author}, {at}, came while {self.name} was being replaced",
            hint="read the latest version, then commit again",
            details={"winner": base.number},
        )

    def _blocks(self) -> list[tuple[Block, pa.Table]]:
        if not self._written:
            self._written = list(write_blocks(self._blobs, self._kept))
        return self._written

    def _compare_keys(
        self,
        base: DatasetVersion,
        counted: list[tuple[Block, np.ndarray | None]],
        fresh: list[tuple[Block, pa.Table]],
    ) -> None:
        news = [part for part in counted if part[0].digest not in self._compared]
        if fresh and news:
            rows = pa.concat_tables([rows for _, rows in fresh])
            found = repeated(self._blobs, news, rows, self.schema.key)
            if found.size:
                raise self._repeats(base, rows.take(pa.array(found)))
        self._compared.update(block.digest for block, _ in news)

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
    plan = draft.plan
    is_same = plan.is_same and base is not None and base.schema == draft.schema
    if base is not None and (is_same or base.digest == plan.digest):
        _record(tx, draft, base, again=True)
        _link_sources(tx, base, sources)
        return base
    version = DatasetVersion(
        dataset=draft.name,
        number=base.number + 1 if base else 1,
        digest=plan.digest,
        schema=draft.schema,
        blocks=plan.blocks,
        rows=plan.rows,
        layout=plan.layout,
        parent=base.number if base else 0,
        run_id=run_id,
        author=current_actor() or tx.actor,
        note=note,
        dropped=draft.dropped,
        created_at=tx.now,
    )
    statements.add_objects(tx, plan.objects)
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
