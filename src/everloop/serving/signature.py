"""The validator of requests, compiled from a Schema: raw columns in, canonical columns out.

What is checked is what the schema says of its fields. Its row rules (``checks``, SQL) belong to
datasets and are not run per request; keys and ``unique`` speak of a dataset, not of a request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.core.schema import Schema
from everloop.errors import Fault, InvalidInput, NotFound
from everloop.serving.fields import Column, FieldRules, Wrong

__all__ = ["Columns", "RequestValidator", "Where", "checked_column", "where_in"]

#: Name of a field -> its values, one per row, all of one length.
Columns = dict[str, Column]

#: Path of a fault, from the field and the row; the row is None for the column as a whole.
Where = Callable[[str, int | None], str]

#: Below this many rows arrays cost more than they save.
_FEW = 8

#: Faults listed of one column; what is beyond is counted.
_MOST_FAULTS = 1_000


def where_in(prefix: str) -> Where:
    """Paths such as ``inputs.distance[3]``."""

    def where(name: str, row: int | None) -> str:
        column = f"{prefix}.{name[:64]}" if prefix else name[:64]
        return column if row is None else f"{column}[{row}]"

    return where


class RequestValidator:
    """Checks requests against a schema, strictly and completely.

    A column that is null-able may be left out. Columns beyond the schema are refused, or dropped
    where the schema allows extra ones. Canonical values are numbers in the field's own type
    (``timestamp`` in microseconds since 1970, UTC; text without a zone is UTC), text, ``date`` and
    bytes. A canonical column is a NumPy array, or a list where it is text, holds nulls or is short.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._rules = tuple(FieldRules(field) for field in schema.fields)
        self._names = frozenset(schema.names)
        #: Fields whose values are bytes and no text.
        self.binary = frozenset(f.name for f in schema.fields if f.type == "binary")

    def row(self, values: Mapping[str, Any], *, path: str = "") -> Columns:
        """Check one request, given as name and value, and return it as columns of one row.

        Raises:
            InvalidInput: With every fault; its path is ``path.name``.
        """
        base = where_in(path)
        columns = {name: [value] for name, value in values.items()}
        return self.columns(columns, where=lambda name, _row: base(name, None), rows=1)

    def columns(
        self,
        columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]],
        *,
        where: Where | None = None,
        rows: int | None = None,
    ) -> Columns:
        """Check many rows at once.

        Args:
            columns: Name and values, one per row.
            where: How to name a place in the caller's own form.
            rows: Number of rows, where the columns may not tell (all of them left out).

        Raises:
            InvalidInput: With every fault of every column and row.
        """
        where = where or where_in("")
        faults: list[Fault] = []
        if rows is None:
            rows = len(next(iter(columns.values()))) if columns else 0
        if not columns.keys() <= self._names:
            faults += self._extra(columns, where)
        canonical: Columns = {}
        for rule in self._rules:
            values = columns.get(rule.name)
            if values is None:
                if rule.nullable:
                    canonical[rule.name] = rule.column([rule.item(None)] * rows)
                else:
                    faults.append(Fault(where(rule.name, None), "missing"))
            elif rows == 1 and type(values) is list and len(values) == 1:
                try:
                    canonical[rule.name] = [rule.item(values[0])]
                except Wrong as error:
                    faults.append(Fault(where(rule.name, 0), str(error)))
            elif len(values) != rows:
                message = f"has {len(values)} values where other columns have {rows}"
                faults.append(Fault(where(rule.name, None), message))
            else:
                canonical[rule.name] = checked_column(rule, values, where, faults)
        if faults:
            raise InvalidInput("the request does not fit the model's signature", faults)
        return canonical

    def _extra(self, columns: Mapping[str, Any], where: Where) -> list[Fault]:
        if self.schema.extra == "allow":
            return []
        faults = []
        for name in columns:
            if name not in self._names:
                hint = NotFound.named("column", name[:64], self.schema.names).hint
                faults.append(Fault(where(name, None), f"no such column; {hint}"))
        return faults


def checked_column(
    rule: FieldRules,
    values: Sequence[Any] | npt.NDArray[Any],
    where: Where,
    faults: list[Fault],
) -> Column:
    """Check one column by its rules.

    Args:
        rule: Of the field.
        values: One per row.
        where: How to name a place.
        faults: What is wrong is added here.

    Returns:
        The canonical column; of no use if a fault was added.
    """
    if len(values) > _FEW or isinstance(values, np.ndarray):
        column = rule.vector(values)
        if column is not None:
            return column
    items = []
    wrong = 0
    for row, value in enumerate(_plain(values)):
        try:
            items.append(rule.item(value))
        except Wrong as error:
            wrong += 1
            if wrong <= _MOST_FAULTS:
                faults.append(Fault(where(rule.name, row), str(error)))
    if wrong > _MOST_FAULTS:
        more = f"{wrong - _MOST_FAULTS} more rows are wrong"
        faults.append(Fault(where(rule.name, None), more))
    return items if wrong or len(items) <= _FEW else rule.column(items)


def _plain(values: Sequence[Any] | npt.NDArray[Any]) -> Sequence[Any]:
    # Instants keep their NumPy scalars: as Python values, nanoseconds would become whole numbers.
    if isinstance(values, np.ndarray):
        return list(values) if values.dtype.kind == "M" else list(values.tolist())
    return values
