"""What a view keeps of each source row, and how rows of a source become that.

Offline and online share this: the same expressions over the same columns give the values that
:mod:`everloop.features.retrieve` then looks among.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from everloop.core.expr import Call, Column, Constant, columns_of, digest_of
from everloop.core.feature import Aggregate, Feature, FeatureView
from everloop.core.schema import FieldType
from everloop.errors import Fault, InvalidInput
from everloop.features.compile_vector import evaluate
from everloop.features.keys import KeyCodes
from everloop.features.vectors import Array, Vector, from_arrow

__all__ = ["Events", "Frame", "Input", "Plan", "events_of", "typed"]

# Instants are compared after a window is taken off, so the ends of 64 bits are kept free.
_FARTHEST = 1 << 62

_pack = msgspec.msgpack.Encoder().encode


class Input(NamedTuple):
    """A value that is kept of each row: an expression and the type that it is kept in."""

    node: Column | Constant | Call
    type: FieldType


class Plan:
    """A view, ready to be evaluated.

    Attributes:
        view: The definition.
        inputs: The distinct values that are kept of each row.
        places: For each feature its input, -1 for a count of rows.
        newest: Whether any feature is the value of the newest row.
        windowed: Whether any feature is an aggregate.
        ranked: Whether rows may become visible in another order than their event times.
    """

    def __init__(self, view: FeatureView) -> None:
        self.view = view
        self.inputs: list[Input] = []
        found: dict[tuple[str, str], int] = {}
        places = []
        for feature in view.features:
            wanted = _input_of(feature)
            if wanted is None:
                places.append(-1)
                continue
            key = (digest_of(wanted.node), wanted.type)
            if key not in found:
                found[key] = len(self.inputs)
                self.inputs.append(wanted)
            places.append(found[key])
        self.places = tuple(places)
        self.windowed = any(isinstance(f.value, Aggregate) for f in view.features)
        self.newest = not all(isinstance(f.value, Aggregate) for f in view.features)
        self.ranked = bool(view.source.known) and self.newest


def _input_of(feature: Feature) -> Input | None:
    value = feature.value
    if not isinstance(value, Aggregate):
        return Input(value, feature.type)
    if value.argument is None:
        return None
    if value.function == "count":  # only whether there is a value counts
        return Input(~value.argument.is_null(), "bool")
    return Input(value.argument, "float64")


class Frame:
    """The columns of an Arrow table, each read once."""

    def __init__(self, table: pa.Table, label: str) -> None:
        self.table = table
        self.label = label
        self.rows = int(table.num_rows)
        names = table.column_names
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            faults = [Fault(name, "stands twice") for name in twice]
            raise InvalidInput(f"{label} has columns of one name", faults)
        self._read: dict[str, Vector] = {}
        self._repeated: dict[tuple[str, ...], Array | None] = {}
        self._hashes: dict[tuple[str, ...], Array] = {}

    def column(self, name: str) -> Vector:
        """A column; InvalidInput if its type is none that features read."""
        if name not in self._read:
            self._read[name] = from_arrow(self.table.column(name), f"{self.label}.{name}")
        return self._read[name]

    def columns(self, names: tuple[str, ...]) -> dict[str, Vector]:
        """Several columns.

        Raises:
            InvalidInput: With every one that is missing.
        """
        there = set(self.table.column_names)
        missing = [name for name in names if name not in there]
        if missing:
            raise InvalidInput(
                f"{self.label} lacks columns that features read",
                [Fault(name, "is missing") for name in missing],
                hint=f"there are: {', '.join(self.table.column_names[:20])}",
            )
        return {name: self.column(name) for name in names}

    def repeated_ids(self, names: tuple[str, ...]) -> Array | None:
        """A number for the id of each row, -1 where it is null; None if no id stands twice."""
        if names not in self._repeated:
            columns = list(self.columns(names).values())
            codes = KeyCodes(columns, names, self.label).codes
            there = codes[codes >= 0]
            once = len(np.unique(there)) == len(there)
            self._repeated[names] = None if once else codes
        return self._repeated[names]

    def id_hashes(self, names: tuple[str, ...]) -> Array:
        """64 bits of each row's id; 0 where a part of it is null. Shape (rows,), uint64."""
        if names not in self._hashes:
            columns = self.columns(names).values()
            rows = zip(*(column.python() for column in columns), strict=True)
            hashes = [0 if None in row else _hash(_pack(row)) for row in rows]
            self._hashes[names] = np.array(hashes, np.uint64)
        return self._hashes[names]

    def instants(self, name: str) -> Vector:
        """A column of times.

        Raises:
            InvalidInput: If it holds no times, or times too far from 1970 to be compared.
        """
        vector = self.columns((name,))[name]
        if vector.kind not in ("timestamp", "null"):
            raise InvalidInput(
                f"{self.label} has no times",
                [Fault(name, f"is {vector.kind}, must be a timestamp")],
                hint="an integer or a text is not read as a time; cast it first",
            )
        data = vector.data.astype(np.int64)
        far = (data > _FARTHEST) | (data < -_FARTHEST)
        if far.any():
            row = int(np.flatnonzero(far)[0])
            raise InvalidInput(
                f"{self.label} has a time beyond all measure", [Fault(f"rows[{row}].{name}", "")]
            )
        return Vector("timestamp", data, vector.valid)


