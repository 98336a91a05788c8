"""Two whole frames saved at once: where both changed other rows, the later one takes in both."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

from everloop.core.dataset import DatasetVersion
from everloop.core.schema import Schema
from everloop.data.layout import Positions
from everloop.data.match import unlike
from everloop.data.replace import Plan, can_build_on, plan_merge
from everloop.data.rowhash import Hashes
from everloop.data.rows import Hashed, hashed, rows_at
from everloop.errors import Conflict
from everloop.ports.blobs import BlobStore

__all__ = ["rebased"]

_SHOWN = 5


def rebased(
    blobs: BlobStore,
    first: DatasetVersion,
    latest: DatasetVersion,
    schema: Schema,
    rows: pa.Table,
    hashes: Hashes,
) -> Plan | None:
    """The changes that `rows` are to `first`, made to `latest`.

    Args:
        first: The version that was the latest when the commit began.
        latest: The one that came meanwhile.
        schema: Of `rows`.
        rows: A whole frame.
        hashes: Of `rows`.

    Returns:
        None where the schema changed, or `rows` are what `latest` has.

    Raises:
        Conflict: If both gave a row, by its key, another outcome; names the winner and some keys.
    """
    if not (first.schema == latest.schema == schema and can_build_on(first.schema, schema)):
        return None
    before, after = hashed(blobs, first), hashed(blobs, latest)
    if len(after.at) == rows.num_rows and after.hashes.total() == hashes.total():
        return None
    new, gone = unlike(hashes, before.hashes)
    their_new, their_gone = unlike(after.hashes, before.hashes)
    key = list(schema.key)
    ours = _outcomes(rows.select(key).take(pa.array(new)), hashes.take(new), new)
    our_gone = _lost(blobs, first, before, gone, key)
    their_rows = rows_at(blobs, latest, after.at[their_new], key)
    theirs = _outcomes(their_rows, after.hashes.take(their_new), their_new)
    lost = _lost(blobs, first, before, their_gone, key)
    theirs = pl.concat([theirs, lost.join(theirs, on=key, how="anti")])
    mine = pl.concat([ours, our_gone.join(ours, on=key, how="anti")])
    both = mine.join(theirs, on=key, suffix="_theirs")
    alike = pl.col("low").eq_missing(pl.col("low_theirs")) & pl.col("high").eq_missing(
        pl.col("high_theirs")
    )
    if (clash := both.filter(~alike)).height:
        raise _conflict(latest, clash.select(key))
    return plan_merge(
        blobs,
        latest,
        schema,
        rows,
        hashes,
        np.sort(ours.join(both, on=key, how="anti")["row"].to_numpy()),
        before.hashes.take(our_gone.join(both, on=key, how="anti")["row"].to_numpy()),
    )


def _outcomes(keys: pa.Table, hashes: Hashes, rows: Positions) -> pl.DataFrame:
    frame = pl.from_arrow(keys)
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(
        low=pl.Series(hashes.low), high=pl.Series(hashes.high), row=pl.Series(rows)
    )


def _lost(
    blobs: BlobStore, version: DatasetVersion, known: Hashed, rows: Positions, key: list[str]
) -> pl.DataFrame:
    frame = _outcomes(rows_at(blobs, version, known.at[rows], key), known.hashes.take(rows), rows)
    nothing = pl.lit(None, pl.UInt64)
    return frame.with_columns(low=nothing, high=nothing)


def _conflict(latest: DatasetVersion, keys: pl.DataFrame) -> Conflict:
    shown = ", ".join(str(row) for row in keys.head(_SHOWN).iter_rows(named=True))
    more = f" and {keys.height - _SHOWN} more" if keys.height > _SHOWN else ""
    at = f"{latest.created_at:%Y-%m-%d %H:%M:%S} UTC"
    return Conflict(
        f"{latest.ref} by {latest.author}, {at}, changed {keys.height} of the same rows meanwhile: "
        f"{shown}{more}",
        hint="read the latest version, make your changes to it, then commit again",
        details={"winner": latest.number},
    )
