"""Columns of values as NumPy arrays with a mask of what is there; to and from Arrow.

Text is held as codes into a list of distinct words, so that an operation on text costs by the
distinct words and not by the rows. Instants are int64 microseconds since 1970, UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from everloop.core.expr import Kind
from everloop.core.schema import FieldType
from everloop.core.time import to_micros
from everloop.errors import InvalidInput

__all__ = ["Array", "Vector", "constant", "from_arrow", "from_values", "kind_of_arrow", "to_arrow"]

Array = npt.NDArray[Any]

_DTYPES: dict[Kind, Any] = {
    "bool": np.bool_,
    "int": np.int64,
    "float": np.float64,
    "timestamp": np.int64,
    "string": np.int32,
    "null": np.float64,
}
_ARROW: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "string": pa.string(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}


class Vector:
    """Values of one kind.

    Attributes:
        kind: What the values are.
        data: Shape (n,), or () for a constant that stands for every row. Codes if `words` is set.
        valid: Same shape, False where the value is null; None means that all are there.
        words: Distinct texts that the codes of `data` point into; None unless kind is string.
    """

    __slots__ = ("data", "kind", "valid", "words")

    def __init__(
        self,
        kind: Kind,
        data: Array,
        valid: Array | None = None,
        words: Sequence[str] | None = None,
    ) -> None:
        self.kind = kind
        self.data = data
        self.valid = valid
        self.words = words

    def take(self, positions: Array, found: Array | None = None) -> Vector:
        """The values at `positions`; null where `found` is False (positions there must exist)."""
        valid = found if self.valid is None else self.valid[positions]
        if self.valid is not None and found is not None:
            valid = self.valid[positions] & found
        return Vector(self.kind, self.data[positions], valid, self.words)

    def spread(self, rows: int) -> Vector:
        """The same with one value per row."""
        if self.data.shape == (rows,) and (self.valid is None or self.valid.shape == (rows,)):
            return self
        valid = None if self.valid is None else np.broadcast_to(self.valid, (rows,))
        return Vector(self.kind, np.broadcast_to(self.data, (rows,)), valid, self.words)

    def mask(self) -> Array:
        """`valid` as an array, whatever it is."""
        return np.ones(self.data.shape, np.bool_) if self.valid is None else self.valid

    def floats(self) -> Array:
        """The values as float64 with NaN for null. Raises TypeError for text."""
        if self.words is not None:
            raise TypeError("text has no float values")
        values = self.data.astype(np.float64)
        if self.valid is not None:
            values[~self.valid] = np.nan
        return values

    def python(self) -> list[Any]:
        """The values as Python objects, None for null; instants in microseconds."""
        values: list[Any] = self.data.tolist()
        if self.words is not None:
            values = [self.words[code] for code in values] if self.words else [None] * len(values)
        if self.valid is not None:
            values = [v if ok else None for v, ok in zip(values, self.valid.tolist(), strict=True)]
        return values


def kind_of_arrow(type: pa.DataType, name: str) -> Kind:
    """The kind of an Arrow type; InvalidInput names the column whose type nothing can read."""
    if pa.types.is_dictionary(type):
        return kind_of_arrow(type.value_type, name)
    if pa.types.is_boolean(type):
        return "bool"
    if pa.types.is_integer(type):
        return "int"
    if pa.types.is_floating(type) or pa.types.is_decimal(type):
        return "float"
    if pa.types.is_string(type) or pa.types.is_large_string(type) or type == pa.string_view():
        return "string"
    if pa.types.is_timestamp(type) or pa.types.is_date(type):
        return "timestamp"
    if pa.types.is_null(type):
        return "null"
    raise InvalidInput(f"column {name!r} is {type}, which features do not read")


def from_arrow(column: pa.Array | pa.ChunkedArray, name: str = "") -> Vector:
    """Read an Arrow column.

    Raises:
        InvalidInput: For a type that features do not read, an integer above 64 bits, or an instant
            that is not a whole microsecond.
    """
    kind = kind_of_arrow(column.type, name)
    if kind == "string":
        return _text_from_arrow(column)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = (
                pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
            )
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if kind == "null":
        return Vector("null", np.zeros(len(column)), np.zeros(len(column), np.bool_))
    valid = column.is_valid().to_numpy(zero_copy_only=False) if column.null_count else None
    try:
        if kind == "timestamp":
            column = _micros(column)
        elif kind == "int":
            column = column.cast(pa.int64())
        elif kind == "float":
            column = column.cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise InvalidInput(
            f"column {name!r} cannot be read: {error}",
            hint="instants are whole microseconds and integers 64 bits: round or cast them first",
        ) from None
    if column.null_count:
        column = pc.fill_null(column, pa.scalar(0).cast(column.type))
    return Vector(kind, column.to_numpy(zero_copy_only=False), valid)


def _micros(column: pa.Array) -> pa.Array:
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    return column.cast(pa.timestamp("us", tz=column.type.tz)).cast(pa.int64())


def _text_from_arrow(column: pa.Array | pa.ChunkedArray) -> Vector:
    # Chunks are joined first: unifying the dictionaries of many chunks takes far longer.
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    column = column.cast(pa.large_string())
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    coded = column.dictionary_encode()
    words, codes = coded.dictionary, coded.indices
    valid = codes.is_valid().to_numpy(zero_copy_only=False) if codes.null_count else None
    if codes.null_count:
        codes = codes.fill_null(0)
    return Vector("string", codes.to_numpy(), valid, words.to_pylist())


def from_values(kind: Kind, values: Iterable[Any]) -> Vector:
    """Read Python values of one kind; None is null. Instants are datetimes or microseconds."""
    if isinstance(values, np.ndarray) and values.dtype == _DTYPES[kind] and kind != "string":
        return Vector(kind, values)
    items = values.tolist() if isinstance(values, np.ndarray) else list(values)
    there = [item is not None for item in items]
    valid = None if all(there) else np.array(there, np.bool_)
    if kind == "string":
        places: dict[str, int] = {}
        codes = [0 if item is None else places.setdefault(item, len(places)) for item in items]
        return Vector("string", np.array(codes, np.int32), valid, list(places))
    if kind == "timestamp":
        items = [
            item if item is None or isinstance(item, int) else to_micros(item) for item in items
        ]
    data = np.array([0 if item is None else item for item in items], _DTYPES[kind])
    return Vector(kind, data, valid)


def constant(kind: Kind, value: Any) -> Vector:
    """A constant for every row; None is null."""
    valid = np.zeros((), np.bool_) if value is None else None
    if kind == "string":
        return Vector(kind, np.zeros((), np.int32), valid, [value if value is not None else ""])
    data = np.asarray(0 if value is None else value, _DTYPES[kind])
    return Vector(kind, data, valid)


def to_arrow(vector: Vector, type: FieldType) -> pa.Array:
    """As an Arrow array of a field type that features may have."""
    mask = None if vector.valid is None else ~vector.valid
    if vector.words is not None:
        words = pa.array(vector.words, pa.string())
        codes = pa.array(vector.data, pa.int32(), mask=mask)
        return pa.DictionaryArray.from_arrays(codes, words).dictionary_decode().cast(_ARROW[type])
    data = np.ascontiguousarray(vector.data)
    if type == "float64":
        return pa.array(data.astype(np.float64, copy=False), pa.float64(), mask=mask)
    if type == "timestamp":
        return pa.array(data, pa.int64(), mask=mask).cast(_ARROW[type])
    return pa.array(data, _ARROW[type], mask=mask)
