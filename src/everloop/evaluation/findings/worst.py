"""``ev.slices``: where the error is high, as rules that people and SQL can read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from everloop.core.finding import FindingReport
from everloop.core.schema import Schema
from everloop.errors import Fault, InvalidInput
from everloop.evaluation.bootstrap import MIN_DAYS, day_blocks
from everloop.evaluation.contrast import student_value
from everloop.evaluation.findings.cutting import Parts, cut_column
from everloop.evaluation.findings.folds import instants
from everloop.evaluation.findings.found import Finding, Findings
from everloop.evaluation.findings.looked import Looked, look
from everloop.evaluation.findings.parallel import on_threads
from everloop.evaluation.findings.search import Rule, members, search
from everloop.evaluation.order import Floats

__all__ = ["slices"]

_LEFT_OUT = ("id", "text", "embedding", "target")


def slices(
    rows: Any,
    *,
    error: Any,
    fields: Iterable[str] | None = None,
    time: str = "",
    floor: float = 0.0,
    min_rows: int = 200,
    level: float = 0.05,
    pairs: bool = True,
    most: int = 20,
    schema: Schema | None = None,
) -> Findings:
    """Find where the error is high: rules over one column or two, the largest effect first.

    Each finding has a `name` for people (``origin = 'EWR' and 18.5 <= hour < 21``) and a
    `condition` in SQL that ``Table.filter`` takes. A rule of two columns is worse than what else
    either of them holds, and no two findings tell the same. An effect that was picked as one of the
    worst of many looks larger than it is.

    Args:
        rows: The name of a dataset, or anything that ``Table.of`` takes.
        error: The column of the error of each row, the higher the worse (a loss, or 0 and 1), or an
            array. Rows without one are left out and counted.
        fields: Columns to cut by; all but key, error, identifiers, free text, targets, embeddings
            and personal data if not given.
        time: Column of times: then days are the sample and not rows, as those of one day are alike.
        floor: Smallest difference to the rows outside that counts, in units of the error.
        min_rows: Fewest rows of a slice, 2 at least.
        level: Chance that any slice is found by chance alone, all that were tried together.
        pairs: Whether rules of two columns are tried too.
        most: Slices to report.
        schema: Names the key, meanings and personal columns of a frame.

    Raises:
        NotFound: If there is no such dataset or column.
        InvalidInput: If the error is no number, or an option is out of range.
    """
    faults = [
        Fault(name, f"is {wanted}, got {value!r}")
        for name, value, wanted, is_right in (
            ("floor", floor, "0 or more", math.isfinite(floor) and floor >= 0),
            ("min_rows", min_rows, "2 or more", min_rows >= 2),
            ("level", level, "between 0 and 1", 0 < level < 1),
            ("most", most, "1 or more", most >= 1),
        )
        if not is_right
    ]
    if faults:
        raise InvalidInput("slices cannot be searched for", faults)
    looked = look(rows, schema)
    values, named = _errors(looked, error)
    known = np.isfinite(values)
    figures: dict[str, Any] = {"rows": int(known.sum()), "without_error": int((~known).sum())}
    names, skipped = _fields(looked, fields, {named, time})
    cut = on_threads(lambda name: _cut(looked, name), names)
    columns = [parts for parts in cut if parts is not None and _varies(parts)]
    used = {parts.name for parts in columns}
    skipped |= {
        name: "all one value, or of no type for rules" for name in names if name not in used
    }
    figures |= {"mean": float(values[known].mean()) if known.any() else math.nan}
    reason = _too_small(figures["rows"], min_rows, columns)
    days = day_blocks(instants(looked.table.column(time), time)) if time else None
    if days is not None and len(days) and int(days.max()) + 1 < MIN_DAYS:
        reason = f"too few blocks to tell: {int(days.max()) + 1} days, {MIN_DAYS} are needed"
    title = f"slices of {named}"
    if reason:
        return Findings(title, (), figures | {"skipped": skipped}, reason)
    seen = [p._replace(codes=p.codes[known]) for p in columns] if not known.all() else columns
    found = search(
        seen, values[known], None if days is None else days[known], floor=floor,
        min_rows=min_rows, level=level, pairs=pairs, most=most,
    )  # fmt: skip
    figures |= {"tried": found.tried, "skipped": skipped}
    every = [_finding(looked, columns, rule, values, named, level) for rule in found.rules]
    return Findings(title, every, figures)


def _errors(looked: Looked, error: Any) -> tuple[Floats, str]:
    if isinstance(error, str):
        return looked.table.to_numpy([error])[:, 0], error
    try:
        values = np.array(error, dtype=np.float64)
    except (TypeError, ValueError) as wrong:
        raise InvalidInput(f"the error is no array of numbers: {wrong}") from None
    if values.shape != (len(looked.table),):
        raise InvalidInput(f"the error has shape {values.shape} for {len(looked.table)} rows")
    return values, "error"


def _fields(
    looked: Looked, wanted: Iterable[str] | None, without: set[str]
) -> tuple[list[str], dict[str, str]]:
    """The columns to cut by; and which not, with the reason."""
    names = looked.table.column_names if wanted is None else list(wanted)
    skipped = {}
    lower = [name.lower() for name in looked.table.column_names]
    for name in names:
        looked.table.column(name)
        if name in looked.personal:
            skipped[name] = "personal data"
        elif lower.count(name.lower()) > 1:
            skipped[name] = "SQL cannot tell it from another column"
        elif wanted is None and (name in looked.key or looked.semantic(name) in _LEFT_OUT):
            skipped[name] = "key" if name in looked.key else looked.semantic(name)
    return [name for name in names if name not in skipped and name not in without], skipped


def _cut(looked: Looked, name: str) -> Parts | None:
    is_category = looked.semantic(name) == "categorical"
    return cut_column(name, looked.table.column(name), is_category=is_category)


def _too_small(rows: int, min_rows: int, columns: list[Parts]) -> str:
    if rows < 2 * min_rows:
        return f"too small to tell: {rows} rows, and a slice and the rest have {min_rows} at least"
    if not columns:
        return "there is no column to cut by"
    return ""


def _varies(parts: Parts) -> bool:
    return bool(parts.ranges()) and bool((parts.codes != parts.codes[:1]).any())


def _finding(
    looked: Looked, columns: list[Parts], rule: Rule, values: Floats, named: str, level: float
) -> Finding:
    mask = members(columns, rule)
    numbers = np.flatnonzero(mask)
    errors = values[numbers]
    order = np.argsort(-np.nan_to_num(errors, nan=-np.inf), kind="stable")
    sides = [(columns[column], begin, end) for column, begin, end in rule.sides]
    half = student_value(level / 2, max(rule.rows - 1, 1)) * rule.spread
    total = float(np.nansum(values))
    figures = {
        "rows": rule.rows,
        "inside": rule.inside,
        "outside": rule.outside,
        "effect": rule.effect,
        "low": rule.effect - half,
        "high": rule.effect + half,
        "adjusted_p": rule.p,
        "share_of_error": rule.inside * rule.rows / total if total else math.nan,
    }
    told = FindingReport(
        kind="weak_slice", name=" and ".join(parts.told(b, e) for parts, b, e in sides),
        reason=f"mean {named} {rule.inside:.4g}, and {rule.outside:.4g} outside",
        count=len(numbers), score=rule.effect, figures=figures,
        condition=" AND ".join(parts.sql(b, e) for parts, b, e in sides),
        columns=tuple(parts.name for parts, _, _ in sides),
    )  # fmt: skip
    scores = np.nan_to_num(errors[order], nan=0.0)
    of_rows = {"error": pa.array(errors[order], from_pandas=True)}
    return Finding(looked, told, numbers[order], scores, of_rows)
