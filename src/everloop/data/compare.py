"""Which rows differ between two versions: from manifests and kept hashes, then from few rows.

Rows that both versions have in the same block are passed over unread. Of all others the hashes are
held against each other, without the columns that only one version has; key columns are read of
the rows that are left, and whole rows only for those that are shown.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from everloop.core.dataset import Block, ColumnDiff, DatasetDiff, DatasetVersion, RowDiff, Value
from everloop.core.schema import Schema
from everloop.data.arrow import arrow_type
from everloop.data.layout import Positions, block_of, offsets, positions
from everloop.data.ledger import plain
from everloop.data.match import unlike
from everloop.data.rowhash import Hashes, kind_of, row_hashes
from everloop.data.rows import block_hashes, counting, rows_at
from everloop.ports.blobs import BlobStore

__all__ = ["difference"]


def difference(
    blobs: BlobStore, old: DatasetVersion, new: DatasetVersion, *, rows: int
) -> DatasetDiff:
    """How `new` differs from `old`; see ``DatasetDiff``.

    Args:
        rows: Most rows of each kind to show.
    """
    columns = _columns(old.schema, new.schema)
    common = _comparable(old.schema, new.schema)
    key = [name for name in new.schema.key if name in common]
    if old.schema.key != new.schema.key:
        key = []
    gone, come = _unlike(blobs, old, new, common)
    pairs = _pairs(blobs, old, gone, new, come, key)
    sides = (_Side(blobs, old, key, common), _Side(blobs, new, key, common))
    shown = [
        *sides[1].changed(sides[0], pairs.come[:rows], pairs.gone[:rows]),
        *sides[1].whole("added", pairs.added[:rows]),
        *sides[0].whole("removed", pairs.removed[:rows]),
    ]
    return DatasetDiff(
        old=old.ref,
        new=new.ref,
        columns=columns,
        added=len(pairs.added),
        removed=len(pairs.removed),
        changed=len(pairs.come),
        rows=tuple(shown),
    )


def _columns(old: Schema, new: Schema) -> ColumnDiff:
    had, has = ({field.name: field for field in schema.fields} for schema in (old, new))
    both = [name for name in has if name in had]
    retyped = {n: (had[n].type, has[n].type) for n in both if had[n].type != has[n].type}
    return ColumnDiff(
        added=tuple(n for n in has if n not in had),
        removed=tuple(n for n in had if n not in has),
        retyped={n: (str(a), str(b)) for n, (a, b) in retyped.items()},
        rules=tuple(n for n in both if had[n] != has[n] and n not in retyped),
    )


def _comparable(old: Schema, new: Schema) -> list[str]:
    """Columns of both, in one kind of values."""
    kinds = {field.name: kind_of(arrow_type(field.type)) for field in old.fields}
    return [f.name for f in new.fields if kinds.get(f.name) == kind_of(arrow_type(f.type))]


# --- by hashes ------------------------------------------------------------------------------------


def _unlike(
    blobs: BlobStore, old: DatasetVersion, new: DatasetVersion, common: list[str]
) -> tuple[Positions, Positions]:
    """Positions of rows of `old` that `new` lacks, and the reverse; in the versions' order."""
    had, has = counting(blobs, old), counting(blobs, new)
    of_old = _candidates(blobs, old, had, has)
    of_new = _candidates(blobs, new, has, had)
    before = _hashes(blobs, old, of_old, common)
    after = _hashes(blobs, new, of_new, common)
    come, gone = unlike(after, before)
    return of_old[gone], of_new[come]


_Counted = list[tuple[Block, np.ndarray | None]]


def _candidates(
    blobs: BlobStore, version: DatasetVersion, mine: _Counted, others: _Counted
) -> Positions:
    """Positions of the rows that the other version does not have in the same block."""
    at = positions(blobs, version)
    wanted = np.ones(int(offsets(version.blocks)[-1]), bool)
    # Without a key a block may stand several times in a version: each counts once.
    there: dict[str, list[np.ndarray | None]] = {}
    for block, mask in others:
        there.setdefault(block.digest, []).append(mask)
    start = 0
    for block, _ in mine:
        masks = there.get(block.digest)
        if masks:
            mask = masks.pop()
            wanted[start : start + block.rows] = False if mask is None else ~mask
        start += block.rows
    return at[wanted[at]]


