"""The quarantine of a dataset: rows that a rule set aside until somebody corrects them.

It is a dataset of its own, ``<dataset>.quarantine``, whose latest version holds what waits. A row
is set aside, and is released, in the transaction of the commit that leaves it out, or takes it in.
"""

from __future__ import annotations

import msgspec
import numpy as np
import pyarrow as pa

from everloop.core.schema import Field, Schema
from everloop.data.arrow import arrow_type
from everloop.data.checks import CheckReport
from everloop.data.rowhash import row_hashes
from everloop.errors import InvalidInput

__all__ = ["ID", "OWN", "SUFFIX", "Aside", "filled", "joined", "set_aside"]

SUFFIX = ".quarantine"
ID = "quarantine_id"
OWN = (ID, "quarantine_rule", "quarantine_reason", "quarantine_owner")

#: Rows of a quarantine, with the schema that they have there.
Aside = tuple[pa.Table, Schema]


def set_aside(report: CheckReport, schema: Schema, owner: str) -> Aside | None:
    """The rows that a rule quarantines, each with its rules, reasons and owners; None if none.

    The id of a row is over its values, so that a commit done again sets nothing aside twice.
    """
    rules = [rule for rule in report.broken if rule.on_fail == "quarantine"]
    if not rules:
        return None
    numbers = np.unique(np.concatenate([rule.rows for rule in rules]))
    place = {number: n for n, number in enumerate(numbers.tolist())}
    told: list[tuple[list[str], list[str], list[str]]] = [([], [], []) for _ in numbers]
    for rule in rules:
        for number in rule.rows.tolist():
            of = told[place[number]]
            for words, word in zip(of, (rule.rule, rule.reason, rule.owner or owner), strict=True):
                if word and word not in words:
                    words.append(word)
    rows = report.table.take(pa.array(numbers))
    rows = rows.append_column(ID, pa.array(_ids(rows), pa.string()))
    for n, name in enumerate(OWN[1:]):
        rows = rows.append_column(name, pa.array(["; ".join(of[n]) for of in told], pa.string()))
    rows = rows.select([*OWN, *schema.names])
    return rows, _schema(schema)


def _schema(schema: Schema) -> Schema:
    own = [Field(name, "string", nullable=name != ID) for name in OWN]
    # No rules: what breaks them is what lies here.
    fields = [
        Field(
            f.name, f.type, unit=f.unit, semantic=f.semantic, pii=f.pii, owner=f.owner,
            description=f.description, mask=f.mask,
        )
        for f in schema.fields
    ]  # fmt: skip
    return Schema((*own, *fields), key=(ID,))


def _ids(rows: pa.Table) -> list[str]:
    hashes = row_hashes(rows)
    seen: dict[str, int] = {}
    found = []
    for low, high in zip(hashes.low.tolist(), hashes.high.tolist(), strict=True):
        name = f"{high:016x}{low:016x}"
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return found


def joined(there: pa.Table | None, known: Schema | None, aside: Aside) -> Aside:
    """What waits already with `aside` added.

    A column that the dataset no longer has stays for the rows that wait with it.
    """
    rows, schema = aside
    if there is None or known is None:
        return aside
    kept = tuple(f for f in known.fields if f.name not in schema.names)
    schema = msgspec.structs.replace(schema, fields=schema.fields + kept)
    return pa.concat_tables([filled(there, schema), filled(rows, schema)]), schema


def filled(rows: pa.Table, schema: Schema) -> pa.Table:
    """The rows with the columns of `schema`, null where they had none."""
    for field in schema.fields:
        if field.name not in rows.column_names:
            nulls = pa.nulls(rows.num_rows, arrow_type(field.type))
            rows = rows.append_column(field.name, nulls)
    rows = rows.select(list(schema.names))
    try:
        return rows.cast(pa.schema([(f.name, arrow_type(f.type)) for f in schema.fields]))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InvalidInput(
            "rows that wait in the quarantine have a column of another type",
            hint="fix them, or leave them out of the quarantine's next version, first",
        ) from error
