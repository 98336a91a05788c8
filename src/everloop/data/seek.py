"""Whom an erasure is of: values of columns, sought in tables, in logs and in stored results.

A row is of the subject if each of the columns holds one of the values given for it. A number and
its text are the same value, as one dataset has an id as a number and the next one as text.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from everloop.core.schema import canonical_json
from everloop.core.seal import mac_of
from everloop.core.time import parse_instant
from everloop.errors import Fault, InvalidInput

__all__ = ["ERASED", "Sought", "json_of"]

#: Stands in a text of the catalog for what was erased.
ERASED = "(erased)"
#: Values that a receipt hashes one by one.
_LISTED = 1_000
_MOST = 1_000_000

Mask = np.ndarray


class Sought:
    """The values of a subject, or of many.

    Args:
        where: By column one value or a list of them; texts of times may be ISO 8601.

    Raises:
        InvalidInput: With every fault: nothing given, nulls, NaN, nested values, too many.
    """

    def __init__(self, where: Mapping[str, Any]) -> None:
        self.values: dict[str, list[Any]] = {}
        faults = []
        for column, given in where.items():
            values = list(given) if isinstance(given, list | tuple | set | frozenset) else [given]
            if not column or not values:
                faults.append(Fault(f"where.{column}", "names no column, or no value"))
            if len(values) > _MOST:
                faults.append(Fault(f"where.{column}", f"more than {_MOST} values"))
            for n, value in enumerate(values[:_MOST]):
                if fault := _fault(value):
                    at = f"where.{column}" if len(values) == 1 else f"where.{column}[{n}]"
                    faults.append(Fault(at, fault))
            self.values[column] = values
        if not where:
            faults.append(Fault("where", "is empty"))
        if faults:
            raise InvalidInput(
                "the subject cannot be sought like this",
                faults,
                hint="name it by columns and values, such as id=4711",
            )
        self._only: dict[str, Sought] = {}
        self._fitting: dict[tuple[str, pa.DataType], pa.Array] = {}
        self._sorted: dict[tuple[str, pa.DataType], list[Any]] = {}
        self._texts = {
            name: {text for value in values for text in _texts_of(value)}
            for name, values in self.values.items()
        }

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it is named by, sorted."""
        return tuple(sorted(self.values))

    @property
    def count(self) -> int:
        """How many values were given."""
        return sum(map(len, self.values.values()))

    def only(self, column: str) -> Sought:
        """The part of it that one column says."""
        if column not in self._only:
            self._only[column] = Sought({column: self.values[column]})
        return self._only[column]

    def hashes(self, key: str) -> tuple[str, tuple[str, ...]]:
        """Keyed hash of all of it, and of each value where they are not too many, sorted."""
        each = sorted(
            mac_of(canonical_json([name, text]), key)
            for name, texts in self._first_texts()
            for text in texts
        )
        whole = mac_of("\n".join(["subject", *each]).encode(), key)
        return whole, tuple(each) if len(each) <= _LISTED else ()

    def _first_texts(self) -> Iterator[tuple[str, set[str]]]:
        for name, values in self.values.items():
            yield name, {next(iter(_texts_of(value))) for value in values}

    # Tables

    def mask(self, rows: pa.Table, names: Mapping[str, str] | None = None) -> Mask | None:
        """Which rows are of the subject; None if a column is not there.

        Args:
            rows: Any table, also with lists in a column: one value among them is enough.
            names: What columns are called there, by their names here.
        """
        mask: Mask | None = None
        for column in self.values:
            name = (names or {}).get(column, column)
            if name not in rows.column_names:
                return None
            found = self._in(column, rows.column(name))
            mask = found if mask is None else mask & found
        return mask

    def _in(self, column: str, values: pa.ChunkedArray) -> Mask:
        kind = values.type
        if pa.types.is_dictionary(kind):
            return self._in(column, values.cast(kind.value_type))
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            found = np.zeros(len(values), bool)
            whole = values.combine_chunks()
            inner = self._in(column, pa.chunked_array([pc.list_flatten(whole)]))
            found[pc.list_parent_indices(whole).to_numpy(zero_copy_only=False)[inner]] = True
            return found
        wanted = self.fitting(column, kind)
        if not len(wanted):
            return np.zeros(len(values), bool)
        found = pc.is_in(values, value_set=wanted)
        mask: Mask = found.to_numpy()
        return mask

    def fitting(self, column: str, kind: pa.DataType) -> pa.Array:
        """Those of the values that a column of this type can hold, as it would hold them."""
        if (column, kind) not in self._fitting:
            self._fitting[column, kind] = _all_as(self.values[column], kind)
        return self._fitting[column, kind]

    def may_be_in(self, file: pq.ParquetFile) -> bool:
        """Whether the statistics of a Parquet file leave room for the subject."""
        metadata = file.metadata
        for column in self.values:
            if column not in file.schema_arrow.names:
                return False
            kind = file.schema_arrow.field(column).type
            wanted = self._in_order(column, kind)
            if wanted is None:
                continue
            place = file.schema.names.index(column)
            if not wanted or not any(
                _has_room(metadata.row_group(n).column(place), wanted)
                for n in range(metadata.num_row_groups)
            ):
                return False
        return True

    def _in_order(self, column: str, kind: pa.DataType) -> list[Any] | None:
        """The fitting values in order; None where order is nothing to rely on."""
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind)):
            return None
        if (column, kind) not in self._sorted:
            self._sorted[column, kind] = sorted(self.fitting(column, kind).to_pylist())
        return self._sorted[column, kind]

    # Texts and JSON

    def is_in_json(self, node: Any) -> bool:
        """Whether a JSON value speaks of the subject; see ``without``."""
        return self.without(node)[1] > 0

    def without(self, node: Any) -> tuple[Any, int]:
        """A JSON value without the subject, and how many values went.

        Within an object that has all the columns with values of the subject, those become null.
        Below an object that tells of one column (a key or ``name`` of that name), each text that is
        a value of it is replaced: there it stands for a category, or in a list of them.
        """
        count = 0
        if isinstance(node, dict):
            own = all(self._is_text_of(c, node.get(c)) for c in self.values)
            made: dict[str, Any] = {}
            about = node.get("name")
            for key, value in node.items():
                if own and key in self.values:
                    made[key], n = None, 1
                elif key in self.values and isinstance(value, dict | list):
                    made[key], n = self._scrubbed(value, key)
                elif isinstance(about, str) and about in self.values and key != "name":
                    made[key], n = self._scrubbed(value, about)
                else:
                    made[key], n = self.without(value)
                count += n
            return made, count
        if isinstance(node, list):
            parts = [self.without(item) for item in node]
            return [part for part, _ in parts], sum(n for _, n in parts)
        return node, 0

    def _scrubbed(self, node: Any, column: str) -> tuple[Any, int]:
        if isinstance(node, str):
            return (ERASED, 1) if node in self._texts[column] else (node, 0)
        if isinstance(node, list):
            parts = [self._scrubbed(item, column) for item in node]
            return [part for part, _ in parts], sum(n for _, n in parts)
        if isinstance(node, dict):
            made, count = {}, 0
            for key, value in node.items():
                hit = key in self._texts[column]
                made[ERASED if hit else key], n = self._scrubbed(value, column)
                count += n + hit
            return made, count
        return node, 0

    def _is_text_of(self, column: str, value: Any) -> bool:
        if value is None or isinstance(value, bool | dict | list):
            return False
        return any(text in self._texts[column] for text in _texts_of(value))

    def texts(self, least: int) -> Iterator[bytes]:
        """The values as they stand in a text, those of so many letters at least."""
        for texts in self._texts.values():
            yield from (text.encode() for text in texts if len(text) >= least)

    def is_in_row(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of texts (of CSV) or of JSON values is of the subject."""
        return all(self._is_text_of(column, row.get(column)) for column in self.values)


def _fault(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "a null names nobody"
    if value == "" or value == b"":
        return "an empty text names nobody"
    if not isinstance(value, str | int | float | bool | bytes | datetime | date):
        return f"{type(value).__name__} is no value of a column"
    return ""


def _texts_of(value: Any) -> Iterator[str]:
    """How a value stands in JSON or CSV; the first one is what it is called."""
    if isinstance(value, bool):
        yield str(value).lower()
    elif isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        yield str(int(value))
        yield str(value)
    elif isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        yield moment.astimezone(UTC).isoformat()
        yield value.isoformat()
        yield moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
    elif isinstance(value, date):
        yield value.isoformat()
    elif isinstance(value, bytes):
        yield value.hex()
    else:
        yield str(value)


def _all_as(values: list[Any], kind: pa.DataType) -> pa.Array:
    try:  # all at once, which nearly always works
        return pa.array([made for v in values if (made := _plain(v, kind)) is not None], kind)
    except (pa.ArrowException, InvalidInput, OverflowError, TypeError, ValueError):
        return pa.array([made for value in values for made in _as(value, kind)], kind)


def _as(value: Any, kind: pa.DataType) -> Iterator[Any]:
    """The value as a column of a type holds it; nothing if none can."""
    try:
        plain = _plain(value, kind)
        if plain is not None:
            pa.scalar(plain, kind)
            yield plain
    except (pa.ArrowException, InvalidInput, OverflowError, TypeError, ValueError):
        return


def _plain(value: Any, kind: pa.DataType) -> Any:
    types = pa.types
    if types.is_boolean(kind):
        return value if isinstance(value, bool) else None
    if isinstance(value, bool):
        return None
    if types.is_integer(kind):
        number = float(value) if isinstance(value, str) and "." in value else value
        if isinstance(number, float) and not number.is_integer():
            return None
        return int(number) if isinstance(number, int | float | str) else None
    if types.is_floating(kind):
        return float(value) if isinstance(value, int | float | str) else None
    if types.is_string(kind) or types.is_large_string(kind):
        return next(iter(_texts_of(value)))
    if types.is_timestamp(kind):
        moment = parse_instant(value) if isinstance(value, str) else value
        if not isinstance(moment, datetime):
            return None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return moment if kind.tz else moment.astimezone(UTC).replace(tzinfo=None)
    if types.is_date(kind):
        return parse_instant(value).date() if isinstance(value, str) else value
    if types.is_binary(kind) or types.is_large_binary(kind):
        return value.encode() if isinstance(value, str) else value
    return value if types.is_decimal(kind) else None


def _has_room(column: pq.ColumnChunkMetaData, wanted: list[Any]) -> bool:
    statistics = column.statistics if column.is_stats_set else None
    if statistics is None or not statistics.has_min_max:
        return True
    first = bisect.bisect_left(wanted, statistics.min)
    return first < len(wanted) and bool(wanted[first] <= statistics.max)


def json_of(text: str | bytes) -> Any:
    """JSON, or None where it is none."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None
