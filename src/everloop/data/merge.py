"""Three versions of a table made into one: by key, and within a row by column.

What a line changed is found by the row hashes, as a commit and a diff find it. Only of rows that
both lines changed are the values looked at.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from everloop.catalog import datasets as statements
from everloop.catalog.transaction import Transaction
from everloop.core.dataset import DatasetVersion, MergeConflict
from everloop.core.schema import Schema
from everloop.data.arrow import arrow_type, conform
from everloop.data.blocks import version_digest, write_blocks
from everloop.data.check_rules import ValuesOf
from everloop.data.commit import Draft, Mode, Prepared, publish
from everloop.data.layout import Positions
from everloop.data.ledger import Entry, plain
from everloop.data.match import unlike
from everloop.data.merge_schema import merged_schema
from everloop.data.replace import Order, Plan
from everloop.data.rowhash import Hashes, row_hashes
from everloop.data.rows import hashed, read_rows, rows_at
from everloop.errors import Conflict, InvalidInput
from everloop.ports.blobs import BlobStore

__all__ = ["Conflicts", "Merged", "Strategy", "Three", "merged"]

Strategy = Literal["refuse", "ours", "theirs"]
_SHOWN, _MOST = 5, 1000


class Three(NamedTuple):
    """The version in common, the head that is merged into, and the other head."""

    base: DatasetVersion
    ours: DatasetVersion
    theirs: DatasetVersion


class Conflicts:
    """The conflicts of a merge: all are counted, the first are kept."""

    def __init__(self) -> None:
        self.total = 0
        self.first: list[MergeConflict] = []

    def add(self, found: list[MergeConflict], total: int | None = None) -> None:
        """Take `found` up; `total` where they are the first of so many."""
        self.total += len(found) if total is None else total
        self.first += found[: _MOST - len(self.first)]

    def refuse(self, three: Three) -> None:
        """Raise Conflict if there are any."""
        if not self.total:
            return
        shown = "; ".join(_told(conflict) for conflict in self.first[:_SHOWN])
        more = f" and {self.total - _SHOWN} more" if self.total > _SHOWN else ""
        raise Conflict(
            f"{three.theirs.ref} and {three.ours.ref} changed the same since {three.base.ref}, "
            f"{self.total} times: {shown}{more}",
            hint='mend it on one of the lines, or let strategy="ours" or "theirs" decide',
            details={
                "total": self.total,
                "conflicts": [msgspec.to_builtins(conflict) for conflict in self.first],
            },
        )


def _told(conflict: MergeConflict) -> str:
    key = ", ".join(f"{name} {value!r}" for name, value in conflict.key.items())
    where = conflict.path or " ".join(filter(None, (key, conflict.column))) or conflict.kind
    return f"{where}: {conflict.base!r} became {conflict.ours!r} and {conflict.theirs!r}"


class Merged(Protocol):
    """A merge whose bytes are stored."""

    conflicts: Conflicts

    def publish(self, tx: Transaction, *, note: str, run_id: str) -> DatasetVersion | None:
        """Make the version; None if the line has moved on meanwhile."""
        ...


class _Table:
    def __init__(self, draft: Prepared, three: Three, conflicts: Conflicts) -> None:
        self.conflicts = conflicts
        self._draft = draft
        self._three = three

    def publish(self, tx: Transaction, *, note: str, run_id: str) -> DatasetVersion | None:
        _, ours, theirs = self._three
        now = statements.find_version(tx, theirs.dataset, theirs.number)
        if now is None or now.holds != theirs.holds:
            return None  # rows were erased from it
        return publish(
            tx, self._draft, ours, owner="", note=note, run_id=run_id, merged=theirs.number
        )


class _Ready(msgspec.Struct, kw_only=True):
    """A version whose blocks are all stored already."""

    blobs: BlobStore
    name: str
    branch: str
    schema: Schema
    plan: Plan
    mode: Mode = "replace"
    expect: int | None = None
    entries: list[Entry] = []
    dropped: int = 0
    first: DatasetVersion | None = None

    def exists(self, digest: str) -> bool:
        """Whether an object is in the store."""
        return self.blobs.exists(digest)

    def forget(self) -> None:
        """A merge is made anew from its beginning."""


def merged(
    blobs: BlobStore, three: Three, branch: str, strategy: Strategy, *, values_of: ValuesOf
) -> Merged:
    """Merge `three` to be a version of `branch`; what is new of it is stored.

    Raises:
        Conflict: If nothing decides what both lines changed.
        InvalidInput: If the rows break the schema that they get.
    """
    base, ours, theirs = three
    conflicts = Conflicts()
    if base.number == ours.number or ours.holds == theirs.holds:
        return _Table(_taken(blobs, theirs, branch), three, conflicts)
    if base.holds == theirs.holds and base.schema == theirs.schema:
        return _Table(_taken(blobs, ours, branch), three, conflicts)
    keys = {version.schema.key for version in three}
    if len(keys) > 1 or not ours.schema.key:
        whole = _whole(blobs, three, branch, strategy, conflicts)
        return _Table(whole, three, conflicts)
    schema, faults = merged_schema(base.schema, ours.schema, theirs.schema, strategy)
    conflicts.add(faults)
    schema = _kept_columns(blobs, three, schema, strategy, conflicts)
    before = _Side(blobs, base, schema, is_base=True)
    mine, yours = (_Side(blobs, version, schema, is_base=False) for version in (ours, theirs))
    rows = _rows(before, mine, yours, list(schema.key), strategy, conflicts)
    if strategy == "refuse":
        conflicts.refuse(three)
    draft = Draft(
        blobs, ours.dataset, rows, schema, mode="replace", branch=branch, values_of=values_of
    )
    draft.prepare(ours, "")
    if draft.aside is not None:
        rules = ", ".join(sorted({entry.rule for entry in draft.entries}))
        raise InvalidInput(
            f"rows that both lines make together break rules that set rows aside: {rules}",
            hint="correct them on one of the lines, then merge again",
        )
    return _Table(draft, three, conflicts)


def _taken(blobs: BlobStore, version: DatasetVersion, branch: str) -> Prepared:
    """The content of a version, as it is."""
    plan = Plan(version.blocks, version.layout, version.holds, version.rows, [], is_same=False)
    name, schema = version.dataset, version.schema
    return _Ready(blobs=blobs, name=name, branch=branch, schema=schema, plan=plan)


def _whole(
    blobs: BlobStore, three: Three, branch: str, strategy: Strategy, conflicts: Conflicts
) -> Prepared:
    """Tables that cannot be merged by key: appended to on both lines, or one of the two."""
    base, ours, theirs = three
    plain_lists = not any(v.layout for v in three) and len({v.schema for v in three}) == 1
    came = _came(blobs, base, theirs) if plain_lists else None
    if came is not None and _came(blobs, base, ours) is not None:
        added = [block for block, _ in write_blocks(blobs, came)]
        blocks = (*ours.blocks, *added)
        digest = version_digest(ours.schema, blocks)
        rows = sum(block.rows for block in blocks)
        objects = [(block.digest, block.size) for block in added]
        plan = Plan(blocks, "", digest, rows, objects, is_same=False)
        name, schema = ours.dataset, ours.schema
        return _Ready(blobs=blobs, name=name, branch=branch, schema=schema, plan=plan)
    kind: Literal["table", "schema"] = "schema" if any(v.schema.key for v in three) else "table"
    said = [", ".join(v.schema.key) if kind == "schema" else f"{v.rows} rows" for v in three]
    what = "key" if kind == "schema" else ""
    found = MergeConflict(kind=kind, column=what, base=said[0], ours=said[1], theirs=said[2])
    conflicts.add([found])
    if strategy == "refuse":
        conflicts.refuse(three)
    return _taken(blobs, ours if strategy == "ours" else theirs, branch)


def _came(blobs: BlobStore, base: DatasetVersion, later: DatasetVersion) -> pa.Table | None:
    """The rows that were appended to `base` since; None if it was changed otherwise.

    Blocks are put together as they become many, so that it is the rows that tell.
    """
    same = 0
    for old, new in zip(base.blocks, later.blocks, strict=False):
        if old != new:
            break
        same += 1
    before, after = (
        read_rows(blobs, msgspec.structs.replace(v, blocks=v.blocks[same:]), base.schema.names)
        for v in (base, later)
    )
    known, found = row_hashes(before), row_hashes(after.slice(0, before.num_rows))
    if not all(np.array_equal(one, other) for one, other in zip(known, found, strict=True)):
        return None
    return after.slice(before.num_rows)


class _Side:
    """The rows of a version under the merged schema.

    Attributes:
        rows: In its order; of the version in common the key columns alone, where that will do.
        hashes: Of each row.
    """

    def __init__(self, blobs: BlobStore, version: DatasetVersion, schema: Schema, *, is_base: bool):
        self._blobs = blobs
        self._version = version
        self._at: Positions | None = None
        if version.schema.fields == schema.fields:
            known = hashed(blobs, version)
            self._at = known.at if is_base else None
            self.hashes = known.hashes
            self.rows = read_rows(blobs, version, schema.key if is_base else schema.names)
        else:
            self.rows = _fitted(read_rows(blobs, version, version.schema.names), version, schema)
            self.hashes = row_hashes(self.rows)

    def take(self, rows: pl.Series) -> pl.DataFrame:
        """Whole rows by their numbers; nulls for null."""
        if self._at is None:
            return pl.DataFrame(self.rows.take(pa.array(rows.cast(pl.Int64).to_arrow())))
        there = rows.is_not_null().to_numpy()
        at = self._at[rows.drop_nulls().to_numpy()]
        found = rows_at(self._blobs, self._version, at, self._version.schema.names)
        return pl.DataFrame(found.take(pa.array(np.cumsum(there) - 1, mask=~there)))


def _fitted(rows: pa.Table, version: DatasetVersion, schema: Schema) -> pa.Table:
    """Rows in the columns of another schema; one that they lack is null.

    Raises:
        InvalidInput: If values do not fit its types.
    """
    types = {field.name: arrow_type(field.type) for field in schema.fields}
    for name, kind in types.items():
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(rows.num_rows, kind))
    try:
        return conform(rows.select(list(types)), schema.select(list(types)))
    except InvalidInput as error:
        raise InvalidInput(
            f"{version.ref} does not fit the schema that both lines make", error.faults
        ) from None


def _kept_columns(
    blobs: BlobStore, three: Three, schema: Schema, strategy: Strategy, conflicts: Conflicts
) -> Schema:
    """`schema` after a look at columns that one line dropped and the other changed values in."""
    base, ours, theirs = three
    kept = []
    for line, other, side in ((ours, theirs, "ours"), (theirs, ours, "theirs")):
        for field in base.schema.fields:
            if field.name in other.schema.names or field not in line.schema.fields:
                continue
            if not _changed(blobs, base, line, field.name):
                continue
            said = ("changed", "dropped") if side == "ours" else ("dropped", "changed")
            found = MergeConflict(
                kind="column", column=field.name, base=field.type, ours=said[0], theirs=said[1]
            )
            conflicts.add([found])
            kept += [field] if side == strategy else []
    return msgspec.structs.replace(schema, fields=(*schema.fields, *kept))


def _changed(blobs: BlobStore, base: DatasetVersion, line: DatasetVersion, column: str) -> bool:
    """Whether a row of `base` has another value in `line`."""
    key = list(base.schema.key)
    was, now = (read_rows(blobs, version, [*key, column]) for version in (base, line))
    new, gone = unlike(row_hashes(now), row_hashes(was))
    both = _frame(now, key)[new].join(_frame(was, key)[gone], on=key, how="semi")
    return both.height > 0


# --- by key ---------------------------------------------------------------------------------------


def _rows(
    base: _Side,
    ours: _Side,
    theirs: _Side,
    key: list[str],
    strategy: Strategy,
    conflicts: Conflicts,
) -> pa.Table:
    our_new, our_gone = unlike(ours.hashes, base.hashes)
    their_new, their_gone = unlike(theirs.hashes, base.hashes)
    mine = _keys(ours.rows, our_new, base.rows, our_gone, key)
    yours = _keys(theirs.rows, their_new, base.rows, their_gone, key)
    both = mine.join(yours, on=key, how="semi")
    news = _frame(theirs.rows, key, "row")[their_new].join(both, on=key, how="anti")
    gone = _frame(base.rows, key, "row")[their_gone].join(both, on=key, how="anti")
    dead = np.zeros(ours.rows.num_rows, bool)
    lost = _frame(ours.rows, key, "row").join(gone, on=key, how="semi")["row"].to_numpy()
    dead[lost] = True
    clash = _Clash(base, ours, theirs, both, key)
    decided = clash.decided(strategy, conflicts)
    dead[clash.at_ours] = True
    frame, hashes = _replaced(theirs, decided)
    # Where each row of the frame is in `ours`, as it is or as that line changed it: by that new
    # rows keep their places also between rows that the other line changed.
    found = _places(frame, ours.rows, key)
    is_same = _alike(hashes, found, ours.hashes)
    # A row that both lines gave the same outcome is in `ours` already.
    dead[found[decided.at[is_same[decided.at]]]] = False
    new = np.union1d(news["row"].to_numpy(), decided.at[~is_same[decided.at]]).astype(np.int64)
    found[found >= 0] = np.where(dead[found[found >= 0]], -1, found[found >= 0])
    order = Order(found, new, dead)
    kept = np.flatnonzero(~dead)
    at = order.woven(kept, order.new + ours.rows.num_rows)
    return pa.concat_tables([ours.rows, frame]).take(pa.array(at))


def _keys(
    rows: pa.Table, new: Positions, base: pa.Table, gone: Positions, key: list[str]
) -> pl.DataFrame:
    """The keys that a line added, changed or removed."""
    come, went = _frame(rows, key)[new], _frame(base, key)[gone]
    return pl.concat([come, went]).unique()


def _places(rows: pa.Table, others: pa.Table, key: list[str]) -> Positions:
    """For each of `rows` the row of `others` with its key, or -1."""
    left, right = _frame(rows, key, "left"), _frame(others, key, "right")
    both = left.join(right, on=key, how="inner")
    found = np.full(rows.num_rows, -1, np.int64)
    found[both["left"].to_numpy()] = both["right"].to_numpy()
    return found


def _alike(hashes: Hashes, at: Positions, others: Hashes) -> npt.NDArray[np.bool_]:
    """Whether each row is the one of `others` at its place in `at`."""
    there = at >= 0
    found = others.take(at[there])
    there[there] = (hashes.low[there] == found.low) & (hashes.high[there] == found.high)
    return there


def _frame(rows: pa.Table, names: list[str], number: str = "") -> pl.DataFrame:
    frame = pl.from_arrow(rows.select(names))
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(pl.int_range(pl.len()).alias(number)) if number else frame


class _Decided(NamedTuple):
    """Rows that both lines changed, as they are to be, and where each stands in the frame.

    Attributes:
        at: Row of the other line's frame; behind its end for those that it has removed.
    """

    rows: pa.Table
    at: Positions


def _replaced(theirs: _Side, decided: _Decided) -> tuple[pa.Table, Hashes]:
    """The other line's frame with the rows that were decided in their places."""
    count = theirs.rows.num_rows
    every = pa.concat_tables([theirs.rows, decided.rows])
    hashes = Hashes.concat([theirs.hashes, row_hashes(decided.rows)])
    beyond = int((decided.at >= count).sum())
    at = np.arange(count + beyond)
    at[decided.at] = count + np.arange(len(decided.at))
    return every.take(pa.array(at)), hashes.take(at)