def _hash(packed: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") or 1


class Events(NamedTuple):
    """Rows of a source that can ever be visible, in the order written.

    Attributes:
        rows: Their numbers in the frame; None means all.
        visible: From when on each counts; microseconds. 0 where the source has no time.
        event: Event times.
        known: Known times, the lowest integer where null; None where the source has none.
        values: One vector for each input of the plan.
    """

    rows: Array | None
    visible: Array
    event: Array
    known: Array | None
    values: list[Vector]


def events_of(plan: Plan, frame: Frame, usable: Array | None, *, as_of: bool = False) -> Events:
    """The events of a view in a frame of its source.

    Args:
        plan: The view.
        frame: Rows of its source.
        usable: Rows that have a key; None means all.
        as_of: Let rows count from their event time on, known or not.

    Raises:
        InvalidInput: If columns are missing or wrongly typed.
    """
    view = plan.view
    columns = frame.columns(view.columns)
    try:
        values = [typed(i, evaluate(i.node, columns, frame.rows)) for i in plan.inputs]
    except InvalidInput as error:
        raise InvalidInput(f"view {view.name!r} over {frame.label}: {error.summary}") from None
    event, known, usable = _times(plan, frame, usable, as_of=as_of)
    visible = event if known is None or as_of else np.maximum(event, known)
    if usable is None or usable.all():
        return Events(None, visible, event, known, values)
    rows = np.flatnonzero(usable)
    return Events(
        rows,
        visible[rows],
        event[rows],
        None if known is None else known[rows],
        [value.take(rows) for value in values],
    )


def _times(
    plan: Plan, frame: Frame, usable: Array | None, *, as_of: bool
) -> tuple[Array, Array | None, Array | None]:
    source = plan.view.source
    if not source.time:
        return np.zeros(frame.rows, np.int64), None, usable
    event = frame.instants(source.time)
    usable = _both(usable, event.valid)
    if not source.known:
        return event.data, None, usable
    known = frame.instants(source.known)
    data = known.data
    if known.valid is not None:
        data = np.where(known.valid, data, np.iinfo(np.int64).min)
    return event.data, data, usable if as_of else _both(usable, known.valid)


def _both(left: Array | None, right: Array | None) -> Array | None:
    if left is None or right is None:
        return left if right is None else right
    return left & right


def typed(wanted: Input, vector: Vector) -> Vector:
    """`vector` in the type that a value is kept in.

    Raises:
        InvalidInput: If that type cannot hold it; says how to declare another.
    """
    kind = vector.kind
    if wanted.type == "float64" and kind in ("float", "int", "bool", "null"):
        return Vector("float", vector.data.astype(np.float64, copy=False), vector.valid)
    fitting = {"int64": "int", "bool": "bool", "string": "string", "timestamp": "timestamp"}
    if fitting.get(wanted.type) == kind:
        return vector
    name = next(iter(columns_of(wanted.node)), "value")
    raise InvalidInput(
        f"a feature over {name!r} is {kind}, and features are numbers unless cast",
        hint=f'write .cast("{"string" if kind == "string" else "timestamp"}") to keep it as it is,'
        " or .code([...]) to number its values",
    )
