"""What a search looks at: rows with their key, which columns hold personal data, and arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from everloop.core.context import current_workspace, has_workspace
from everloop.core.schema import Field, Schema
from everloop.data.api import read
from everloop.data.frame import Source, Table
from everloop.errors import Fault, InvalidInput, NotFound

__all__ = ["Classes", "Looked", "classes_of", "features_of", "look", "matrix_of", "number_columns"]


class Looked(NamedTuple):
    """Rows to search.

    Attributes:
        key: Columns that together name a row; empty if not known.
        fields: What is known of the columns.
    """

    table: Table
    key: tuple[str, ...]
    fields: dict[str, Field]

    @property
    def personal(self) -> frozenset[str]:
        """Columns whose values nobody is shown."""
        return frozenset(name for name, field in self.fields.items() if field.pii)

    @property
    def ref(self) -> str:
        """The version, where the rows are of one."""
        sources = self.table.sources
        return f"{sources[0].dataset}@{sources[0].version}" if len(sources) == 1 else ""

    def semantic(self, name: str) -> str:
        """What the values of a column mean, or empty."""
        field = self.fields.get(name)
        return field.semantic if field else ""


def look(rows: Any, schema: Schema | None = None) -> Looked:
    """Read `rows`: the name of a dataset, or anything that ``Table.of`` takes.

    Args:
        schema: Names the key, the meaning of columns and which are personal; that of the version
            where the rows were read from one and none is given.

    Raises:
        NotFound: If there is no such dataset or version.
        InvalidInput: If no table can be made of it.
    """
    if isinstance(rows, str):
        rows = read(rows)
        if not isinstance(rows, Table):
            raise InvalidInput("these are files, and a table is wanted")
    table = Table.of(rows)
    names = table.column_names
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InvalidInput("columns stand twice", [Fault(name, "stands twice") for name in twice])
    known = [schema] if schema else [_schema_of(source) for source in table.sources]
    fields = {f.name: f for one in reversed(known) if one for f in one.fields}
    key = table.key or next((one.key for one in known if one and one.key), ())
    if not set(key) <= set(names):
        key = ()
    return Looked(table, tuple(key), {name: fields[name] for name in names if name in fields})


def _schema_of(source: Source) -> Schema | None:
    if not has_workspace():
        return None
    try:
        found = current_workspace().data.version(source.dataset, source.version)
    except NotFound:  # read from another workspace
        return None
    return found.schema if found.digest == source.digest else None


class Classes(NamedTuple):
    """A column of labels: the class of each row from 0 (-1: missing), and the sorted classes."""

    codes: npt.NDArray[np.int64]
    values: tuple[Any, ...]


def classes_of(table: Table, name: str, classes: Sequence[Any] | None = None) -> Classes:
    """The labels in the column `name`; NaN is missing.

    Args:
        classes: All classes in their order; those that occur, sorted, without.

    Raises:
        NotFound: If there is no such column.
        InvalidInput: If its values cannot be classes, or one is none of `classes`.
    """
    column = plain_values(table.column(name))
    if pa.types.is_nested(column.type):
        raise InvalidInput("labels must be classes", [Fault(name, f"{column.type} is no class")])
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    found = encoded.dictionary.to_pylist()
    if classes is None:
        order = sorted(value for value in found if value is not None)
    else:
        order = list(classes)
        unknown = [value for value in found if value is not None and value not in order]
        if unknown:
            shown = ", ".join(map(str, unknown[:5]))
            raise InvalidInput(
                f"{len(unknown)} labels are none of the classes",
                [Fault(name, f"{shown}{', ...' if len(unknown) > 5 else ''}")],
                hint="list every class, in the order of the columns of the probabilities",
            )
        if len(set(order)) < len(order):
            raise InvalidInput("a class stands twice", [Fault("classes", str(order)[:200])])
    place = {value: number for number, value in enumerate(order)}
    codes = np.array([-1 if v is None else place[v] for v in found], np.int64)
    index = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    each = np.where(index < 0, -1, codes[index]) if len(codes) else np.full(len(index), -1)
    return Classes(each.astype(np.int64), tuple(order))


def plain_values(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without dictionaries, and with NaN as null."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if isinstance(column, pa.Array):
        column = pa.chunked_array([column])
    return column


def features_of(
    looked: Looked, wanted: Iterable[str] | None, without: Iterable[str]
) -> tuple[str, ...]:
    """The columns to measure by: those `wanted`, or all numbers that are neither label nor name.

    Raises:
        NotFound: If one that is wanted is not there.
        InvalidInput: If there is none.
    """
    if wanted is not None:
        names = tuple(wanted)
        for name in names:
            looked.table.column(name)
    else:
        left_out = {*without, *looked.key, *looked.personal}
        names = tuple(
            field.name
            for field in looked.table.schema
            if field.name not in left_out
            and looked.semantic(field.name) not in ("id", "target", "timestamp")
            and _is_number(field.type)
        )
    if not names:
        raise InvalidInput("there is no feature to measure by", hint='give features=["...", ...]')
    return names


def number_columns(
    one: Looked, other: Looked, wanted: Sequence[str] | None, without: Iterable[str]
) -> list[str]:
    """The columns of numbers that both have: of those `wanted`, or of all that are no names."""
    left_out = {*without, *one.key, *one.personal, *other.personal} if wanted is None else set()
    there = {field.name: field.type for field in other.table.schema}
    return [
        field.name
        for field in one.table.schema
        if field.name in (there if wanted is None else wanted)
        and field.name not in left_out
        and (wanted is not None or one.semantic(field.name) not in ("id", "target", "timestamp"))
        and _is_number(field.type)
        and _is_number(there[field.name])
    ]


def _is_number(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return any(test(kind) for test in tests)


def matrix_of(tables: Sequence[Table], names: Sequence[str]) -> list[npt.NDArray[np.float32]]:
    """Standardised features of each table, float32 of shape (rows, features).

    Mean and spread are of the first table. What is missing or infinite is its mean; a feature that
    does not vary there counts by its plain difference.

    Raises:
        InvalidInput: With each column that holds no numbers.
    """
    found = [np.empty((len(table), len(names)), np.float32) for table in tables]
    for position, name in enumerate(names):
        mean = spread = 0.0
        for number, table in enumerate(tables):
            values = table.to_numpy([name])[:, 0]
            known = np.isfinite(values)
            if not number:
                seen = values[known]
                # Scaled first: the squares of huge integers would overflow a float32.
                mean = float(seen.mean()) if len(seen) else 0.0
                spread = float(seen.std()) if len(seen) else 0.0
            values = (values - mean) / (spread if spread > 0 else 1.0)
            found[number][:, position] = np.where(known, np.clip(values, -1e6, 1e6), 0)
    return found
