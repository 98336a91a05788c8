"""Where a row got to: in the versions of its dataset, the quarantine, and the steps of a run.

A row is followed by the values that it was asked for, and by its key once it was found. A table
that a step made and that has neither is not followed: of what a join or an aggregation made of rows
only is known which versions went into it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from everloop.catalog import datasets as statements
from everloop.catalog import ledger
from everloop.catalog.engine import Catalog
from everloop.catalog.erasures import receipts
from everloop.core.dataset import DatasetVersion, RowChange, RowChangeSummary
from everloop.core.quality import MASKED
from everloop.core.work import Station, WhyAbsent
from everloop.data.blocks import open_block, read_block
from everloop.data.layout import runs
from everloop.data.ledger import equal_rows, masked, plain, rows_of
from everloop.data.quarantine import OWN, SUFFIX
from everloop.data.rows import read_rows
from everloop.data.seek import Sought
from everloop.data.versions import line_of, version_of
from everloop.errors import InvalidInput, NotFound
from everloop.ports.blobs import BlobStore, HasPaths

__all__ = ["Follower", "StoredTable", "open_table", "stored_tables"]

#: Versions that are looked through for the last one that had the row.
_MOST_VERSIONS = 200
#: Rows of one entry of the ledger that are told.
_MOST_ROWS = 20
_FRAMES = ("$table", "$polars", "$pandas", "$arrow")


class StoredTable(NamedTuple):
    """A table in the stored result of a step.

    Attributes:
        sources: Names and numbers of the versions that it was made of; None if nobody knows.
    """

    digest: str
    rows: int
    key: tuple[str, ...]
    sources: tuple[tuple[str, int], ...] | None


def stored_tables(blobs: BlobStore, value: Any) -> list[StoredTable]:
    """The tables in a stored result, in its order."""
    meta = (value or {}).get("meta") or {}
    text = meta.get("text")
    if text is None and meta.get("text_object"):
        text = blobs.get(meta["text_object"]).decode()
    return list(_tables_in(json.loads(text))) if text else []


def _tables_in(node: Any) -> Iterator[StoredTable]:
    if isinstance(node, list):
        for item in node:
            yield from _tables_in(item)
    elif isinstance(node, dict):
        for kind in _FRAMES:
            if isinstance(node.get(kind), str):
                sources = node.get("sources")
                known = None if sources is None else tuple((s[0], int(s[1])) for s in sources)
                yield StoredTable(
                    node[kind], int(node.get("rows", 0)), tuple(node.get("key", ())), known
                )
        for item in node.values():
            yield from _tables_in(item)


def open_table(blobs: BlobStore, digest: str) -> pa.Table:
    """The rows of a stored table: mapped where the store has files."""
    if isinstance(blobs, HasPaths):
        return pa.ipc.open_file(pa.memory_map(str(blobs.path(digest)))).read_all()
    return pa.ipc.open_file(pa.BufferReader(blobs.get(digest))).read_all()


class Follower:
    """Follows one row, or all rows with some values.

    Raises:
        NotFound: If there is no such dataset, version, run or column.
        InvalidInput: If the dataset is no table, or a value does not fit its column.
    """

    def __init__(
        self,
        catalog: Catalog,
        blobs: BlobStore,
        name: str,
        where: Mapping[str, Any],
        number: int | None,
        run: str,
        signing: str = "",
        hidden: Collection[str] = (),
    ) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._name = name
        self._where = dict(where)
        self._run = run
        self._key = signing
        self._stations: list[Station] = []
        self._blocks: dict[str, np.ndarray] = {}
        with catalog.read() as tx:
            self._steps = ledger.steps_of(tx, run) if run else []
            if self._steps is None:
                raise NotFound(f"no run {run}", hint="everloop run list shows them")
            if run and number is None:
                number = ledger.version_read(tx, run, name) or None
            self._version = version_of(tx, name, number)
            if self._version.kind != "table":
                raise InvalidInput(f"{self._version.ref} is a {self._version.kind} without rows")
            for column in self._where:
                self._version.schema.field(column)
            self._hidden = {*hidden, *ledger.personal_of(tx, [name, name + SUFFIX])}
            changes = ledger.changes(tx, dataset=name)
            for made_by in {step.made_by for step in self._steps} - {""}:
                changes += [
                    change
                    for change in ledger.changes(tx, scope=f"run:{made_by}")
                    if change.dataset != name
                ]
            self._hidden |= ledger.personal(tx, changes)
            self._waiting = ledger.beside(tx, name, name + SUFFIX).found.get(name + SUFFIX)
            self._receipts = receipts(tx)
        self._changes = sorted(changes, key=lambda change: change.at)
        #: What rows are followed by: the key of those that were found, else what was asked.
        self._rows: list[dict[str, Any]] = []

    def answer(self) -> WhyAbsent:
        """Every station, and a sentence."""
        found = self._look_in_version()
        self._look_in_ledger()
        self._look_in_quarantine()
        if not found:
            self._look_back()
            self._look_in_erasures()
        self._stations.sort(key=lambda station: station.at.timestamp() if station.at else 0.0)
        present: bool | None = bool(found)
        if self._run and self._steps is not None:
            through = self._look_in_run()
            present = through if through is not None else (None if found else False)
        return WhyAbsent(
            where={n: MASKED if n in self._hidden else v for n, v in self._where.items()},
            ref=self._version.ref,
            run=self._run,
            rows=found,
            present=present,
            answer=self._sentence(present),
            stations=tuple(self._stations),
        )

    # --- the dataset -----------------------------------------------------------------------------

    def _earlier(self) -> list[DatasetVersion]:
        """The versions before it on its line, newest first."""
        with self._catalog.read() as tx:
            every = {version.number: version for version in statements.versions(tx, self._name)}
            line = list(line_of(statements.lines(tx, self._name), self._version.number))
        return [every[n] for n in line[1 : _MOST_VERSIONS + 1] if n in every]

    def _look_in_version(self) -> int:
        names = list(self._where)
        rows = read_rows(self._blobs, self._version, [*names, *self._keys(names)])
        found = rows.filter(equal_rows(rows, self._where))
        if found.num_rows:
            key = list(self._version.schema.key)
            if key:
                self._rows = found.select(key).slice(0, _MOST_ROWS).to_pylist()
            told = "it is there" if found.num_rows == 1 else f"{found.num_rows} rows are there"
            self._add(self._version.ref, "there", told, self._version.created_at)
        else:
            self._add(self._version.ref, "not there", "it is not there", self._version.created_at)
        return int(found.num_rows)

    def _keys(self, names: list[str]) -> list[str]:
        return [name for name in self._version.schema.key if name not in names]

    def _look_in_ledger(self) -> None:
        for change in self._changes:
            if not change.scope.startswith("dataset:"):
                continue
            number = change.scope.rpartition("@")[2]
            is_mine = change.dataset == self._name and number.isdigit()
            if is_mine and int(number) <= self._version.number:
                self._tell(change, change.scope.removeprefix("dataset:"))

    def _tell(self, change: RowChangeSummary, place: str) -> bool:
        rows = self._rows_in(change)
        for row in rows:
            did = f"{change.action} by rule {change.rule}: {change.reason}"
            owner = f", owner {change.owner}" if change.owner else ""
            self._add(place, change.action, did + owner, change.at, row)
        return bool(rows)

    def _rows_in(self, change: RowChangeSummary) -> list[RowChange]:
        with open_block(self._blobs, change.detail) as file:
            names = set(file.schema_arrow.names)
        found: list[RowChange] = []
        for wanted in [self._where] if set(self._where) <= names else self._rows:
            if set(wanted) <= names:
                part = rows_of(self._blobs, change, wanted, _MOST_ROWS - len(found), self._hidden)
                found += part.rows
        return found

    def _look_in_quarantine(self) -> None:
        waiting = self._waiting
        if waiting is None or not set(self._where) <= set(waiting.schema.names):
            return
        rows = read_rows(self._blobs, waiting, list(self._where))
        mask = equal_rows(rows, self._where)
        if not any(mask.to_pylist()):
            return
        whole = read_rows(self._blobs, waiting, waiting.schema.names).filter(mask)
        for row in plain(masked(whole.slice(0, _MOST_ROWS), self._hidden)):
            id_, rule, reason, owner = (str(row.pop(name) or "") for name in OWN)
            told = f"it waits, as {id_}: rule {rule}: {reason}"
            change = RowChange(
                scope=f"dataset:{waiting.ref}", dataset=self._name, rule=rule,
                action="quarantined", reason=reason, owner=owner, row=row,
            )  # fmt: skip
            told += f", owner {owner}" if owner else ""
            self._add(waiting.ref, "waiting", told, waiting.created_at, change)

    def _look_back(self) -> None:
        """Seek the last version before that had it, and so the one that took it out."""
        after = self._version
        for version in self._earlier():
            if version.kind == "table" and self._is_in(version):
                self._add(version.ref, "there", "it was there", version.created_at)
                note = f": {after.note}" if after.note else ""
                told = f"it is gone since this version, by {after.author}{note}"
                self._add(after.ref, "not there", told, after.created_at)
                return
            after = version

    def _is_in(self, version: DatasetVersion) -> bool:
        """Whether a version has the row; of each block only what is sought is read, and once."""
        names = list(self._where)
        if not set(names) <= set(version.schema.names):
            return False
        hits = []
        for block in version.blocks:
            if block.digest not in self._blocks:
                rows = read_block(self._blobs, block, version.schema, names)
                mask = np.asarray(equal_rows(rows, self._where).to_numpy(zero_copy_only=False))
                self._blocks[block.digest] = np.flatnonzero(mask)
            hits.append(self._blocks[block.digest])
        if not any(len(rows) for rows in hits):
            return False
        if not version.layout:
            return True
        every = runs(self._blobs, version)
        for n, rows in enumerate(hits):
            mine = every.block == n
            first, end = every.start[mine], every.start[mine] + every.rows[mine]
            if any(((first <= row) & (row < end)).any() for row in rows.tolist()):
                return True
        return False

    def _look_in_erasures(self) -> None:
        """Say that it was erased where a receipt says so; never a value."""
        hashes: set[str] = set()
        if self._key:
            hashes = set(Sought(self._where).hashes(self._key)[1])
        for receipt in self._receipts:
            mine = [
                v.ref for v in receipt.erased.versions if v.ref.rpartition("@")[0] == self._name
            ]
            if not mine:
                continue
            if hashes & set(receipt.subjects):
                told = f"it was erased from {len(mine)} versions; receipt {receipt.id}"
                self._add(mine[-1], "erased", told, receipt.done_at)
            elif not hashes or set(receipt.columns) - set(self._where):
                many = f"{len(mine)} versions, maybe this one"
                told = f"rows were erased from {many}; receipt {receipt.id}"
                self._add(mine[-1], "maybe erased", told, receipt.done_at)

    # --- the run ---------------------------------------------------------------------------------

    def _look_in_run(self) -> bool | None:
        """Follow the rows through the steps; whether they are in the last table that has them."""
        present: bool | None = None
        for step in self._steps or ():
            place = f"run:{self._run}/{step.step}"
            scope = f"run:{step.made_by}/{step.step}"
            for change in self._changes:
                if change.scope == scope:
                    self._tell(change, place)
            for table in stored_tables(self._blobs, step.value):
                seen = self._look_in_table(table, place, step.ended_at)
                present = present if seen is None else seen
        for change in self._changes:
            if change.scope == f"run:{self._run}":
                self._tell(change, change.scope)
        return present

    def _look_in_table(self, table: StoredTable, place: str, at: datetime) -> bool | None:
        sources = table.sources
        if sources and self._name not in {name for name, _ in sources}:
            return None
        if not self._blobs.exists(table.digest):
            self._add(place, "not followed", "its table is not kept any more", at)
            return None
        rows = open_table(self._blobs, table.digest)
        by_key = bool(self._rows) and set(self._rows[0]) <= set(rows.column_names)
        if not by_key and not set(self._where) <= set(rows.column_names):
            came = ", ".join(f"{n}@{v}" for n, v in sources or ()) or "versions nobody noted"
            told = f"it has no column to know the row by; it was made of {came}"
            self._add(place, "not followed", told, at)
            return None
        wanted = self._rows if by_key else [self._where]
        try:
            count: int = sum(rows.filter(equal_rows(rows, one)).num_rows for one in wanted)
        except InvalidInput:
            self._add(place, "not followed", "a column that it is known by has another type", at)
            return None
        of = f" of {rows.num_rows} rows"
        told = f"it is there, {count}{of}" if count else f"it is not among its {rows.num_rows} rows"
        self._add(place, "there" if count else "not there", told, at)
        return bool(count)

    # --- what is said ----------------------------------------------------------------------------

    def _add(
        self,
        place: str,
        what: Any,
        told: str,
        at: datetime | None,
        change: RowChange | None = None,
    ) -> None:
        self._stations.append(Station(place=place, what=what, told=told, at=at, change=change))

    def _sentence(self, present: bool | None) -> str:
        end = f"run {self._run}" if self._run else self._version.ref
        if present:
            return f"it is in the last table of {end}" if self._run else f"it is in {end}"
        if present is None:
            return f"no table of {end} has a column to know it by"
        for what in ("erased", "waiting", "dropped", "quarantined"):
            for station in reversed(self._stations):
                if station.what == what:
                    return f"it is not in {end}: at {station.place} {station.told}"
        known = [s for s in self._stations if s.what != "not followed"]
        there = [n for n, s in enumerate(known) if s.what == "there"]
        erased = [s.told for s in known if s.what == "maybe erased"]
        if not there and erased:
            return f"it is not in {end}, and no rule left it out; {erased[-1]}"
        if not there:
            return f"it is not in {end}: it never arrived, and no rule left it out"
        lost = next((s for s in known[there[-1] + 1 :] if s.what == "not there"), None)
        if lost is None:
            return f"it is not in {end}"
        if lost.place.startswith("run:"):
            return f"it is not in {end}: {lost.place} left it out by no rule: a filter or a join"
        return f"it is not in {end}: {lost.place}: {lost.told}"
