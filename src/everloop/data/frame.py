"""Table: an Arrow table that remembers where its rows come from and what was done to them.

What ``drop_where`` and ``set_where`` do is kept as pending changes with the rows concerned; the
pipeline that runs the step writes them to the row ledger when the step is committed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from everloop.data import sql
from everloop.errors import Fault, InvalidInput, NotFound

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

__all__ = ["PendingChange", "Source", "Table", "heed_zones"]

_NO_ZONES = "PYARROW_IGNORE_TIMEZONE"


class Source(NamedTuple):
    """A dataset version that rows were read from."""

    dataset: str
    version: int
    digest: str


class PendingChange(NamedTuple):
    """Rows that a rule dropped or changed, not yet in the ledger.

    Attributes:
        dataset: Where the rows come from; the first source where there are several, or empty.
        rows: Of dropped rows all columns; of changed ones the key, the column with its old values
            and ``<column>.new`` with the new ones.
    """

    dataset: str
    rule: str
    action: Literal["dropped", "changed"]
    reason: str
    owner: str
    rows: pa.Table


class Table:
    """Rows in Arrow columns. Immutable: every method that changes something gives a new one.

    Making one copies no data. SQL is DuckDB's, over the table's columns; timestamps are seen in
    UTC without a zone and NaN as null. A condition that is null for a row does not hold for it.

    Args:
        rows: The columns.
        sources: The dataset versions that the rows come from.
        key: Columns that together name a row, if known; missing ones are left out. It stays through
            whatever works row by row; a value set in a key column ends it. Of rows without a key,
            and of what joins and aggregations make, only `sources` are known.
        changes: Pending changes that led to these rows.
    """

    __slots__ = ("_changes", "_key", "_rows", "_sources")

    def __init__(
        self,
        rows: pa.Table,
        *,
        sources: Iterable[tuple[str, int, str]] = (),
        key: Iterable[str] = (),
        changes: Iterable[PendingChange] = (),
    ) -> None:
        self._rows = rows
        self._sources = tuple(Source(*source) for source in sources)
        self._key = tuple(key)
        self._changes = tuple(changes)

    @classmethod
    def of(cls, data: Any, *, key: Iterable[str] = ()) -> Table:
        """Read `data` without copying where that can be.

        Takes a Table, anything with ``__arrow_c_stream__`` (Arrow, Polars, DuckDB), a pandas
        frame (an index with a name becomes columns, NaN becomes null), a dict of columns or a
        list of dicts.

        Raises:
            InvalidInput: If it is none of these, or a column holds values of several types.
        """
        if isinstance(data, Table):
            return data
        heed_zones()
        try:
            rows = _read(data)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            first = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
            raise InvalidInput(
                f"no table can be made of this {type(data).__name__}: {first}",
                hint="give columns of one type each, all of one length",
            ) from error
        return cls(rows, key=key)

    @classmethod
    def concat(cls, tables: Sequence[Table]) -> Table:
        """The rows of all, in order; a column that one lacks is null there.

        Raises:
            InvalidInput: If there is no table, or a column has several types.
        """
        if not tables:
            raise InvalidInput("there is no table to concatenate")
        try:
            rows = pa.concat_tables([t._rows for t in tables], promote_options="default")
        except pa.ArrowException as error:
            raise InvalidInput(f"the tables do not fit together: {error}") from error
        sources = dict.fromkeys(source for t in tables for source in t._sources)
        changes = [change for t in tables for change in t._changes]
        key = tables[0]._key if len({t._key for t in tables}) == 1 else ()
        return cls(rows, sources=sources, key=key, changes=changes)

    @property
    def num_rows(self) -> int:
        return int(self._rows.num_rows)

    @property
    def column_names(self) -> list[str]:
        return list(self._rows.column_names)

    @property
    def schema(self) -> pa.Schema:
        """Names and Arrow types of the columns."""
        return self._rows.schema

    @property
    def sources(self) -> tuple[Source, ...]:
        """The dataset versions that the rows come from."""
        return self._sources

    @property
    def key(self) -> tuple[str, ...]:
        """Columns that together name a row; empty if not known."""
        return self._key

    @property
    def changes(self) -> tuple[PendingChange, ...]:
        """What was dropped or changed since the rows were read, and is not in the ledger yet."""
        return self._changes

    def settled(self) -> Table:
        """The same rows without pending changes: for whoever has written them to the ledger."""
        return self._with(changes=())

    def drop_where(self, rule: str, condition: str, *, reason: str, owner: str = "") -> Table:
        """Leave out the rows for which `condition` is true, and remember them.

        Args:
            rule: Name of the rule, for the ledger.
            condition: SQL over the columns.
            reason: Why such a row must go, for people.
            owner: Who answers for the rule.

        Raises:
            InvalidInput: If the condition is no SQL over these columns; names the rule.
        """
        found = sql.matching_rows(self._rows, rule, condition)
        return self.drop_rows(rule, found, reason=reason, owner=owner)

    def drop_rows(self, rule: str, rows: Any, *, reason: str, owner: str = "") -> Table:
        """Leave out the rows with these numbers, and remember them; as :meth:`drop_where`.

        Raises:
            InvalidInput: If there is no row with one of these numbers.
        """
        found = np.unique(self._numbers(rule, rows))
        if not found.size:
            return self
        keep = np.ones(self.num_rows, dtype=bool)
        keep[found] = False
        change = self._change(rule, "dropped", reason, owner, self._rows.take(pa.array(found)))
        return self._with(self._rows.filter(pa.array(keep)), changes=(*self._changes, change))

    def set_where(
        self, rule: str, column: str, value: str, condition: str, *, reason: str, owner: str = ""
    ) -> Table:
        """Give `column` the `value` in the rows for which `condition` is true; remember the old.

        Args:
            rule: Name of the rule, for the ledger.
            column: The column; it keeps its type.
            value: SQL over the columns.
            condition: SQL over the columns.
            reason: Why the value must change, for people.
            owner: Who answers for the rule.

        Raises:
            NotFound: If there is no such column.
            InvalidInput: If an expression is no SQL over these columns, or a value does not fit.
        """
        self._column(column)
        found = sql.matching_rows(self._rows, rule, condition)
        if not found.size:
            return self
        values = sql.evaluate(self._rows.take(pa.array(found)), rule, value)
        return self.set_rows(rule, column, found, values, reason=reason, owner=owner)

    def set_rows(
        self, rule: str, column: str, rows: Any, values: Any, *, reason: str, owner: str = ""
    ) -> Table:
        """Give `column` these `values` in the rows with these numbers; as :meth:`set_where`.

        Args:
            rule: Name of the rule, for the ledger.
            column: The column; it keeps its type.
            rows: Row numbers, each once.
            values: One for each of `rows`.
            reason: Why the values must change, for people.
            owner: Who answers for the rule.

        Raises:
            NotFound: If there is no such column.
            InvalidInput: If there is no such row, or a value does not fit.
        """
        old = self._column(column)
        given = self._numbers(rule, rows)
        if not given.size:
            return self
        order = np.argsort(given, kind="stable")
        found = pa.array(given[order])
        new = self._fitting(rule, column, values).take(pa.array(order))
        mask = np.zeros(self.num_rows, dtype=bool)
        mask[given] = True
        plain = old.type.value_type if pa.types.is_dictionary(old.type) else old.type
        dense = (part.cast(plain).combine_chunks() for part in (old, new))
        replaced = pc.replace_with_mask(next(dense), mask, next(dense)).cast(old.type)
        position = self._rows.schema.get_field_index(column)
        table = self._rows.set_column(position, column, replaced)
        shown = [name for name in self.column_names if name in {*self._key_or_all(), column}]
        before = self._rows.select(shown).take(found).append_column(f"{column}.new", new)
        change = self._change(rule, "changed", reason, owner, before)
        key = () if column in self._key else self._key
        return self._with(table, changes=(*self._changes, change), key=key)

    def filter(self, condition: str) -> Table:
        """The rows for which `condition` is true. A choice, not a correction: nothing is recorded.

        Raises:
            InvalidInput: If the condition is no SQL over these columns.
        """
        found = sql.matching_rows(self._rows, "filter", condition)
        return self if found.size == self.num_rows else self.take(found)

    def take(self, rows: Any) -> Table:
        """The rows with these numbers, in this order."""
        return self._with(self._rows.take(pa.array(rows, pa.int64())))

    def sort(self, *by: str, descending: bool = False) -> Table:
        """The rows in the order of these columns, nulls last; equal rows stay in their order.

        Raises:
            NotFound: If there is no such column.
            InvalidInput: If no column is named.
        """
        if not by:
            raise InvalidInput("name a column to sort by")
        for name in by:
            self._column(name)
        order = "descending" if descending else "ascending"
        numbered = self._rows.select(list(by)).append_column("", pa.array(np.arange(self.num_rows)))
        keys = [*((name, order) for name in by), ("", "ascending")]
        return self.take(pc.sort_indices(numbered, sort_keys=keys).cast(pa.int64()))

    def select(self, names: Sequence[str]) -> Table:
        """Only these columns, in this order.

        Raises:
            NotFound: If there is no such column.
        """
        for name in names:
            self._column(name)
        return self._with(self._rows.select(list(names)))

    def with_columns(self, columns: Mapping[str, Any] | None = None, /, **more: Any) -> Table:
        """Add or replace columns: text is SQL over the columns as they were, all else is values.

        Raises:
            InvalidInput: If an expression is no SQL, or values are not one for each row.
        """
        rows, key = self._rows, self._key
        for name, given in {**(columns or {}), **more}.items():
            value = self._values(name, given)
            position = rows.schema.get_field_index(name)
            if position < 0:
                rows = rows.append_column(name, value)
            else:
                rows = rows.set_column(position, name, value)
            if name in key and not _same(rows.column(name), self._rows, name):
                key = ()  # what names a row now names another one, or none
        return self._with(rows, key=key)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column.

        Raises:
            NotFound: If there is no such column; with the nearest names.
        """
        return self._column(name)

    def to_arrow(self) -> pa.Table:
        """The rows as an Arrow table, not copied."""
        return self._rows

    def to_polars(self) -> pl.DataFrame:
        """The rows as a Polars frame; numbers are not copied."""
        import polars as pl

        frame = pl.from_arrow(self._rows, rechunk=False)
        assert isinstance(frame, pl.DataFrame)
        return frame

    def to_duckdb(self, connection: DuckDBPyConnection | None = None) -> DuckDBPyRelation:
        """The rows as a DuckDB relation, not copied; of `connection`, or of one of its own."""
        import duckdb

        return (connection or duckdb.connect()).from_arrow(self._rows)

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a pandas frame; needs pandas."""
        return self._rows.to_pandas()

    def to_numpy(self, names: Sequence[str] | None = None) -> np.ndarray:
        """Columns side by side: float64 of shape (rows, columns), null as NaN.

        Raises:
            NotFound: If there is no such column.
            InvalidInput: With each column that holds no numbers.
        """
        names = self.column_names if names is None else names
        matrix = np.empty((self.num_rows, len(names)), dtype=np.float64)
        faults = []
        for position, name in enumerate(names):
            column = self._column(name)
            try:
                matrix[:, position] = _floats(column)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                faults.append(Fault(name, f"{column.type} is no number"))
        if faults:
            raise InvalidInput("only numbers go into a matrix", faults)
        return matrix

    def equals(self, other: Table) -> bool:
        """Whether both hold equal rows; sources and changes do not count."""
        return bool(self._rows.equals(other._rows))

    def __len__(self) -> int:
        return self.num_rows

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._rows.__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        came = "".join(f" {s.dataset}@{s.version}" for s in self._sources)
        return f"<Table{came}: {self.num_rows} rows x {len(self.column_names)} columns>"

    def _with(
        self,
        rows: pa.Table | None = None,
        *,
        changes: tuple[PendingChange, ...] | None = None,
        key: tuple[str, ...] | None = None,
    ) -> Table:
        return Table(
            self._rows if rows is None else rows,
            sources=self._sources,
            key=self._key if key is None else key,
            changes=self._changes if changes is None else changes,
        )

    def _change(
        self,
        rule: str,
        action: Literal["dropped", "changed"],
        reason: str,
        owner: str,
        rows: pa.Table,
    ) -> PendingChange:
        dataset = self._sources[0].dataset if self._sources else ""
        return PendingChange(dataset, rule, action, reason, owner, rows)

    def _key_or_all(self) -> list[str]:
        known = [name for name in self._key if name in self.column_names]
        return known if known and len(known) == len(self._key) else self.column_names

    def _column(self, name: str) -> pa.ChunkedArray:
        if name not in self._rows.column_names:
            raise NotFound.named("column", name, self._rows.column_names)
        return self._rows.column(name)

    def _numbers(self, rule: str, rows: Any) -> np.ndarray:
        found = np.asarray(rows, dtype=np.int64)
        wrong = (found < 0) | (found >= self.num_rows)
        if wrong.any():
            fault = Fault(rule, f"no row {int(found[wrong][0])} among {self.num_rows}")
            raise InvalidInput("rows cannot be found by number", [fault])
        return found

    def _fitting(self, rule: str, column: str, values: Any) -> pa.ChunkedArray:
        """`values` in the type of `column`."""
        kind = self._column(column).type
        try:
            given = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
            return given.cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            why = str(error).splitlines()[0]
            raise InvalidInput(
                "a value cannot be set", [Fault(rule, f"{column} is {kind}: {why}")]
            ) from error

    def _values(self, name: str, given: Any) -> pa.ChunkedArray | pa.Array:
        if isinstance(given, str):
            return sql.evaluate(self._rows, name, given)
        heed_zones()
        try:
            values = given if isinstance(given, pa.Array | pa.ChunkedArray) else pa.array(given)
        except (pa.ArrowException, TypeError) as error:
            why = str(error).splitlines()[0]
            raise InvalidInput("a column cannot be made", [Fault(name, why)]) from error
        if len(values) != self.num_rows:
            wrong = Fault(name, f"{len(values)} values for {self.num_rows} rows")
            raise InvalidInput("a column cannot be made", [wrong])
        return values


def heed_zones() -> None:
    """Let Arrow heed the zones of times, which Pandera tells the whole process not to do.

    As it is imported it sets a variable for PySpark, under which 07:00-05:00 is read as 07:00 UTC.
    """
    if _NO_ZONES in os.environ and "pyspark" not in sys.modules:
        del os.environ[_NO_ZONES]


def _read(data: Any) -> pa.Table:
    if isinstance(data, pa.Table):
        return data
    if type(data).__module__.partition(".")[0] == "pandas":
        named = [name for name in data.index.names if name is not None]
        frame = data.reset_index(named) if named else data
        return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    if hasattr(data, "__arrow_c_stream__"):
        return pa.table(data)
    if isinstance(data, Mapping):
        return pa.table(dict(data))
    if isinstance(data, list) and all(isinstance(row, Mapping) for row in data):
        # Every row's columns: Arrow's own from_pylist drops those that the first row lacks.
        names = dict.fromkeys(name for row in data for name in row)
        return pa.table({name: [row.get(name) for row in data] for name in names})
    raise TypeError("it has no Arrow stream and is no dict, list of dicts or pandas frame")


def _same(column: pa.ChunkedArray, rows: pa.Table, name: str) -> bool:
    if name not in rows.column_names:
        return False
    old = rows.column(name)
    return bool(column.type == old.type and column.equals(old))


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    kind = column.type
    # Arrow would read numbers out of text, and count the days of a time.
    numbers = (
        pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean,
        pa.types.is_null,
    )  # fmt: skip
    if not any(is_one(kind) for is_one in numbers):
        raise pa.ArrowInvalid("no numbers")
    cast = column if pa.types.is_float64(kind) else column.cast(pa.float64(), safe=False)
    filled: np.ndarray = pc.fill_null(cast, np.nan).to_numpy()
    return filled
