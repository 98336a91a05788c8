"""Rules that hold a row against other rows, judged where the row will stand.

A commit is judged by itself, as a frame. Rows that were corrected are few, and a window over those
alone would say nothing: they are judged among the rows of the version that they go into.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
import pyarrow as pa

from everloop.core.dataset import DatasetVersion
from everloop.core.schema import Field, Schema
from everloop.data.by_key import stand_in
from everloop.data.check_rules import ValuesOf, sees_other_rows
from everloop.data.checks import BrokenRule, check
from everloop.data.rows import read_rows
from everloop.ports.blobs import BlobStore

__all__ = ["broken_in_context", "still_broken", "without_context"]


def without_context(schema: Schema) -> Schema:
    """The schema without the checks that hold a row against others."""
    checks = tuple(check for check in schema.checks if not sees_other_rows(check))
    return msgspec.structs.replace(schema, checks=checks)


def broken_in_context(
    blobs: BlobStore,
    base: DatasetVersion | None,
    schema: Schema,
    rows: pa.Table,
    values_of: ValuesOf | None,
) -> list[BrokenRule]:
    """Which of `rows` break such a check once they stand in the version; numbered as they are.

    Without such a check nothing is read.
    """
    checks = tuple(check for check in schema.checks if sees_other_rows(check))
    if not checks or not rows.num_rows:
        return []
    bare = Schema(tuple(Field(field.name, field.type) for field in schema.fields), checks)
    rest = rows.slice(0, 0)
    if base is not None and base.rows:
        names = [name for name in rows.column_names if name in base.schema.names]
        rest = read_rows(blobs, base, names)
        if schema.key:
            rest = rest.filter(pa.array(~stand_in(rest, rows, schema.key)))
    whole = pa.concat_tables([rest, rows], promote_options="default")
    first = rest.num_rows
    found = []
    for rule in check(whole, bare, values_of).broken:
        mine = rule.rows[rule.rows >= first] - first
        if mine.size:
            found.append(rule._replace(rows=mine, failed=len(mine)))
    return found


def still_broken(broken: list[BrokenRule], must: Mapping[str, np.ndarray]) -> list[BrokenRule]:
    """Of corrected rows: what would leave again unseen, and what they were to mend.

    Args:
        must: By rule that only warns the rows that must not break it any more.
    """
    found = []
    for rule in broken:
        rows = rule.rows
        if rule.on_fail == "warn":
            rows = np.intersect1d(rows, must.get(rule.rule, rows[:0]))
        if rule.on_fail != "repair" and rows.size:
            found.append(rule._replace(rows=rows, failed=len(rows)))
    return found