def _hashes(blobs: BlobStore, version: DatasetVersion, at: Positions, common: list[str]) -> Hashes:
    """Hashes of the rows at these positions, over the `common` columns."""
    if not len(at):
        return Hashes.concat([])
    starts = offsets(version.blocks)
    of = block_of(at, starts)
    found = Hashes(np.empty(len(at), np.uint64), np.empty(len(at), np.uint64))
    for n in np.unique(of).tolist():
        inside = np.flatnonzero(of == n)
        part = block_hashes(blobs, version.blocks[n], version.schema).take(at[inside] - starts[n])
        found.low[inside], found.high[inside] = part
    apart = [name for name in version.schema.names if name not in common]
    return found - row_hashes(rows_at(blobs, version, at, apart)) if apart else found


# --- by key ---------------------------------------------------------------------------------------


class _Pairs(NamedTuple):
    """Positions: of changed rows in both versions, pair by pair, and of the others."""

    gone: Positions
    come: Positions
    removed: Positions
    added: Positions


def _pairs(
    blobs: BlobStore,
    old: DatasetVersion,
    gone: Positions,
    new: DatasetVersion,
    come: Positions,
    key: list[str],
) -> _Pairs:
    none = np.empty(0, np.int64)
    if not key or not len(gone) or not len(come):
        return _Pairs(none, none, gone, come)
    left = pl.from_arrow(rows_at(blobs, old, gone, key))
    right = pl.from_arrow(rows_at(blobs, new, come, key))
    assert isinstance(left, pl.DataFrame)
    assert isinstance(right, pl.DataFrame)
    # A key that became wider, as int32 to int64, is the same key.
    left = left.with_columns(pl.col(name).cast(right.schema[name]) for name in key)
    both = right.with_row_index("come").join(left.with_row_index("gone"), on=key)
    both = both.sort("come")
    olds, news = (both[name].to_numpy().astype(np.int64) for name in ("gone", "come"))
    is_removed, is_added = np.ones(len(gone), bool), np.ones(len(come), bool)
    is_removed[olds] = False
    is_added[news] = False
    return _Pairs(gone[olds], come[news], gone[is_removed], come[is_added])


# --- to be shown ----------------------------------------------------------------------------------


class _Side:
    """Rows of one version, to be shown."""

    def __init__(
        self, blobs: BlobStore, version: DatasetVersion, key: list[str], common: list[str]
    ) -> None:
        self._blobs = blobs
        self._version = version
        self._key = key
        self._common = common

    def whole(self, kind: Literal["added", "removed"], at: Positions) -> list[RowDiff]:
        """Added or removed rows with all of their values."""
        found = []
        for row in self._rows(at, list(self._version.schema.names)):
            key = {name: row[name] for name in self._key}
            side = {"new" if kind == "added" else "old": row}
            found.append(RowDiff(kind=kind, key=key, **side))
        return found

    def changed(self, before: _Side, at: Positions, at_before: Positions) -> list[RowDiff]:
        """Changed rows with those values that differ."""
        found = []
        news = self._rows(at, self._common)
        for new, old in zip(news, before._rows(at_before, self._common), strict=True):
            names = [name for name in self._common if not _is_same(old[name], new[name])]
            found.append(
                RowDiff(
                    kind="changed",
                    key={name: new[name] for name in self._key},
                    old={name: old[name] for name in names},
                    new={name: new[name] for name in names},
                )
            )
        return found

    def _rows(self, at: Positions, names: list[str]) -> list[dict[str, Value]]:
        table: pa.Table = rows_at(self._blobs, self._version, at, names)
        return list(plain(table))


def _is_same(old: Any, new: Any) -> bool:
    return bool(old == new) or (old != old and new != new)
