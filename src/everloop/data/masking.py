"""Masks over Arrow columns: what whoever may not see gets, in the type that the column has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from everloop.core.mask import MaskRule, mask_of
from everloop.core.quality import MASKED

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Key", "mask_key", "masked_table", "needed_by"]

#: What the key of the masks is derived under from the key of the workspace, so that neither says
#: anything of the other (BLAKE3's key derivation).
_CONTEXT = "everloop 2026-11 keyed hashes and shifts of masked personal data"
_DAY_US = 86_400_000_000

#: Gives the key of the masks; raises StateError or BackendError where there is none.
Key = Callable[[], bytes]


def mask_key(secret: str) -> bytes:
    """The key of the masks, 32 bytes, from the key of the workspace."""
    return blake3(secret.encode(), derive_key_context=_CONTEXT).digest()


def needed_by(masks: Mapping[str, str], columns: list[str], known: tuple[str, ...]) -> list[str]:
    """Columns that have to be read beside `columns` for their masks: those that shifts go by."""
    wanted = {rule.by for n in columns if n in masks and (rule := mask_of(masks[n])).by}
    return [name for name in known if name in wanted and name not in columns]


def masked_table(rows: pa.Table, masks: Mapping[str, str], key: Key) -> pa.Table:
    """`rows` with the columns of `masks` masked; names, types and the number of rows stay.

    Args:
        masks: By column; others stay as they are. What a mask cannot be applied to becomes null,
            as a shift by a column that is not there.
        key: Asked only if a mask needs one.

    Raises:
        StateError: If a mask needs a key and there is none.
        BackendError: If the key cannot be read.
    """
    made = rows
    for n, name in enumerate(rows.column_names):
        if name in masks:
            column = _masked(rows, name, mask_of(masks[name]), key)
            made = made.set_column(n, rows.schema.field(n), column)
    return made


def _masked(rows: pa.Table, name: str, rule: MaskRule, key: Key) -> pa.ChunkedArray:
    import pyarrow as pa

    column = rows.column(name)
    done = _APPLY[rule.kind](rows, column, rule, key)
    if done is None:
        done = pa.nulls(len(column), column.type)
    if isinstance(done, pa.Array):
        done = pa.chunked_array([done])
    return done.cast(column.type)


# Each gives None where the type of the column is none that the mask is for.
_Applied = Any


def _redact(_: pa.Table, column: pa.ChunkedArray, rule: MaskRule, key: Key) -> _Applied:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return None
    return pc.if_else(pc.is_null(column), pa.scalar(None, column.type), MASKED)


def _null(_: pa.Table, column: pa.ChunkedArray, rule: MaskRule, key: Key) -> _Applied:
    return None


def _hash(_: pa.Table, column: pa.ChunkedArray, rule: MaskRule, key: Key) -> _Applied:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _by_value(column, key(), lambda value, k: _digest(b"s", value.encode(), k).hex())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _by_value(column, key(), lambda value, k: _digest(b"b", value, k))
    if pa.types.is_int64(kind) or pa.types.is_uint64(kind):
        return _by_value(column, key(), _number)
    return None


def _digest(of: bytes, value: bytes, key: bytes) -> bytes:
    return blake3(of + value, key=key).digest(16)


def _number(value: int, key: bytes) -> int:
    # 63 bits, so that it fits both types, and is never taken for a small number of the data.
    return int.from_bytes(_digest(b"i", str(value).encode(), key)[:8], "big") >> 1


def _by_value(
    column: pa.ChunkedArray, key: bytes, of: Callable[[Any, bytes], Any]
) -> pa.ChunkedArray:
    """Each value replaced by what `of` makes of it, made once for each that differs."""
    import pyarrow as pa

    coded = column.dictionary_encode().unify_dictionaries()
    if not coded.num_chunks or not len(coded):
        return column
    values = coded.chunk(0).dictionary.to_pylist()
    made = pa.array([None if value is None else of(value, key) for value in values], column.type)
    # The dictionary of the last chunk has all values; those of the others begin alike.
    return pa.chunked_array([made.take(chunk.indices) for chunk in coded.chunks], column.type)


def _bucket(_: pa.Table, column: pa.ChunkedArray, rule: MaskRule, key: Key) -> _Applied:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if rule.unit:
        if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
            return None
        return pc.floor_temporal(column, unit=rule.unit)
    if pa.types.is_integer(kind):
        return _floored(column, int(rule.width))
    if pa.types.is_floating(kind):
        wide = column.cast(pa.float64())
        return pc.multiply(pc.floor(pc.divide(wide, rule.width)), rule.width)
    return None


def _floored(column: pa.ChunkedArray, width: int) -> pa.Array:
    """Whole numbers as the multiple of `width` below them: a float would lose their last digits."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    values = pc.fill_null(column, 0).to_numpy()
    bounds = np.iinfo(values.dtype)
    if width > bounds.max:
        floored = np.where(values < 0, bounds.min, 0).astype(values.dtype)
    else:
        floored = values - np.mod(values, values.dtype.type(width))
        floored = np.where(floored > values, bounds.min, floored)  # no multiple below it fits
    return pa.array(floored, column.type, mask=pc.is_null(column).to_numpy())


def _shift(rows: pa.Table, column: pa.ChunkedArray, rule: MaskRule, key: Key) -> _Applied:
    import numpy as np
    import pyarrow as pa

    kind = column.type
    is_date = pa.types.is_date32(kind)
    if rule.by not in rows.column_names or not (is_date or pa.types.is_timestamp(kind)):
        return None
    subjects, secret = rows.column(rule.by), key()
    span = 2 * rule.days

    def days(value: Any, k: bytes) -> int:
        # Never 0, so that nobody stays where they were: 1..days, or -days..-1.
        part = int.from_bytes(_digest(b"d%d:" % rule.days, _said(value), k)[:8], "big")
        moved = part % span - rule.days
        return moved if moved < 0 else moved + 1

    coded = subjects.dictionary_encode().unify_dictionaries()
    if not len(coded):
        return column
    moves = [None if v is None else days(v, secret) for v in coded.chunk(0).dictionary.to_pylist()]
    table = pa.array(moves, pa.int64())
    moved = pa.chunked_array([table.take(chunk.indices) for chunk in coded.chunks], pa.int64())
    whole = column.cast(pa.int32() if is_date else pa.int64()).cast(pa.int64())
    unknown = np.array(moved.is_null()) | np.array(whole.is_null())
    # In steps of the type; what would leave it becomes null, and so does whose subject is unknown.
    step = 1 if is_date else _DAY_US // _scale(kind)
    sums = whole.fill_null(0).to_numpy() + moved.fill_null(0).to_numpy() * step
    if is_date:
        low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
        unknown |= (sums < low) | (sums > high)
        sums = np.where(unknown, 0, sums)
        return pa.array(sums.astype(np.int32), pa.int32(), mask=unknown).cast(kind)
    return pa.array(sums, pa.int64(), mask=unknown).cast(kind)


def _said(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _scale(kind: pa.DataType) -> int:
    """Microseconds in one step of a timestamp."""
    return {"s": 1_000_000, "ms": 1000, "us": 1}.get(kind.unit, 1)


_APPLY: dict[str, Callable[[Any, Any, MaskRule, Key], _Applied]] = {
    "redact": _redact,
    "null": _null,
    "hash": _hash,
    "bucket": _bucket,
    "shift": _shift,
}
