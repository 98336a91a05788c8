"""A commit: bytes first, without a lock; then one short transaction that names them.

The draft is made against the latest version that was seen. Where another commit came between, the
transaction gives up and the draft is brought up to date: of an append blocks are kept, and keys are
held against the new blocks alone; a replacement of a keyed table is made of the other commit and of
its own changes where both changed different rows, and refused where they did not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
import numpy as np
import pyarrow as pa

from everloop.catalog import datasets as statements
from everloop.catalog import ledger
from everloop.catalog.edges import link_all
from everloop.catalog.engine import Catalog
from everloop.catalog.erasures import lift
from everloop.catalog.transaction import Transaction
from everloop.core.context import current_actor
from everloop.core.dataset import MAIN, Block, DatasetVersion, RowChangeSummary
from everloop.core.lineage import external_ref
from everloop.core.schema import Schema
from everloop.data.blocks import version_digest, write_blocks
from everloop.data.check_rules import ValuesOf
from everloop.data.checks import (
    MOST_FAULTS,
    CheckReport,
    faulty,
    insist,
    row_faults,
)
from everloop.data.context_rules import broken_in_context, still_broken, without_context
from everloop.data.evolve import schema_for
from everloop.data.keys import repeated
from everloop.data.layout import covered
from everloop.data.ledger import Entry, entries_of, repairs_of
from everloop.data.quarantine import SUFFIX, Aside, set_aside
from everloop.data.rebase import rebased
from everloop.data.repairs import mended
from everloop.data.replace import Plan, plan_whole, set_digest
from everloop.data.rowhash import Hashes, row_hashes
from everloop.data.rows import are_hashed, counting, hashed, store_hashes
from everloop.data.tail import Together, put_together
from everloop.data.terms import keep_tags
from everloop.data.upsert import plan_upsert, without_known
from everloop.data.versions import (
    base_of,
    link_before,
    refuse_kind,
    refuse_other,
    tell_committed,
)
from everloop.data.work import SUFFIX as WORK
from everloop.data.work import Beside, Closing, Commit, follow
from everloop.errors import Conflict, InvalidInput, NotFound
from everloop.ports.blobs import BlobStore

__all__ = [
    "Draft",
    "LostRace",
    "Mode",
    "Prepared",
    "Since",
    "Told",
    "beside_of",
    "publish",
    "publish_last",
    "unless_erased",
]

#: How rows come to a dataset: behind those that are there, in the place of those of equal key, or
#: in the place of all.
Mode = Literal["append", "upsert", "replace"]

# Each lost race means that another commit succeeded, so this is never reached in earnest.
_RACES = 1000


class LostRace(Exception):
    """Another commit came between; what this transaction did is taken back."""


class Since(NamedTuple):
    """From where on rows are held against those that are there: a column and its value.

    Without a column they are held against all.
    """

    column: str = ""
    value: Any = None


class Draft:
    """Rows on their way to a version."""

    def __init__(
        self,
        blobs: BlobStore,
        name: str,
        rows: pa.Table,
        stated: Schema | None,
        *,
        mode: Mode,
        expect: int | None = None,
        branch: str = MAIN,
        keep_last: bool = False,
        since: Since | None = None,
        values_of: ValuesOf | None = None,
        must: Mapping[str, np.ndarray] | None = None,
        closing: Closing | None = None,
    ) -> None:
        self.name = name
        self.branch = branch
        self.mode: Mode = mode
        self.expect = expect
        self.schema: Schema
        self.plan: Plan
        self.entries: list[Entry] = []
        self.dropped = 0
        self.aside: Aside | None = None
        self._values_of = values_of
        self._must = must
        self._closing = closing or Closing()
        self._told: list[Entry] = []
        self._base: DatasetVersion | None = None
        self._blobs = blobs
        self._given = rows
        self._stated = stated
        self._keep_last = keep_last
        self._since = since
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
        refuse_other(self.name, base, self.expect)
        self._base = base
        schema = schema_for(self._given, self._stated, base, append=self.mode != "replace")
        if self._report is None or schema != self.schema:
            self.schema = schema
            self._compared.clear()
            self._written, self._hashes = [], None
            rules = schema if self._must is None else without_context(schema)
            self._report, changes = mended(
                self._given, rules, self._values_of, keep_last=self._keep_last
            )
            if self._must is not None:
                self._report = self._judged_in_place(self._report, base)
            self._report.raise_faults(self.name)
            self._kept = self._report.kept()
            self._told = repairs_of(self._blobs, changes, owner)
            self._told += entries_of(self._blobs, self._report, schema, owner)
            self.entries = self._told
            self.aside = set_aside(self._report, schema, owner)
            self.dropped = self._report.table.num_rows - self._kept.num_rows
        if self.mode == "append":
            self.plan = self._append(base)
        elif self.mode == "upsert" and base is not None and base.rows:
            self.plan = self._upsert(base)
        else:
            self._seen.append(base)
            self.plan = self._replace_keyed(base) if schema.key else self._replace(base)

    def _judged_in_place(self, report: CheckReport, base: DatasetVersion | None) -> CheckReport:
        """The report on corrected rows, which must not leave again unseen."""
        assert self._must is not None
        rules = [rule for rule in report.broken if rule.on_fail != "fail"]  # those are faults
        rules += broken_in_context(self._blobs, base, self.schema, report.table, self._values_of)
        left = still_broken(rules, self._must)
        return insist(report, left, "") if left else report

    def drafted_beside(
        self, beside: Beside, catalog: Catalog, owner: str
    ) -> list[tuple[Draft, DatasetVersion | None]]:
        """The next versions of the quarantine and of the work list, where they change.

        Raises:
            Conflict: If an item that is to be closed is not open.
        """
        assert self._report is not None
        if self.branch != MAIN:  # what is wrong on a branch is nobody's work before it is merged
            beside = beside._replace(work=None)
        commit = Commit(
            schema=self.schema,
            rows=self._kept if self.branch == MAIN else self._kept.slice(0, 0),
            report=self._report if self.branch == MAIN else self._report._replace(broken=[]),
            aside=self.aside,
            whole=self.mode == "replace" and self.branch == MAIN,
            base=self._base,
            owner=owner,
            by=current_actor() or catalog.actor,
            now=catalog.clock.now(),
        )
        followed = follow(self._blobs, commit, beside, self._closing)
        self.entries = [*self._told, *followed.closed]
        made = []
        both = ((SUFFIX, followed.waiting, beside.waiting), (WORK, followed.work, beside.work))
        for end, after, before in both:
            if after is not None:
                draft = Draft(self._blobs, self.name + end, *after, mode="replace")
                draft.prepare(before, owner)
                made.append((draft, before))
        return made

    @property
    def first(self) -> DatasetVersion | None:
        """The version that a replacement was first held against."""
        return self._seen[0] if self._seen else None

    def exists(self, digest: str) -> bool:
        """Whether an object is in the store."""
        return self._blobs.exists(digest)

    def forget(self) -> None:
        """Store everything again with the next ``prepare``: some of it was erased meanwhile."""
        self._report, self._written, self._hashes = None, [], None

    def _append(self, base: DatasetVersion | None) -> Plan:
        counted = counting(self._blobs, base) if base else []
        # With a key, a block that is there already can only be this very commit done again.
        there = {block.digest for block, mask in counted if mask is None and self.schema.key}
        given = self._blocks() if self._since is None or base is None else self._news(base)
        fresh = [(block, rows) for block, rows in given if block.digest not in there]
        if base is not None and self.schema.key and self._is_known(base, counted, fresh):
            fresh = []
        added = [block for block, _ in fresh]
        objects = [(block.digest, block.size) for block in added]
        earlier, layout = (base.blocks, base.layout) if base else ((), "")
        count = (base.rows if base else 0) + sum(block.rows for block in added)
        if base is None or not (are_hashed(base) and self.schema.key):
            blocks = (*earlier, *added)
            if added and base is not None:
                blocks, more = self._fewer(base, blocks, hashed=False)
                objects += more
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
        if added:
            blocks, more = self._fewer(base, blocks, hashed=True)
            objects += more
        return Plan(blocks, layout, digest, count, objects + known.made, is_same=False)

    def _fewer(self, base: DatasetVersion, blocks: tuple[Block, ...], *, hashed: bool) -> Together:
        fixed = covered(self._blobs, base)
        return put_together(self._blobs, self.schema, blocks, fixed, hashed=hashed)

    def _news(self, base: DatasetVersion) -> list[tuple[Block, pa.Table]]:
        """The rows that the version before has not, stored."""
        assert self._since is not None
        news = without_known(self._blobs, base, self._kept, self.schema, *self._since)
        return list(write_blocks(self._blobs, news))

    def _upsert(self, base: DatasetVersion) -> Plan:
        if not self.schema.key:
            raise InvalidInput(f"{self.name} has no key to update rows by")
        if self._hashes is None:
            self._hashes = row_hashes(self._kept)
        return plan_upsert(self._blobs, base, self.schema, self._kept, self._hashes)

    def _replace(self, base: DatasetVersion | None) -> Plan:
        blocks = tuple(block for block, _ in self._blocks())
        digest = version_digest(self.schema, blocks)
        self._refuse_race(base, is_same=base is not None and base.holds == digest)
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

    def _is_known(
        self,
        base: DatasetVersion,
        counted: list[tuple[Block, np.ndarray | None]],
        fresh: list[tuple[Block, pa.Table]],
    ) -> bool:
        """Whether all of the rows are there already, as they are: this commit done again.

        Raises:
            InvalidInput: If the keys of some stand in `base` already.
        """
        news = [part for part in counted if part[0].digest not in self._compared]
        if fresh and news:
            rows = pa.concat_tables([rows for _, rows in fresh])
            found = repeated(self._blobs, news, rows, self.schema.key)
            if found.size:
                # Blocks are put together after a while, so that rows tell what they were.
                if len(found) == rows.num_rows and not without_known(
                    self._blobs, base, rows, self.schema
                ):
                    return True
                raise self._repeats(base, rows.take(pa.array(found)))
        self._compared.update(block.digest for block, _ in news)
        return False

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


class Prepared(Protocol):
    """A version on its way, as far as the catalog needs to know it."""

    name: str
    branch: str
    mode: Mode
    expect: int | None
    schema: Schema
    plan: Plan
    entries: list[Entry]
    dropped: int

    @property
    def first(self) -> DatasetVersion | None:
        """The version that a replacement was first held against; None if it never was."""
        ...

    def exists(self, digest: str) -> bool:
        """Whether an object is in the store."""
        ...

    def forget(self) -> None:
        """Store everything again the next time: some of it was erased meanwhile."""
        ...


class Told(NamedTuple):
    """What the caller says of a version, beside its rows."""

    owner: str = ""
    note: str = ""
    run_id: str = ""
    sources: Sequence[str] = ()


def publish_last(
    catalog: Catalog,
    draft: Draft,
    told: Told,
    then: Callable[[Transaction, DatasetVersion, DatasetVersion | None], None] | None = None,
) -> DatasetVersion:
    """Make the draft the version after the latest one, however many commit meanwhile.

    Args:
        then: Does its part in the transaction that names the version; told that and the one before.

    Raises:
        InvalidInput: With every fault of the rows.
        Conflict: If the draft's own terms are not met.
    """
    for _ in range(_RACES):
        with catalog.read() as tx:
            base = base_of(tx, draft.name, draft.branch)
            beside, owner = beside_of(tx, draft.name, told.owner)
            refuse_erased(tx, draft)
        refuse_kind(draft.name, base, "table")
        try:
            draft.prepare(base, owner)
            lying = draft.drafted_beside(beside, catalog, owner)
        except NotFound as error:  # an object of `base` was erased in the middle of it
            unless_erased(catalog, base, error)
            continue
        try:
            with catalog.write() as tx:
                version = publish(tx, draft, base, **told._asdict())
                for one, before in lying if version is not None else ():
                    assert version is not None
                    note = f"after the commit of {version.ref}"
                    if not publish(tx, one, before, owner=owner, note=note, run_id=told.run_id):
                        raise LostRace
                if version is not None:
                    _tell_closed(tx, draft, version)
                if version is not None and then is not None:
                    then(tx, version, base)
        except LostRace:
            continue
        if version is not None:
            return version
    raise Conflict(f"others commit to {draft.name} all the time", hint="commit again")


def beside_of(tx: Transaction, name: str, owner: str) -> tuple[Beside, str]:
    """What lies beside a dataset, and who answers for it: `owner` if that says somebody."""
    found = ledger.beside(tx, name, name + SUFFIX, name + WORK)
    who = owner or found.owner
    return Beside(found.found.get(name + SUFFIX), found.found.get(name + WORK), who), who


def _tell_closed(tx: Transaction, draft: Draft, version: DatasetVersion) -> None:
    closed = [entry for entry in draft.entries if entry.action == "fixed"]
    if closed:
        body = {
            "dataset": version.dataset,
            "rows": sum(entry.block.rows for entry in closed),
            "rules": sorted({entry.rule for entry in closed}),
        }
        tx.append("dataset.WorkClosed", f"dataset:{version.ref}", body)


def unless_erased(
    catalog: Catalog, version: DatasetVersion | None, error: NotFound
) -> DatasetVersion:
    """The version as it is now, if rows were erased since it was looked up; else the error."""
    if version is None:
        raise error
    with catalog.read() as tx:
        now = statements.find_version(tx, version.dataset, version.number)
    if now is None or now.holds == version.holds:
        raise error
    return now


def publish(
    tx: Transaction,
    draft: Prepared,
    base: DatasetVersion | None,
    *,
    owner: str,
    note: str,
    run_id: str,
    sources: Sequence[str] = (),
    merged: int = 0,
) -> DatasetVersion | None:
    """Name the draft's blocks in the catalog; None if `base` is no longer the latest version.

    Args:
        merged: Head of another line that went into the draft: equal content makes a version, too.
    """
    latest = statements.find_version(tx, draft.name, branch=draft.branch)
    refuse_other(draft.name, latest, draft.expect)
    if (latest.number if latest else 0) != (base.number if base else 0):
        return None
    refuse_erased(tx, draft)
    plan = draft.plan
    if latest is not None and base is not None and latest.holds != base.holds:
        return None  # rows were erased from it: what is kept of it is another object now
    if lift(tx, [digest for digest, _ in _objects(draft)], draft.exists):
        draft.forget()
        return None
    is_same = plan.is_same and base is not None and base.schema == draft.schema
    if base is not None and not merged and (is_same or base.holds == plan.digest):
        _record(tx, draft, base, again=True)
        _link_sources(tx, base, sources)
        return base
    version = DatasetVersion(
        dataset=draft.name,
        number=statements.last_number(tx, draft.name) + 1,
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
        branch=draft.branch,
        merged=merged,
        created_at=tx.now,
    )
    statements.add_objects(tx, plan.objects)
    statements.add_version(tx, version, owner)
    _record(tx, draft, version, again=False)
    _link_sources(tx, version, sources)
    _tell(tx, draft, version, base)
    return version


def refuse_erased(tx: Transaction, draft: Prepared) -> None:
    """Refuse a replacement if rows were erased from what it was held against.

    Its rows may be those: whoever gives them must read again. An append only adds.

    Raises:
        Conflict: If so.
    """
    first = draft.first
    if draft.mode == "append" or first is None:
        return
    now = statements.find_version(tx, first.dataset, first.number)
    if now is not None and now.holds != first.holds:
        raise Conflict(
            f"a subject was erased from {first.ref} while {draft.name} was being replaced",
            hint="read the latest version, then commit again",
            details={"winner": now.number},
        )


def _objects(draft: Prepared) -> list[tuple[str, int]]:
    """What a commit is about to name that it stored itself."""
    return [*draft.plan.objects, *((e.block.digest, e.block.size) for e in draft.entries)]


def _link_sources(tx: Transaction, version: DatasetVersion, sources: Sequence[str]) -> None:
    refs = [external_ref(source) for source in sources]
    link_all(tx, refs, f"dataset:{version.ref}", "read")


def _record(tx: Transaction, draft: Prepared, version: DatasetVersion, *, again: bool) -> None:
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
    tx: Transaction, draft: Prepared, version: DatasetVersion, base: DatasetVersion | None
) -> None:
    stays = draft.mode != "replace"
    link_before(tx, version, base, "parent" if stays else "replaced")
    body = {
        "dataset": version.dataset,
        "number": version.number,
        "rows": version.rows,
        "added": version.rows - (base.rows if base and stays else 0),
        "dropped": version.dropped,
        "mode": "merge" if version.merged else draft.mode,
        "run_id": version.run_id,
        "digest": version.digest,
    }
    keep_tags(tx, version, base)
    tell_committed(tx, version, body)
