"""The quarantine of a dataset: rows that a rule set aside until somebody corrects them.

It is a dataset of its own, ``<dataset>.quarantine``, whose latest version holds what waits. A row
is set aside, and is released, in the transaction of the commit that leaves it out, or takes it in.
"""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np
import pyarrow as pa

from everloop.core.dataset import DatasetVersion
from everloop.core.schema import Field, Schema
from everloop.data.arrow import arrow_type
from everloop.data.checks import CheckReport
from everloop.data.rowhash import row_hashes
from everloop.data.rows import read_rows
from everloop.errors import Conflict, InvalidInput, NotFound
from everloop.ports.blobs import BlobStore

__all__ = ["ID", "SUFFIX", "Aside", "joined", "released", "set_aside"]

SUFFIX = ".quarantine"
ID = "quarantine_id"
_OWN = (ID, "quarantine_rule", "quarantine_reason", "quarantine_owner")

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
    for n, name in enumerate(_OWN[1:]):
        rows = rows.append_column(name, pa.array(["; ".join(of[n]) for of in told], pa.string()))
    rows = rows.select([*_OWN, *schema.names])
    return rows, _schema(schema)


def _schema(schema: Schema) -> Schema:
    own = [Field(name, "string", nullable=name != ID) for name in _OWN]
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


def joined(blobs: BlobStore, waiting: DatasetVersion | None, aside: Aside) -> Aside | None:
    """What waits with `aside` added; None if all of it waits already.

    A column that the dataset no longer has stays for the rows that wait with it.
    """
    rows, schema = aside
    if waiting is None:
        return aside
    there = read_rows(blobs, waiting, waiting.schema.names)
    known = set(there.column(ID).to_pylist())
    fresh = rows.filter(pa.array([one not in known for one in rows.column(ID).to_pylist()]))
    if not fresh.num_rows:
        return None
    kept = tuple(f for f in waiting.schema.fields if f.name not in schema.names)
    schema = msgspec.structs.replace(schema, fields=schema.fields + kept)
    return pa.concat_tables([_filled(there, schema), _filled(fresh, schema)]), schema


def _filled(rows: pa.Table, schema: Schema) -> pa.Table:
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
            hint="release them, or leave them out of the quarantine's next version, first",
        ) from error


def released(
    blobs: BlobStore, name: str, waiting: DatasetVersion | None, rows: pa.Table
) -> tuple[pa.Table, pa.Table]:
    """The corrected `rows` without what the quarantine added, and what still waits without them.

    Raises:
        NotFound: If nothing was ever set aside.
        InvalidInput: If `rows` have no ids, or one twice.
        Conflict: If a row does not wait: somebody has released it, or it never was here.
    """
    if waiting is None:
        raise NotFound(f"no row of {name} was ever set aside")
    if ID not in rows.column_names:
        raise InvalidInput(
            f"rows to release need the column {ID}",
            hint=f"read {name}{SUFFIX}, correct its rows, and give them back",
        )
    ids = rows.column(ID).to_pylist()
    twice = sorted(str(one) for one, count in Counter(ids).items() if count > 1)
    if twice or None in ids or not ids:
        which = f": {', '.join(twice[:5])}" if twice else ""
        raise InvalidInput(f"{ID} must stand once for each row to release{which}")
    there = read_rows(blobs, waiting, waiting.schema.names)
    known = there.column(ID).to_pylist()
    gone = sorted(set(ids) - set(known))
    if gone:
        raise Conflict(
            f"{len(gone)} of {len(ids)} rows do not wait in {waiting.ref}, such as {gone[0]}",
            hint="they were released already, or were never set aside; read the quarantine again",
            details={"gone": gone[:100]},
        )
    leaving = set(ids)
    rest = there.filter(pa.array([one not in leaving for one in known]))
    return rows.drop_columns([n for n in _OWN if n in rows.column_names]), rest
