"""What a commit does to the rows that somebody must correct.

Rows that a rule set aside wait in ``<dataset>.quarantine``. Rows that a rule only warned of, and
those that somebody found to be wrong, are items of ``<dataset>.work``, a dataset like any other,
whose latest version holds what is open or was dismissed. An item is closed in the transaction of
the commit in which its row is right, and the ledger of that version says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from everloop.core.dataset import DatasetVersion
from everloop.core.schema import Field, Schema
from everloop.data import quarantine
from everloop.data.arrow import arrow_type
from everloop.data.by_key import places, rows_by_key, stand_in
from everloop.data.checks import BrokenRule, CheckReport
from everloop.data.ledger import Entry, entry
from everloop.data.quarantine import Aside, filled, joined
from everloop.data.repairs import differing
from everloop.data.rowhash import row_hashes
from everloop.data.rows import read_rows
from everloop.errors import Conflict
from everloop.ports.blobs import BlobStore

__all__ = [
    "ID",
    "MOST_ITEMS",
    "SUFFIX",
    "Beside",
    "Closing",
    "Followed",
    "follow",
    "hashes_of",
    "item_ids",
    "items",
    "work_schema",
]

SUFFIX = ".work"
ID = "work_id"
#: Rows that one rule warns of in one commit and that are items each; of more only the rule is one.
MOST_ITEMS = 100_000

_FIELDS = (
    Field(ID, "string", nullable=False),
    Field("work_state", "string", nullable=False),
    Field("work_kind", "string", nullable=False),
    Field("work_rule", "string"),
    Field("work_reason", "string"),
    Field("work_owner", "string"),
    Field("work_suggestion", "string"),
    Field("work_since", "timestamp"),
    Field("work_values", "string", description="hash of what was wrong"),
    Field("work_rows", "int64"),
    Field("work_note", "string"),
    Field("work_by", "string"),
)
_OWN = tuple(field.name for field in _FIELDS)


class Beside(NamedTuple):
    """The latest versions of what lies beside a dataset, and who answers for it."""

    waiting: DatasetVersion | None = None
    work: DatasetVersion | None = None
    owner: str = ""


class Closing(NamedTuple):
    """What a commit closes by itself, whatever its rows are.

    Attributes:
        ids: Of items and of rows in quarantine; each must still be open.
        aligned: For rows of a quarantine whose dataset has no key: the corrected row of each id.
        note: Why, for people.
        state: ``fixed``, or ``dismissed``: the note is kept then.
    """

    ids: frozenset[str] = frozenset()
    aligned: Mapping[str, int] = {}
    note: str = ""
    state: Literal["fixed", "dismissed"] = "fixed"


class Followed(NamedTuple):
    """What follows beside a dataset: the next rows of each, None where they stay as they are."""

    waiting: Aside | None
    work: Aside | None
    closed: list[Entry]


class Commit(NamedTuple):
    """A commit as far as it matters here.

    Attributes:
        rows: Those that it takes in.
        whole: Whether they are the whole table, so that others are gone.
        base: The version before.
    """

    schema: Schema
    rows: pa.Table
    report: CheckReport
    aside: Aside | None
    whole: bool
    base: DatasetVersion | None
    owner: str
    by: str
    now: datetime


def follow(blobs: BlobStore, commit: Commit, beside: Beside, closing: Closing) -> Followed:
    """What a commit to the main line of a dataset does to the rows that wait, and to the items.

    Raises:
        Conflict: If what is to be closed is not open: somebody else has fixed or dismissed it.
    """
    warned = [rule for rule in commit.report.broken if rule.on_fail == "warn"]
    waiting = _read(blobs, beside.waiting)
    stored = _read(blobs, beside.work)
    if waiting is None and stored is None and not warned and commit.aside is None:
        return Followed(None, None, [])
    _refuse_closed(waiting, stored, closing)
    closed: list[Entry] = []
    after = _after_quarantine(blobs, commit, beside, waiting, stored, closing, closed)
    items = _after_work(blobs, commit, beside, stored, warned, closing, closed)
    return Followed(after, items, closed)


def _read(blobs: BlobStore, version: DatasetVersion | None) -> pa.Table | None:
    if version is None or not version.rows:
        return None
    return read_rows(blobs, version, version.schema.names)


def _refuse_closed(waiting: pa.Table | None, stored: pa.Table | None, closing: Closing) -> None:
    open_ids = set(waiting.column(quarantine.ID).to_pylist()) if waiting is not None else set()
    if stored is not None:
        is_open = pc.equal(stored.column("work_state"), "open")
        open_ids.update(stored.filter(is_open).column(ID).to_pylist())
    gone = sorted(closing.ids - open_ids)
    if gone:
        raise Conflict(
            f"{len(gone)} of {len(closing.ids)} items are not open, such as {gone[0]}",
            hint="they were fixed or dismissed already, or never were here; read the work list",
            details={"gone": gone[:100]},
        )


# The quarantine


def _after_quarantine(
    blobs: BlobStore,
    commit: Commit,
    beside: Beside,
    waiting: pa.Table | None,
    stored: pa.Table | None,
    closing: Closing,
    closed: list[Entry],
) -> Aside | None:
    schema = beside.waiting.schema if beside.waiting is not None else None
    fresh = commit.aside
    rest = waiting
    if waiting is not None:
        ids = np.array([one in closing.ids for one in waiting.column(quarantine.ID).to_pylist()])
        leaving = ids | _come_back(waiting, commit)
        if leaving.any():
            gone = waiting.filter(pa.array(leaving))
            closed += _released(blobs, gone, commit, closing)
            rest = waiting.filter(pa.array(~leaving))
    if fresh is not None:
        known = set(rest.column(quarantine.ID).to_pylist()) if rest is not None else set()
        if stored is not None:  # what was dismissed is not set aside again
            known.update(stored.column(ID).to_pylist())
        new = [one not in known for one in fresh[0].column(quarantine.ID).to_pylist()]
        fresh = (fresh[0].filter(pa.array(new)), fresh[1]) if any(new) else None
    if fresh is not None:
        return joined(rest, schema, fresh)
    if rest is not waiting and rest is not None and schema is not None:
        return rest, schema
    return None


def _come_back(waiting: pa.Table, commit: Commit) -> np.ndarray:
    """Rows that wait and whose key is among the rows that the commit takes in."""
    key = commit.schema.key
    if not key or not set(key) <= set(waiting.column_names):
        return np.zeros(waiting.num_rows, bool)
    try:
        return stand_in(waiting, commit.rows, key)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return np.zeros(waiting.num_rows, bool)  # a key of another type names other rows


def _released(
    blobs: BlobStore, gone: pa.Table, commit: Commit, closing: Closing
) -> Iterable[Entry]:
    """Entries of rows that leave the quarantine, by rule; a row that broke two is in both."""
    ids = gone.column(quarantine.ID).to_pylist()
    columns = [name for name in commit.schema.names if name in gone.column_names]
    old = gone.select(columns)
    new = None
    if closing.state == "fixed":
        at = [closing.aligned.get(one) for one in ids]
        if commit.schema.key and set(commit.schema.key) <= set(columns):
            new = _by_key(old, commit.rows, commit.schema.key)
        elif all(n is not None for n in at):
            new = commit.rows.take(pa.array(at, pa.int64()))
    rows = _told_change(ids, old, new, commit.schema.key)
    rules = [str(rule).split("; ") for rule in gone.column("quarantine_rule").to_pylist()]
    owners = gone.column("quarantine_owner").to_pylist()
    reasons = gone.column("quarantine_reason").to_pylist()
    by: dict[tuple[str, str, str], list[int]] = {}
    for n, names in enumerate(rules):
        for rule in names:
            by.setdefault((rule, owners[n] or commit.owner, reasons[n]), []).append(n)
    for (rule, owner, reason), numbers in by.items():
        told = _end(reason, commit, closing)
        yield entry(blobs, rule, closing.state, told, owner, rows.take(pa.array(numbers)))


def _end(reason: str, commit: Commit, closing: Closing) -> str:
    note = f": {closing.note}" if closing.note else ""
    return f"{reason}; {closing.state} by {commit.by}{note}"


# The items


def _after_work(
    blobs: BlobStore,
    commit: Commit,
    beside: Beside,
    stored: pa.Table | None,
    warned: list[BrokenRule],
    closing: Closing,
    closed: list[Entry],
) -> Aside | None:
    schema = _schema(commit.schema)
    fresh = _warned_items(commit, warned)
    if stored is None:
        return (fresh, schema) if fresh is not None else None
    known = beside.work.schema if beside.work is not None else schema
    ids = stored.column(ID).to_pylist()
    values = stored.column("work_values").to_pylist()
    states = stored.column("work_state").to_pylist()
    again: dict[str, str] = {}
    if fresh is not None:
        again = dict(
            zip(fresh.column(ID).to_pylist(), fresh.column("work_values").to_pylist(), strict=True)
        )
    ended = _ended(blobs, stored, commit, again)
    # What was dismissed was said of the values that were there: of others it is open again.
    pairs = zip(ids, values, strict=True)
    differ = np.array([one in again and again[one] != value for one, value in pairs])
    out = ended | differ
    is_open = np.array([state == "open" for state in states])
    if (ended & is_open).any():
        closed += _closed_items(blobs, stored.filter(pa.array(ended & is_open)), commit, closing)
    stay = set(np.array(ids)[~out].tolist())
    rest = stored.filter(pa.array(~out)) if out.any() else stored
    news = None
    if fresh is not None:
        is_new = [one not in stay for one in again]
        news = fresh.filter(pa.array(is_new)) if any(is_new) else None
    if news is None:
        return (rest, known) if out.any() else None
    kept = tuple(f for f in known.fields if f.name not in schema.names)
    schema = Schema((*schema.fields, *kept), key=(ID,))
    return pa.concat_tables([filled(rest, schema), filled(news, schema)]), schema


def _ended(
    blobs: BlobStore, stored: pa.Table, commit: Commit, again: Mapping[str, str]
) -> np.ndarray:
    """Which items are of rows that are right now, or are gone."""
    ids = stored.column(ID).to_pylist()
    kinds = np.array(stored.column("work_kind").to_pylist())
    key = commit.schema.key
    is_row = (kinds == "warned") | (kinds == "found")
    ended = np.zeros(len(ids), bool)
    if key and set(key) <= set(stored.column_names) and is_row.any():
        there = np.zeros(len(ids), bool)
        there[is_row] = stand_in(stored.filter(pa.array(is_row)), commit.rows, key)
        ended = is_row & (there | commit.whole)
        found = np.flatnonzero(there & (kinds == "found"))
        if len(found):  # right or not, nobody but a person can say; it was changed, at least
            ended[found] = _changed(blobs, stored.take(pa.array(found)).select(list(key)), commit)
    if commit.whole:
        ended |= kinds == "rule"
    still = np.array([one in again for one in ids])
    result: np.ndarray = ended & ~still
    return result


def _changed(blobs: BlobStore, keys: pa.Table, commit: Commit) -> np.ndarray:
    """Of which rows of the commit a value is another than in the version before."""
    key, base = commit.schema.key, commit.base
    changed = np.ones(keys.num_rows, bool)
    new = _by_key(keys, commit.rows, key)
    if base is None or new is None or not set(key) <= set(base.schema.names):
        return changed
    names = [name for name in base.schema.names if name in new.column_names]
    old = rows_by_key(blobs, base, keys, names)
    new = new.filter(pa.array(old.there))
    differs = [
        differing(old.rows.column(name), new.column(name).cast(old.rows.column(name).type))
        for name in names
        if name not in key
    ]
    if differs:
        changed[old.there] = np.logical_or.reduce(differs)
    return changed


def _warned_items(commit: Commit, warned: list[BrokenRule]) -> pa.Table | None:
    gone = [r.rows for r in commit.report.broken if r.on_fail in ("drop", "quarantine")]
    left = np.unique(np.concatenate(gone)) if gone else np.empty(0, np.int64)
    key = list(commit.schema.key)
    parts = []
    for rule in warned:
        at = np.setdiff1d(rule.rows, left) if left.size else rule.rows
        if rule.rows.size and not at.size:
            continue
        said: dict[str, Any] = {
            "rule": rule.rule, "reason": rule.reason, "owner": rule.owner or commit.owner
        }  # fmt: skip
        if not at.size or not key or at.size > MOST_ITEMS:
            parts.append(
                items(commit.schema, None, kind="rule", now=commit.now, rows=len(at), **said)
            )
            continue
        rows = commit.report.table.take(pa.array(at))
        seen = rows.select(list(rule.columns)) if rule.columns else rows
        parts.append(
            items(
                commit.schema, rows.select(key), kind="warned", now=commit.now,
                values=hashes_of(seen), **said,
            )
        )  # fmt: skip
    return pa.concat_tables(parts) if parts else None


def items(
    schema: Schema,
    keys: pa.Table | None,
    *,
    kind: str,
    rule: str | list[str],
    reason: str | list[str],
    owner: str | list[str],
    now: datetime,
    values: list[str] | None = None,
    suggestion: str | list[str] = "",
    rows: int = 1,
) -> pa.Table:
    """Open items, one for each row of `keys`; for None one that is of no single row."""
    count = 1 if keys is None else keys.num_rows

    def all_of(given: Any) -> list[Any]:
        return given if isinstance(given, list) else [given] * count

    rules = all_of(rule)
    columns: dict[str, list[Any]] = {
        ID: item_ids(keys, rules),
        "work_state": all_of("open"),
        "work_kind": all_of(kind),
        "work_rule": rules,
        "work_reason": all_of(reason),
        "work_owner": all_of(owner),
        "work_suggestion": all_of(suggestion),
        "work_since": all_of(now),
        "work_values": values or all_of(""),
        "work_rows": all_of(rows),
        "work_note": all_of(""),
        "work_by": all_of(""),
    }
    types = {field.name: arrow_type(field.type) for field in _FIELDS}
    made = pa.table({name: pa.array(v, types[name]) for name, v in columns.items()})
    for name in schema.key:
        kind_of_key = arrow_type(schema.field(name).type)
        column = pa.nulls(1, kind_of_key) if keys is None else keys.column(name).cast(kind_of_key)
        made = made.append_column(name, column)
    return made


def item_ids(keys: pa.Table | None, rules: list[str]) -> list[str]:
    """Over the rule and the key: the same row under the same rule is one item for ever."""
    of = pa.table({"work_rule": pa.array(rules, pa.string())})
    if keys is not None:
        for name in keys.column_names:
            of = of.append_column(name, keys.column(name))
    return hashes_of(of)


def hashes_of(rows: pa.Table) -> list[str]:
    """The hash of each row, 32 hex digits."""
    found = row_hashes(rows)
    pairs = zip(found.high.tolist(), found.low.tolist(), strict=True)
    return [f"{high:016x}{low:016x}" for high, low in pairs]


def work_schema(schema: Schema) -> tuple[pa.Table, Schema]:
    """The schema of the work list of a dataset, and a table of it without rows."""
    made = _schema(schema)
    return pa.schema([(f.name, arrow_type(f.type)) for f in made.fields]).empty_table(), made


def _schema(schema: Schema) -> Schema:
    own = {field.name for field in _FIELDS}
    keys = [schema.field(name) for name in schema.key]
    bare = [Field(f.name, f.type, pii=f.pii, unit=f.unit) for f in keys if f.name not in own]
    return Schema((*_FIELDS, *bare), key=(ID,))


def _closed_items(
    blobs: BlobStore, gone: pa.Table, commit: Commit, closing: Closing
) -> Iterable[Entry]:
    """Entries of items whose row is right now, or gone; with its old and new values."""
    key = commit.schema.key
    kinds = gone.column("work_kind").to_pylist()
    by: dict[tuple[str, str, str, str], list[int]] = {}
    columns = ("work_rule", "work_owner", "work_reason")
    for n, told in enumerate(zip(*(gone.column(c).to_pylist() for c in columns), strict=True)):
        by.setdefault((*told, "rule" if kinds[n] == "rule" else "row"), []).append(n)
    for (rule, owner, reason, kind), numbers in by.items():
        mine = gone.take(pa.array(numbers))
        ids = mine.column(ID).to_pylist()
        rows = mine.select([ID])
        if kind == "row" and key:
            rows = _row_changes(blobs, ids, mine.select(list(key)), commit)
        yield entry(
            blobs, rule, "fixed", _end(reason, commit, closing), owner or commit.owner, rows
        )


def _row_changes(blobs: BlobStore, ids: list[str], keys: pa.Table, commit: Commit) -> pa.Table:
    key, base = commit.schema.key, commit.base
    new = _by_key(keys, commit.rows, key)
    if base is None or not set(key) <= set(base.schema.names):
        return pa.table({ID: ids}).append_column(key[0], keys.column(key[0]))
    names = [name for name in base.schema.names if name in commit.schema.names]
    found = rows_by_key(blobs, base, keys, names)
    order = pa.array(np.flatnonzero(found.there))
    kept = [ids[n] for n in order.to_pylist()]
    if new is not None and len(kept) != len(ids):
        new = new.take(order)
    return _told_change(kept, found.rows, new, key)


def _by_key(asked: pa.Table, rows: pa.Table, key: tuple[str, ...]) -> pa.Table | None:
    """The rows of these keys, in their order; None if one is not among them."""
    names = list(key)
    at = places(rows.select(names), asked.select(names).cast(rows.select(names).schema))
    return None if (at < 0).any() else rows.take(pa.array(at))


def _told_change(
    ids: list[str], old: pa.Table, new: pa.Table | None, key: tuple[str, ...]
) -> pa.Table:
    """The key and the old values that changed, each beside ``<column>.new``; else the whole row."""
    shown = old
    if new is not None:
        differ = [
            name
            for name in old.column_names
            if name in new.column_names
            and differing(old.column(name), new.column(name).cast(old.column(name).type)).any()
        ]
        wanted = {*(key or old.column_names), *differ}
        shown = old.select([name for name in old.column_names if name in wanted])
        for name in differ:
            shown = shown.append_column(f"{name}.new", new.column(name))
    return shown.add_column(0, pa.field(ID, pa.string()), pa.array(ids, pa.string()))
