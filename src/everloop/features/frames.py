"""The border to frames: what users hand in becomes Arrow, features are added to what they gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from everloop.errors import InvalidInput

__all__ = ["arrow_of", "with_features"]


def arrow_of(rows: Any) -> pa.Table:
    """The rows as an Arrow table; InvalidInput if they are no frame."""
    if isinstance(rows, pa.Table):
        return rows
    if hasattr(rows, "__arrow_c_stream__"):
        return pa.table(rows)
    if isinstance(rows, Mapping):
        return pa.table(dict(rows))
    raise InvalidInput(f"no table can be made of this {type(rows).__name__}")


def with_features(
    rows: Any, columns: Mapping[str, pa.Array], came: Sequence[tuple[str, int, str]]
) -> Any:
    """`rows` with the feature columns added or, of the same name, replaced."""
    table = arrow_of(rows)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = (
            table.append_column(name, values)
            if place < 0
            else table.set_column(place, name, values)
        )
    return table
