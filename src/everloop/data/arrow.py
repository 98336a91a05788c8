"""Schemas and frames in Arrow: the types of a field, and the casts that lose nothing.

A cast that could change a value is never made in silence: text is not read as numbers, floats are
not rounded to integers, booleans are not counted. What widens (``int32`` to ``int64`` or to
``float64``) is taken, and so is a narrower integer where every value fits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from everloop.core.schema import Field, FieldType, Schema
from everloop.errors import Fault, InvalidInput, NotFound

__all__ = ["Conformed", "arrow_type", "conform", "field_type", "from_arrow_schema", "inspect"]

_TYPES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "uint16": pa.uint16(),
    "uint32": pa.uint32(),
    "uint64": pa.uint64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "binary": pa.binary(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "date": pa.date32(),
}
_NAMES: dict[pa.DataType, FieldType] = {kind: name for name, kind in _TYPES.items()}  # type: ignore[misc]


#: Types of views, and those that hold the same values in one piece.
_FLAT = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}


def arrow_type(name: str) -> pa.DataType:
    """The Arrow type of a field type; ``timestamp`` is microseconds in UTC."""
    return _TYPES[name]


def field_type(kind: pa.DataType) -> FieldType | None:
    """The field type that holds every value of an Arrow type, or None if there is none.

    A timestamp without a zone is taken as UTC. Nested types, decimals, times of day and durations
    have no field type; neither has a column of nulls alone, whose type cannot be told.
    """
    kind = _plain(kind)
    if pa.types.is_timestamp(kind):
        return "timestamp"
    if pa.types.is_date(kind):
        return "date"
    if pa.types.is_float16(kind):
        return "float32"
    if _is_text(kind):
        return "string"
    if _is_bytes(kind):
        return "binary"
    return _NAMES.get(kind)


def from_arrow_schema(schema: pa.Schema, **options: Any) -> Schema:
    """The schema of an Arrow schema: types and nullability, no rules.

    Args:
        schema: Of a frame.
        options: Of :class:`Schema`: ``key``, ``time``, ``checks``, ``extra``. Key columns become
            not nullable.

    Raises:
        InvalidInput: With every column that has no field type.
    """
    key = tuple(options.get("key", ()))
    fields, faults = [], []
    for column in schema:
        kind = field_type(column.type)
        if kind is None:
            faults.append(Fault(column.name, _no_type(column.type)))
        else:
            nullable = column.nullable and column.name not in key
            fields.append(Field(column.name, kind, nullable=nullable))
    if faults:
        raise InvalidInput("the frame has columns that no field can hold", faults)
    return Schema(tuple(fields), **options)


class Conformed(NamedTuple):
    """A frame beside its schema.

    Attributes:
        table: The columns that could be cast, in the order of the schema, then extra ones.
        columns: Faults of whole columns: missing, not listed, of a wrong type.
        rows: Faults of values that do not fit the wanted type, row by row.
    """

    table: pa.Table
    columns: list[Fault]
    rows: list[Fault]


def conform(table: pa.Table, schema: Schema) -> pa.Table:
    """`table` with the columns of `schema`, in its order and types; physically nullable.

    A schema with ``extra="allow"`` is open both ways: columns that it does not list stay, after
    the others, and a nullable column that is missing and not required is filled with nulls.

    Raises:
        InvalidInput: With every fault: columns missing, not listed or of a wrong type, then the
            values that do not fit (row numbers count from 0).
    """
    seen = inspect(table, schema)
    if seen.columns or seen.rows:
        raise InvalidInput("the frame does not fit the schema", [*seen.columns, *seen.rows])
    return seen.table


def inspect(table: pa.Table, schema: Schema) -> Conformed:
    """As :func:`conform`, but hand back the faults with the columns that are well."""
    names = table.column_names
    faults = [
        Fault(name, f"the frame has {names.count(name)} columns of this name")
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    doubled = {fault.path for fault in faults}
    columns: dict[str, pa.ChunkedArray] = {}
    rows: list[Fault] = []
    for field in schema.fields:
        if field.name in doubled:
            continue
        if field.name not in names:
            if schema.extra == "allow" and field.nullable and not field.required:
                columns[field.name] = _nulls(table.num_rows, _TYPES[field.type])
            else:
                faults.append(_missing(field, names, schema))
            continue
        cast = _cast(table.column(field.name), field)
        if isinstance(cast, Fault):
            faults.append(cast)
        elif isinstance(cast, list):
            rows += cast
        else:
            columns[field.name] = cast
    for name in names:
        if name not in schema.names and name not in doubled:
            if schema.extra == "refuse":
                faults.append(_extra(name, schema))
            else:
                columns[name] = table.column(name)
    return Conformed(pa.table(columns), faults, rows)


def _nulls(rows: int, kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([pa.nulls(rows, kind)], kind)


def _missing(field: Field, names: list[str], schema: Schema) -> Fault:
    near = NotFound.named("column", field.name, [n for n in names if n not in schema.names])
    asked = near.hint if near.hint.startswith("did you") else ""
    return Fault(field.name, f"the column is missing{'; ' + asked if asked else ''}")


def _extra(name: str, schema: Schema) -> Fault:
    near = NotFound.named("column", name, schema.names).hint
    asked = near if near.startswith("did you") else ""
    return Fault(name, f"the schema has no such column{'; ' + asked if asked else ''}")


def _no_type(kind: pa.DataType) -> str:
    if pa.types.is_null(kind):
        return "holds only nulls, so its type cannot be told; name it in a schema"
    return f"{kind} has no field type"


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _plain(kind.value_type)
    return kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _cast(column: pa.ChunkedArray, field: Field) -> pa.ChunkedArray | Fault | list[Fault]:
    wanted = _TYPES[field.type]
    if column.type == wanted:
        return column
    if pa.types.is_null(column.type):
        return _nulls(len(column), wanted)
    given = _plain(column.type)
    if not _may_become(given, wanted):
        return Fault(field.name, f"wanted {field.type}, got {column.type}{_advice(given, wanted)}")
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    if pa.types.is_dictionary(column.type):
        # Arrow decodes no dictionary of views, as categories of Polars are.
        flat = _FLAT.get(given, given)
        chunks = [chunk.dictionary.cast(flat).take(chunk.indices) for chunk in column.chunks]
        column = pa.chunked_array(chunks, flat)
    try:
        cast = column.cast(wanted)
    except pa.ArrowInvalid as error:
        return _lossy(column, field) or Fault(field.name, str(error).splitlines()[0])
    if pa.types.is_floating(given) and pa.types.is_float32(wanted):
        overflown = pc.and_(pc.is_inf(cast), pc.is_finite(column))
        return _row_faults(column, field, overflown) or cast
    return cast


def _may_become(given: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_integer(wanted):
        return bool(pa.types.is_integer(given))
    if pa.types.is_floating(wanted):
        return bool(pa.types.is_integer(given) or pa.types.is_floating(given))
    if pa.types.is_timestamp(wanted):
        return bool(pa.types.is_timestamp(given))
    if pa.types.is_date(wanted):
        return bool(pa.types.is_date(given))
    if pa.types.is_string(wanted):
        return _is_text(given)
    return _is_bytes(given) and bool(pa.types.is_binary(wanted))


def _advice(given: pa.DataType, wanted: pa.DataType) -> str:
    if pa.types.is_floating(given) and pa.types.is_integer(wanted):
        return "; nulls in a pandas column make floats of integers: use the type Int64"
    return ""


def _lossy(column: pa.ChunkedArray, field: Field) -> pa.ChunkedArray | list[Fault]:
    """The cast where it is exact although Arrow is wary, else the rows that it would change."""
    wanted = _TYPES[field.type]
    if pa.types.is_integer(wanted):
        return _row_faults(column, field, _outside(column, wanted))
    cast = column.cast(wanted, safe=False)
    back = cast.cast(column.type, safe=False)
    changed = pc.not_equal(back, column)
    if pa.types.is_integer(column.type):
        # The greatest float below 2^63 (2^64) is far from it; casting 2^63 back may saturate.
        top = float(2 ** (64 if pa.types.is_uint64(column.type) else 63))
        changed = pc.or_(changed, pc.greater_equal(cast.cast(pa.float64()), top))
    return _row_faults(column, field, changed) or cast


def _outside(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    have, want = _limits(column.type), _limits(wanted)
    low, high = max(have[0], want[0]), min(have[1], want[1])
    return pc.or_(
        pc.less(column, pa.scalar(low, column.type)),
        pc.greater(column, pa.scalar(high, column.type)),
    )


def _limits(kind: pa.DataType) -> tuple[int, int]:
    limits = np.iinfo(kind.to_pandas_dtype())
    return int(limits.min), int(limits.max)


def _row_faults(column: pa.ChunkedArray, field: Field, broken: pa.ChunkedArray) -> list[Fault]:
    rows = np.flatnonzero(pc.fill_null(broken, False).to_numpy())
    values = column.take(pa.array(rows)).cast(pa.string()).to_pylist()
    return [
        Fault(
            f"rows[{row}].{field.name}",
            f"does not fit {field.type}" if field.pii else f"{value} does not fit {field.type}",
        )
        for row, value in zip(rows.tolist(), values, strict=True)
    ]
