"""Entity keys as whole numbers: equal keys get equal numbers, on both sides of a join."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from everloop.errors import Fault, InvalidInput
from everloop.features.vectors import Array, Vector

__all__ = ["KeyCodes", "distinct"]

# Below this many possible combinations gaps in the numbering cost less than closing them.
_DENSE_ENOUGH = 1 << 16


class KeyCodes:
    """The keys of source rows, numbered from 0; rows of another frame get the same numbers.

    Args:
        columns: The key columns of the source, in order.
        names: Their names, for messages.
        label: What the source is called, for messages.

    Attributes:
        codes: For each row its number, -1 where a part of its key is null.
        count: How many numbers there are.
    """

    def __init__(self, columns: Sequence[Vector], names: Sequence[str], label: str) -> None:
        self._columns = columns
        self._names = names
        self._label = label
        parts = [_distinct(column) for column in columns]
        self._parts = [words for words, _ in parts]
        codes, self.count = _combined([codes for _, codes in parts], [len(w) for w, _ in parts])
        self._dense: Array | None = None
        if self.count > _DENSE_ENOUGH and len(columns) > 1:
            self._dense = np.unique(codes[codes >= 0])
            self.count = len(self._dense)
            codes = np.where(codes < 0, codes, _positions(self._dense, codes))
        self.codes = codes

    def encode(self, columns: Sequence[Vector]) -> Array:
        """The numbers of other rows; -1 where a key is null, -2 where no source row has it.

        Raises:
            InvalidInput: If a column has another type than in the source; nothing is coerced.
        """
        faults = [
            Fault(name, f"is {theirs.kind}, in {self._label} it is {ours.kind}")
            for name, ours, theirs in zip(self._names, self._columns, columns, strict=True)
            if ours.kind != theirs.kind and "null" not in (ours.kind, theirs.kind)
        ]
        if faults:
            raise InvalidInput("the keys have another type than in the source", faults)
        parts = [_sought(w, column) for w, column in zip(self._parts, columns, strict=True)]
        codes, _ = _combined(parts, [len(words) for words in self._parts])
        if self._dense is None:
            return codes
        return np.where(codes < 0, codes, _positions(self._dense, codes))


def distinct(columns: Sequence[Vector]) -> tuple[Array, Array]:
    """Number the distinct keys of rows: codes (-1 where null) and the first row of each."""
    parts = [_distinct(column) for column in columns]
    codes, _ = _combined([codes for _, codes in parts], [len(words) for words, _ in parts])
    rows = np.flatnonzero(codes >= 0)
    _, first, inverse = np.unique(codes[rows], return_index=True, return_inverse=True)
    numbered = np.full(len(codes), -1, np.int64)
    numbered[rows] = inverse
    return numbered, rows[first]


def _distinct(column: Vector) -> tuple[list[str] | Array, Array]:
    """Distinct values of a column and for each row its place among them, -1 where null."""
    if column.kind == "float":
        raise InvalidInput("a float cannot name an entity", hint="cast it to an integer or text")
    if column.words is not None:
        words, codes = list(column.words), column.data.astype(np.int64)
    else:
        words, codes = np.unique(column.data, return_inverse=True)  # type: ignore[assignment]
    if column.valid is not None:
        codes = np.where(column.valid, codes, -1)
    return words, codes


def _sought(words: list[str] | Array, column: Vector) -> Array:
    """The places of a column's values among `words`; -1 where null, -2 where not among them."""
    if column.words is not None and isinstance(words, list):
        place = {word: index for index, word in enumerate(words)}
        known = np.array([place.get(word, -2) for word in column.words] or [-1], np.int64)
        codes = known[column.data]
    elif isinstance(words, list) or column.words is not None:
        codes = np.full(len(column.data), -2, np.int64)  # one side is null throughout
    else:
        codes = _positions(words, column.data)
    return codes if column.valid is None else np.where(column.valid, codes, -1)


def _positions(ordered: Array, values: Array) -> Array:
    """The places of `values` in the sorted distinct `ordered`, -2 where it does not hold them."""
    if not len(ordered):
        return np.full(len(values), -2, np.int64)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.where(ordered[places] == values, places, -2)


def _combined(parts: Sequence[Array], sizes: Sequence[int]) -> tuple[Array, int]:
    """One number for the codes of several columns; every combination has a number of its own."""
    codes, count = parts[0], max(sizes[0], 1)
    for part, size in zip(parts[1:], sizes[1:], strict=True):
        if count * max(size, 1) >= 1 << 62:
            raise InvalidInput("the entity has more possible keys than 64 bits can number")
        joint = codes * max(size, 1) + part
        unknown = np.where((codes == -1) | (part == -1), -1, -2)
        codes = np.where((codes < 0) | (part < 0), unknown, joint)
        count *= max(size, 1)
    return codes, count
