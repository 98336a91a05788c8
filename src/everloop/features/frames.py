"""The border to frames: what users hand in becomes Arrow, features are added to what they gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from everloop.data.frame import Table

__all__ = ["arrow_of", "with_features"]


def arrow_of(rows: Any) -> pa.Table:
    """The rows as an Arrow table; InvalidInput if they are no frame."""
    return rows if isinstance(rows, pa.Table) else Table.of(rows).to_arrow()


def with_features(
    rows: Any, columns: Mapping[str, pa.Array], came: Sequence[tuple[str, int, str]]
) -> Table:
    """`rows` with the feature columns added or, of the same name, replaced.

    Args:
        rows: As the user gave them.
        columns: The features by name.
        came: Dataset versions that the features were read from; added to those of the rows.
    """
    table = Table.of(rows).with_columns(columns)
    sources = dict.fromkeys([*table.sources, *came])
    return Table(table.to_arrow(), sources=sources, key=table.key, changes=table.changes)
