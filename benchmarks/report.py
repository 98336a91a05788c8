"""How benchmark rows are printed: a table for people, then one JSON line for each row."""

from __future__ import annotations

import json
from collections.abc import Sequence

from benchmarks.harness import Missing, Row

COLUMNS = ("area", "work", "unit", "everloop", "limit", "x limit", "best peer", "x peer", "equal")


def table(rows: Sequence[Row]) -> str:
    """Return the rows as an aligned table, with a line under it for each peer without a figure."""
    cells = [COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    for row in rows:
        lines += [f"{row.area}, {row.work}: limit is {row.limit_name}; median of {row.repeats}"]
        lines += [f"  {name}: {_figure(figure)}" for name, figure in row.peers.items()]
    return "\n".join(lines)


def json_lines(rows: Sequence[Row]) -> str:
    """Return one JSON document a line."""
    return "\n".join(json.dumps(row.to_json(), ensure_ascii=False) for row in rows)


def _cells(row: Row) -> tuple[str, ...]:
    figures = {n: p for n, p in row.peers.items() if not isinstance(p, Missing)}
    choose = min if row.better == "low" else max
    best = choose(figures, key=lambda name: figures[name]) if figures else None
    to_peer = row.ratio_to_best_peer
    return (
        row.area,
        row.work,
        row.unit,
        _figure(row.everloop),
        _figure(row.limit),
        f"{row.ratio_to_limit:.2f}",
        f"{best} {_figure(figures[best])}" if best else "-",
        "-" if to_peer is None else f"{to_peer:.2f}",
        "yes" if row.answers_equal else "NO",
    )


def _figure(value: float | Missing) -> str:
    return value.reason if isinstance(value, Missing) else f"{value:.4g}"
