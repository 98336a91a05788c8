"""Predictions and labels as tables: their columns, checks, Parquet form, and the join of the two.

Nothing here knows the catalog; :mod:`everloop.deployment.predictions` does.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from everloop.core.time import to_micros
from everloop.errors import Fault, InvalidInput, NotFound

__all__ = [
    "INSTANT",
    "LABEL_COLUMNS",
    "LABEL_SLACK",
    "PREDICTION_COLUMNS",
    "Source",
    "column_type",
    "conform_labels",
    "conform_predictions",
    "instant",
    "join_labels",
    "pick",
    "scan",
    "to_arrow",
    "to_parquet",
]

#: Where a Parquet object is read from: its file, or its bytes.
Source = Path | io.BytesIO

INSTANT = pa.timestamp("us", "UTC")
PREDICTION_COLUMNS: dict[str, pa.DataType] = {
    "id": pa.string(),
    "request_id": pa.string(),
    "at": INSTANT,
    "version": pa.int32(),
    "revision": pa.int32(),
    "arm": pa.string(),
    "value": pa.float64(),
    "latency_us": pa.int64(),
    "error": pa.string(),
    "request": pa.string(),
}
LABEL_COLUMNS: dict[str, pa.DataType] = {
    "request_id": pa.string(),
    "label": pa.float64(),
    "known_at": INSTANT,
}
_DEFAULTS = {
    "request_id": "",
    "revision": 0,
    "arm": "champion",
    "latency_us": 0,
    "error": "",
    "request": "{}",
}

_UNIQUE = ("id", "request_id", "request")

#: How long before the time of its prediction a label may have become known (clocks differ).
LABEL_SLACK = timedelta(days=1)


def conform_predictions(rows: pa.Table) -> pa.Table:
    """Rows with the columns of ``PREDICTION_COLUMNS``, ``f.*`` and ``t.*``, sorted by id.

    Missing optional columns are filled; of rows with the same id the first is kept.

    Raises:
        InvalidInput: With every fault: missing or unknown columns, wrong types, nulls.
    """
    faults: list[Fault] = []
    columns: dict[str, pa.Array] = {}
    for name in rows.column_names:
        wanted = column_type(name, rows.schema.field(name).type)
        if wanted is None:
            known = f"{', '.join(PREDICTION_COLUMNS)}, f.<feature>, t.<view>"
            faults.append(Fault(name, f"unknown column; there are: {known}"))
        else:
            _cast(rows, name, wanted, columns, faults)
    for name, wanted in PREDICTION_COLUMNS.items():
        if name not in rows.column_names:
            if name not in _DEFAULTS:
                faults.append(Fault(name, "missing column"))
                continue
            filled = pa.scalar(_DEFAULTS[name], wanted)
            columns[name] = pa.chunked_array([pa.repeat(filled, rows.num_rows)])
        elif name in columns and name in _DEFAULTS:
            columns[name] = pc.fill_null(columns[name], pa.scalar(_DEFAULTS[name], wanted))
    for name in ("id", "at", "version"):
        _refuse_rows(columns, name, pc.is_null, "is null", faults)
    _refuse_rows(columns, "id", lambda ids: pc.equal(ids, ""), "is empty", faults)
    if "value" in columns and "error" in columns:
        unexplained = pc.and_(pc.is_null(columns["value"]), pc.equal(columns["error"], ""))
        _refuse_where(unexplained, "value", "is null, and error does not say why", faults)
    _raise(faults, rows, "the predictions are wrong")
    own = list(PREDICTION_COLUMNS)
    order = own + sorted(name for name in columns if name not in PREDICTION_COLUMNS)
    table = pa.table({name: columns[name] for name in order}).sort_by("id")
    ids = table.column("id").combine_chunks()
    first = pa.concat_arrays([pa.array([True]), pc.not_equal(ids[1:], ids[:-1])])
    return table.filter(first)


def conform_labels(rows: pa.Table) -> pa.Table:
    """Rows with the columns of ``LABEL_COLUMNS``, each once, sorted by the time they were known.

    Raises:
        InvalidInput: With every fault: missing or unknown columns, wrong types, nulls, NaN,
            infinities.
    """
    faults: list[Fault] = []
    columns: dict[str, pa.Array] = {}
    for name in rows.column_names:
        if name not in LABEL_COLUMNS:
            known = ", ".join(LABEL_COLUMNS)
            faults.append(Fault(name, f"unknown column; there are: {known}"))
        else:
            _cast(rows, name, LABEL_COLUMNS[name], columns, faults)
    missing = [name for name in LABEL_COLUMNS if name not in rows.column_names]
    faults += [Fault(name, "missing column") for name in missing]
    for name in LABEL_COLUMNS:
        _refuse_rows(columns, name, pc.is_null, "is null", faults)
    _refuse_rows(
        columns, "label", lambda c: pc.invert(pc.is_finite(c)), "is NaN or infinite", faults
    )
    _refuse_rows(columns, "request_id", lambda ids: pc.equal(ids, ""), "is empty", faults)
    _raise(faults, rows, "the labels are wrong")
    table = pa.table({name: columns[name] for name in LABEL_COLUMNS})
    once = table.group_by(list(LABEL_COLUMNS), use_threads=False).aggregate([])
    return once.sort_by([("known_at", "ascending"), ("request_id", "ascending")])


def column_type(name: str, given: pa.DataType) -> pa.DataType | None:
    """The type that a column of predictions is kept in; None for an unknown one."""
    if name in PREDICTION_COLUMNS:
        return PREDICTION_COLUMNS[name]
    prefix, _, rest = name.partition(".")
    if not rest or prefix not in ("f", "t"):
        return None
    if prefix == "t":
        return INSTANT
    numeric = pa.types.is_integer(given) or pa.types.is_floating(given) or pa.types.is_null(given)
    if numeric or pa.types.is_decimal(given) or pa.types.is_boolean(given):
        return pa.float64()
    return INSTANT if pa.types.is_timestamp(given) else pa.string()


def to_parquet(table: pa.Table) -> bytes:
    """The bytes of a Parquet file; equal tables give equal bytes."""
    sink = io.BytesIO()
    # A dictionary of what is nearly always another value costs time and space.
    repeated = [
        field.name
        for field in table.schema
        if pa.types.is_string(field.type) and field.name not in _UNIQUE
    ]
    pq.write_table(table, sink, compression="zstd", row_group_size=1 << 16, use_dictionary=repeated)
    return sink.getvalue()


def scan(sources: Sequence[Source]) -> pl.LazyFrame:
    """The rows of Parquet objects, one after the other; a column that one lacks is null there."""
    frames = [pl.scan_parquet(source) for source in sources]
    return frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal_relaxed")


def join_labels(
    rows: pl.LazyFrame, batches: Sequence[Source], as_of: datetime | None
) -> pl.LazyFrame:
    """`rows` with ``label`` and ``label_at``: the label known last, null where there is none.

    A label names the request, or the prediction where that carries no request id.

    Args:
        rows: With ``id``, ``request_id`` and ``at``.
        batches: Label objects, in the order in which they came.
        as_of: Labels that became known later do not count.
    """
    if not batches:
        nothing = pl.lit(None, pl.Float64).alias("label")
        never = pl.lit(None, pl.Datetime("us", "UTC")).alias("label_at")
        return rows.with_columns(nothing, never)
    labels = scan(batches)
    if as_of is not None:
        labels = labels.filter(pl.col("known_at") <= instant(as_of))
    last = (
        labels.sort("known_at", maintain_order=True)
        .unique("request_id", keep="last", maintain_order=True)
        .select(pl.col("request_id").alias("$key"), "label", label_at="known_at")
    )
    named = pl.when(pl.col("request_id") == "").then("id").otherwise("request_id")
    joined = rows.with_columns(named.alias("$key")).join(
        last, on="$key", how="left", maintain_order="left"
    )
    counts = pl.col("label_at") >= pl.col("at") - LABEL_SLACK
    return joined.drop("$key").with_columns(
        pl.when(counts).then(pl.col("label")).alias("label"),
        pl.when(counts).then(pl.col("label_at")).alias("label_at"),
    )


def instant(at: datetime) -> pl.Expr:
    """A time as an expression; as a number, since Polars makes a series of each datetime."""
    return pl.lit(to_micros(at), pl.Int64).cast(pl.Datetime("us", "UTC"))


def to_arrow(frame: pl.DataFrame) -> pa.Table:
    """An Arrow table with plain strings and timestamps, as the other services take them."""
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    plain = [
        field.with_type(pa.string()) if pa.types.is_large_string(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(plain))


def pick(frame: pl.LazyFrame, columns: Sequence[str]) -> pl.LazyFrame:
    """Just these columns; raises NotFound with near names for one that there is not."""
    known = frame.collect_schema().names()
    for name in columns:
        if name not in known:
            raise NotFound.named("column of the predictions", name, known)
    return frame.select(columns)


def _cast(
    rows: pa.Table,
    name: str,
    wanted: pa.DataType,
    into: dict[str, pa.Array],
    faults: list[Fault],
) -> None:
    column = rows.column(name)
    if not _same_kind(column.type, wanted):
        faults.append(Fault(name, f"expected {wanted}, got {column.type}"))
        return
    try:
        # A timestamp may lose its nanoseconds; a number may lose nothing.
        safe = not pa.types.is_timestamp(wanted)
        into[name] = pc.cast(column, wanted, safe=safe)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        faults.append(Fault(name, f"expected {wanted}, got {column.type}: {error}"))


def _same_kind(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a cast would keep the meaning: text is not read as a number or a time."""
    if pa.types.is_dictionary(given):
        return _same_kind(given.value_type, wanted)
    if pa.types.is_null(given) or pa.types.is_string(wanted):
        text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
        return pa.types.is_null(given) or any(test(given) for test in text)
    if pa.types.is_timestamp(wanted):
        return bool(pa.types.is_timestamp(given))
    numbers = (
        pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean
    )  # fmt: skip
    return any(test(given) for test in numbers)


def _refuse_rows(
    columns: dict[str, pa.Array], name: str, test: object, what: str, faults: list[Fault]
) -> None:
    if name in columns and callable(test):
        _refuse_where(test(columns[name]), name, what, faults)


def _refuse_where(mask: pa.Array, name: str, what: str, faults: list[Fault]) -> None:
    # By NumPy: Arrow's own indices_nonzero crashes on a chunked array without rows (25.0).
    broken = np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False))
    faults += [Fault(f"rows[{row}].{name}", what) for row in broken]


def _raise(faults: list[Fault], rows: pa.Table, summary: str) -> None:
    if not faults and rows.num_rows == 0:
        faults = [Fault("rows", "there are none")]
    if faults:
        raise InvalidInput(summary, faults)