class _Clash:
    """The rows that both lines changed, side by side.

    Attributes:
        at_ours: Their rows in ours.
    """

    def __init__(
        self, base: _Side, ours: _Side, theirs: _Side, keys: pl.DataFrame, key: list[str]
    ) -> None:
        self._key = key
        self._names = [name for name in ours.rows.column_names if name not in key]
        self._sides = (base, ours, theirs)
        places = keys
        for name, side in zip(("b", "o", "t"), self._sides, strict=True):
            places = places.join(_frame(side.rows, key, name), on=key, how="left")
        self._places = places.sort(pl.col("o").fill_null(-1), pl.col("t").fill_null(-1))
        self.at_ours: Positions = self._places["o"].drop_nulls().to_numpy().astype(np.int64)

    def decided(self, strategy: Strategy, conflicts: Conflicts) -> _Decided:
        """The rows as they are to be; what nothing but the strategy decided is told."""
        both = self._places.filter(pl.col("o").is_not_null() & pl.col("t").is_not_null())
        cells = self._cells(both, strategy, conflicts)
        one = self._places.filter(pl.col("o").is_null() != pl.col("t").is_null())
        self._tell_rows(one, conflicts)
        side = pl.col("t") if strategy == "theirs" else pl.col("o")
        kept = one.filter(side.is_not_null())
        _, ours, theirs = self._sides
        source, column = (theirs, "t") if strategy == "theirs" else (ours, "o")
        rows = source.rows.take(pa.array(kept[column].to_numpy().astype(np.int64)))
        behind = theirs.rows.num_rows + np.arange(len(rows))
        at = kept["t"].to_numpy() if strategy == "theirs" else behind
        every = pa.concat_tables([cells, rows])
        return _Decided(every, np.concatenate([both["t"].to_numpy(), at]).astype(np.int64))

    def _cells(self, both: pl.DataFrame, strategy: Strategy, conflicts: Conflicts) -> pa.Table:
        """Of each row the cells that one line changed; of those that both did, one of the two."""
        base, ours, theirs = (
            side.take(both[name]) for name, side in zip(("b", "o", "t"), self._sides, strict=True)
        )
        is_new = both["b"].is_null()
        found = {name: ours[name] for name in self._key}
        for name in self._names:
            was, one, two = base[name], ours[name], theirs[name]
            we, they = (is_new | was.ne_missing(now) for now in (one, two))
            clash = we & they & one.ne_missing(two)
            self._tell_cells(name, both, clash, (was, one, two), conflicts)
            take = they & ~we if strategy != "theirs" else they
            found[name] = two.zip_with(take, one)
        schema = self._sides[1].rows.schema
        return pl.DataFrame(found).select(schema.names).to_arrow().cast(schema)

    def _tell_cells(
        self,
        name: str,
        both: pl.DataFrame,
        clash: pl.Series,
        values: tuple[pl.Series, pl.Series, pl.Series],
        conflicts: Conflicts,
    ) -> None:
        rows = clash.arg_true()[: _MOST - len(conflicts.first)]
        keys = plain(both.select(self._key)[rows].to_arrow())
        shown = plain(
            pl.DataFrame(
                [v[rows].alias(n) for v, n in zip(values, ("base", "ours", "theirs"), strict=True)]
            ).to_arrow()
        )
        found = [
            MergeConflict(kind="value", key=key, column=name, **value)  # type: ignore[arg-type]
            for key, value in zip(keys, shown, strict=True)
        ]
        conflicts.add(found, int(clash.sum()))

    def _tell_rows(self, one: pl.DataFrame, conflicts: Conflicts) -> None:
        said: dict[bool, Any] = {
            True: {"base": "there", "ours": "removed", "theirs": "changed"},
            False: {"base": "there", "ours": "changed", "theirs": "removed"},
        }
        some = one.head(_MOST - len(conflicts.first))
        keys = plain(some.select(self._key).to_arrow())
        found = [
            MergeConflict(kind="row", key=key, **said[is_gone])
            for key, is_gone in zip(keys, some["o"].is_null(), strict=True)
        ]
        conflicts.add(found, len(one))
