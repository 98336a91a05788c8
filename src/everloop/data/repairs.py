"""Rows that are corrected on their way into a version, by a function that their rule names."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from everloop.core.schema import Schema
from everloop.data.check_rules import ValuesOf
from everloop.data.checks import BrokenRule, CheckReport, check, insist
from everloop.data.functions import repaired

__all__ = ["Change", "Mended", "differing", "mended"]


class Change(NamedTuple):
    """What a repair did.

    Attributes:
        rows: Of each row that changed the key (all columns, without one), the old values of the
            columns that changed, and ``<column>.new``.
    """

    rule: BrokenRule
    rows: pa.Table


class Mended(NamedTuple):
    """The report on the corrected rows, and what was corrected."""

    report: CheckReport
    changes: list[Change]


def mended(
    table: pa.Table, schema: Schema, values_of: ValuesOf | None, *, keep_last: bool = False
) -> Mended:
    """Check `table`, correct what a repair is named for, and check the result again.

    What still breaks a rule after its repair is a fault. Repairs run one after the other in the
    order of the rules, each on the rows as the one before it left them.

    Raises:
        InvalidInput: If a rule cannot be evaluated, or a repair gives another schema.
        UserCodeError: If a repair or a function raises.
    """
    report = check(table, schema, values_of, keep_last=keep_last)
    wanted = [rule for rule in report.broken if rule.repair]
    if not wanted or report.faults:
        return Mended(report, [])
    rows, changes = report.table, list[Change]()
    for rule in wanted:
        at = pa.array(rule.rows)
        old = rows.take(at)
        new = repaired(rule.repair, old, is_hidden=any(field.pii for field in schema.fields))
        rows, change = _put(rows, rule, old, new, schema)
        if change is not None:
            changes.append(change)
    report = check(rows, schema, values_of, keep_last=keep_last)
    left = [rule for rule in report.broken if rule.repair]
    return Mended(insist(report, left, ", also after its repair") if left else report, changes)


def _put(
    rows: pa.Table, rule: BrokenRule, old: pa.Table, new: pa.Table, schema: Schema
) -> tuple[pa.Table, Change | None]:
    differs = {name: differing(old.column(name), new.column(name)) for name in old.column_names}
    changed = [name for name, mask in differs.items() if mask.any()]
    if not changed:
        return rows, None
    some = np.logical_or.reduce([differs[name] for name in changed])
    mask = np.zeros(rows.num_rows, dtype=bool)
    mask[rule.rows] = True
    for name in changed:
        column = rows.column(name).combine_chunks()
        put = pc.replace_with_mask(column, mask, new.column(name).combine_chunks())
        rows = rows.set_column(rows.schema.get_field_index(name), name, put)
    picked = pa.array(some)
    wanted = {*(schema.key or old.column_names), *changed}
    kept = old.select([name for name in old.column_names if name in wanted]).filter(picked)
    for name in changed:
        kept = kept.append_column(f"{name}.new", new.column(name).filter(picked))
    return rows, Change(rule, kept)


def differing(old: pa.ChunkedArray, new: pa.ChunkedArray) -> np.ndarray:
    """Which values of two columns are unlike; nulls are alike, and so are NaN."""
    same = pc.fill_null(pc.equal(old, new), False)
    if pa.types.is_floating(old.type):
        same = pc.or_(same, pc.and_(pc.is_nan(old), pc.is_nan(new)))
    both_null = pc.and_(pc.is_null(old), pc.is_null(new))
    found = pc.or_(pc.fill_null(same, False), both_null)
    return ~np.asarray(
        found.to_numpy(zero_copy_only=False) if isinstance(found, pa.Array) else found.to_numpy(),
        dtype=bool,
    )
