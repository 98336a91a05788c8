"""What a table holds, column by column, as plain data."""

from __future__ import annotations

from html import escape

import msgspec

from everloop.core.dataset import Value
from everloop.core.kinds import FieldType

__all__ = ["QUANTILES", "ColumnProfile", "Profile"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class ColumnProfile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One column. Of personal data only counts and lengths are told.

    Attributes:
        nulls: Missing values; NaN counts as missing.
        distinct: Values that differ, without missing ones.
        is_approximate: Whether `distinct` is a HyperLogLog estimate (about 2 % off): of more than
            100,000 rows.
        low, high: The least and the greatest value; times are ISO 8601 text.
        mean, std: Of finite numbers; the sample's standard deviation.
        quantiles: At ``QUANTILES``, of numbers: the nearest value that is there.
        top: The most frequent values of text and truth with their counts, at most ten; none where
            more than 10,000 differ.
        lengths: Of text, in characters: least, mean, greatest.
        edges, counts: The histogram of finite numbers: 20 bins of one width from `edges[n]` to
            `edges[n + 1]`.
    """

    name: str
    type: FieldType
    pii: str = ""
    nulls: int
    distinct: int
    is_approximate: bool = False
    low: Value = None
    high: Value = None
    mean: float | None = None
    std: float | None = None
    quantiles: tuple[float, ...] = ()
    top: tuple[tuple[Value, int], ...] = ()
    lengths: tuple[float, ...] = ()
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """All columns of a version, or of a frame (then `ref` and `digest` are empty)."""

    ref: str = ""
    digest: str = ""
    rows: int
    key: tuple[str, ...] = ()
    columns: tuple[ColumnProfile, ...]

    def _repr_html_(self) -> str:
        """A table, for notebooks."""
        head = ("column", "type", "missing", "distinct", "low", "median", "high", "mean", "top")
        cells = [
            (
                column.name,
                column.type,
                f"{column.nulls / self.rows:.1%}" if self.rows else "-",
                f"{'~' if column.is_approximate else ''}{column.distinct}",
                _text(column.low),
                f"{column.quantiles[2]:.4g}" if column.quantiles else "-",
                _text(column.high),
                "-" if column.mean is None else f"{column.mean:.4g}",
                ", ".join(f"{_text(value)} ({count})" for value, count in column.top[:3]) or "-",
            )
            for column in self.columns
        ]
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in cells
        )
        names = "".join(f"<th>{name}</th>" for name in head)
        title = f"{escape(self.ref or 'frame')}: {self.rows} rows"
        return f"<table><caption>{title}</caption><tr>{names}</tr>{rows}</table>"


def _text(value: Value) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
