"""What is handed back for a work list: the rows that come of it, and what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from everloop.core.dataset import DatasetVersion
from everloop.core.quality import MASKED
from everloop.core.schema import Field, Schema
from everloop.data import quarantine
from everloop.data.arrow import arrow_type, conform
from everloop.data.by_key import rows_by_key
from everloop.data.ledger import Entry, entry
from everloop.data.quarantine import Aside
from everloop.data.rows import read_rows
from everloop.data.texts import Unreadable, read_texts
from everloop.data.work import ID, Beside, Closing, hashes_of, items, work_schema
from everloop.errors import Conflict, Fault, InvalidInput
from everloop.ports.blobs import BlobStore

__all__ = ["Corrected", "Fixing", "State", "added_items", "dismissed", "read_state"]

#: Between the ids of a row that is on the list for several reasons.
JOINT = "; "
_MOST_FAULTS = 1000


class State(NamedTuple):
    """A dataset and what lies beside it.

    Attributes:
        waiting: Rows in quarantine, None for none.
        items: Items of the work list, open and dismissed ones.
    """

    base: DatasetVersion
    beside: Beside
    waiting: pa.Table | None
    items: pa.Table | None

    @property
    def open_ids(self) -> set[str]:
        """Of every row that waits and of every item that is open."""
        found = set(self.waiting.column(quarantine.ID).to_pylist()) if self.waiting else set()
        return found | set(self.open_items().column(ID).to_pylist())

    def open_items(self) -> pa.Table:
        """Items that are open."""
        if self.items is None:
            return work_schema(self.base.schema)[0]
        return self.items.filter(pc.equal(self.items.column("work_state"), "open"))


def read_state(blobs: BlobStore, base: DatasetVersion, beside: Beside) -> State:
    """Read what lies beside a dataset.

    Raises:
        InvalidInput: If the dataset is no table.
    """
    if base.kind != "table":
        raise InvalidInput(f"{base.ref} is a {base.kind} and has no rows to correct")
    tables = [
        read_rows(blobs, version, version.schema.names) if version and version.rows else None
        for version in (beside.waiting, beside.work)
    ]
    return State(base, beside, *tables)


class Corrected(NamedTuple):
    """Rows to take in.

    Attributes:
        must: By rule that warns the rows that must not break it any more.
        ids: Of each row the ids of what it closes.
    """

    rows: pa.Table
    must: dict[str, np.ndarray]
    ids: list[list[str]]

    def closing(self, note: str) -> Closing:
        """What the commit of these rows closes."""
        at = {one: n for n, ids in enumerate(self.ids) for one in ids}
        return Closing(frozenset(at), at, note)


class Fixing:
    """Rows that somebody hands back.

    Raises:
        InvalidInput: If they have no ids, or one twice.
    """

    def __init__(self, blobs: BlobStore, state: State, rows: pa.Table) -> None:
        self._blobs = blobs
        self._state = state
        self._rows = rows
        names = [name for name in (ID, quarantine.ID) if name in rows.column_names]
        if not names:
            raise InvalidInput(
                f"rows to hand back need the column {ID}",
                hint=f"everloop data work --dataset {state.base.dataset} --to FILE writes them",
            )
        given = rows.column(names[0]).to_pylist()
        self._ids = [str(one).split(JOINT) if one else [] for one in given]
        counts = Counter(one for ids in self._ids for one in ids)
        twice = sorted(one for one, count in counts.items() if count > 1)
        if twice or not all(self._ids) or not self._ids:
            which = f": {', '.join(twice[:5])}" if twice else ""
            raise InvalidInput(f"{names[0]} must stand once for each row to hand back{which}")

    @property
    def ids(self) -> list[str]:
        """Of all items that are handed back."""
        return [one for ids in self._ids for one in ids]

    def corrected(self) -> Corrected:
        """The rows with what was left out or masked as it is; all ids are open.

        Raises:
            InvalidInput: With every fault.
            Conflict: If a row changed since it was handed out.
            NotFound: If a column is none of the dataset.
        """
        schema = self._state.base.schema
        own = {*quarantine.OWN, "work_id", "work_rule", "work_reason", "work_owner",
               "work_suggestion", "work_row"}  # fmt: skip
        for name in self._rows.column_names:
            if name not in own:
                schema.field(name)
        before, rules, faults = self._originals()
        if faults:
            raise InvalidInput("the rows cannot be handed back", faults[:_MOST_FAULTS])
        self._refuse_stale(before)
        columns = {}
        for field in schema.fields:
            found = self._column(field, before.column(field.name))
            faults += found if isinstance(found, list) else []
            columns[field.name] = found
        faults = faults or list(self._wrong(columns, before, rules))
        if faults:
            raise InvalidInput("the rows cannot be handed back", faults[:_MOST_FAULTS])
        must: dict[str, list[int]] = {}
        for n, kinds in enumerate(rules):
            for kind, rule in kinds:
                if kind == "warned":
                    must.setdefault(rule, []).append(n)
        rows = conform(
            pa.table(columns), Schema(tuple(Field(f.name, f.type) for f in schema.fields))
        )
        return Corrected(rows, {rule: np.array(at) for rule, at in must.items()}, self._ids)

    def _originals(self) -> tuple[pa.Table, list[list[tuple[str, str]]], list[Fault]]:
        """The row behind each one that is handed back, and by which rules it was on the list."""
        schema = self._state.base.schema
        names = list(schema.names)
        waiting, open_items = self._state.waiting, self._state.open_items()
        in_quarantine = _numbers(waiting, quarantine.ID)
        in_list = _numbers(open_items, ID)
        rules: list[list[tuple[str, str]]] = []
        kinds = open_items.column("work_kind").to_pylist()
        of_item = open_items.column("work_rule").to_pylist()
        faults, from_waiting, from_base = [], [], []
        for n, ids in enumerate(self._ids):
            mine = [one for one in ids if one in in_quarantine]
            rules.append([(kinds[in_list[i]], of_item[in_list[i]]) for i in ids if i in in_list])
            if mine:
                from_waiting.append((n, in_quarantine[mine[0]]))
            elif any(kind == "rule" for kind, _ in rules[-1]):
                faults.append(Fault(f"rows[{n}]", "stands for a rule and not for a row: commit the "
                                    "rows that keep it, or dismiss it"))  # fmt: skip
            else:
                from_base.append((n, in_list[ids[0]]))
            if mine and len(ids) > 1:
                faults.append(Fault(f"rows[{n}]", "has ids of several rows"))
        parts, order = [], []
        if from_waiting and waiting is not None:
            rows = waiting.take(pa.array([at for _, at in from_waiting]))
            parts.append(_with_all(rows, schema))
            order += [n for n, _ in from_waiting]
        if from_base and not faults:
            keys = open_items.take(pa.array([at for _, at in from_base])).select(list(schema.key))
            found = rows_by_key(self._blobs, self._state.base, keys, names)
            if not found.there.all():
                at = np.flatnonzero(~found.there).tolist()
                faults += [Fault(f"rows[{from_base[n][0]}]", "is no longer there") for n in at]
            else:
                parts.append(_with_all(found.rows, schema))
                order += [n for n, _ in from_base]
        if faults or not parts:
            return _with_all(pa.table({}), schema), rules, faults
        back = np.argsort(np.array(order), kind="stable")
        return pa.concat_tables(parts).take(pa.array(back)), rules, faults

    def _refuse_stale(self, before: pa.Table) -> None:
        if "work_row" not in self._rows.column_names:
            return
        given = self._rows.column("work_row").to_pylist()
        now = hashes_of(before)
        changed = [n for n, one in enumerate(given) if one and one != now[n]]
        if changed:
            raise Conflict(
                f"{len(changed)} of {len(given)} rows changed in {self._state.base.dataset} since "
                f"they were handed out, such as rows[{changed[0]}]",
                hint="read the work list again, and correct these as they are now",
                details={"rows": changed[:100]},
            )

    def _column(self, field: Field, before: pa.ChunkedArray) -> pa.ChunkedArray | list[Fault]:
        """What is handed back of a column, in its type; what was masked is as it was."""
        if field.name not in self._rows.column_names:
            return before
        given = self._rows.column(field.name)
        is_text = pa.types.is_string(given.type) or pa.types.is_large_string(given.type)
        if not is_text:
            return given
        texts = given.cast(pa.string()).combine_chunks()
        hidden = pc.fill_null(pc.equal(texts, MASKED), False)
        if field.pii:
            texts = pc.if_else(hidden, pa.scalar(None, pa.string()), texts)
        if field.type != "string":
            texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
        values = read_texts(texts, field.type)
        if isinstance(values, Unreadable):
            told = "a value" if field.pii else repr(values.text)
            return [Fault(f"rows[{values.row}].{field.name}", f"{told} is no {field.type}")]
        if field.pii:
            values = pc.if_else(hidden, before.combine_chunks(), values)
        return pa.chunked_array([values])

    def _wrong(
        self, columns: dict[str, Any], before: pa.Table, rules: list[list[tuple[str, str]]]
    ) -> Iterator[Fault]:
        """Rows on the list whose key was changed, and findings that are as they were."""
        key = self._state.base.schema.key
        after = pa.table(columns)
        found = [n for n, kinds in enumerate(rules) if kinds]
        for name in key:
            old, new = before.column(name).to_pylist(), after.column(name).to_pylist()
            for n in found:
                if old[n] != new[n]:
                    yield Fault(f"rows[{n}].{name}", "is of the key, which names the row: it stays")
        seen = [n for n in found if all(kind == "found" for kind, _ in rules[n])]
        if seen:
            kinds = pa.schema([(name, before.schema.field(name).type) for name in columns])
            try:
                now = hashes_of(after.cast(kinds))
            except pa.ArrowException:
                return  # the commit says what is wrong with the types
            was = hashes_of(before)
            for n in seen:
                if now[n] == was[n]:
                    yield Fault(f"rows[{n}]", "is as it was: correct it, or dismiss the item")


def _numbers(rows: pa.Table | None, column: str) -> dict[str, int]:
    if rows is None:
        return {}
    return {one: n for n, one in enumerate(rows.column(column).to_pylist())}


def _with_all(rows: pa.Table, schema: Schema) -> pa.Table:
    """The columns of a schema, null where a row has none."""
    for field in schema.fields:
        if field.name not in rows.column_names:
            rows = rows.append_column(field.name, pa.nulls(rows.num_rows, arrow_type(field.type)))
    kinds = pa.schema([(f.name, arrow_type(f.type)) for f in schema.fields])
    return rows.select(list(schema.names)).cast(kinds)


# Findings


def added_items(
    blobs: BlobStore, state: State, rows: Sequence[dict[str, Any]], now: datetime
) -> tuple[Aside | None, list[Entry], int]:
    """The next work list with findings, what the ledger says of them, and how many are new.

    Raises:
        InvalidInput: With every fault of the rows.
    """
    schema = state.base.schema
    keys = _keys_of(state.base, rows)
    found = rows_by_key(blobs, state.base, keys, list(schema.names))
    faults = [
        Fault(f"rows[{n}]", f"there is no such row in {state.base.ref}")
        for n in np.flatnonzero(~found.there).tolist()
    ]
    if faults:
        raise InvalidInput("these are no findings", faults[:_MOST_FAULTS])

    def said(name: str, default: str = "") -> list[str]:
        return [str(row.get(name) or default) for row in rows]

    made = items(
        schema, keys, kind="found", rule=said("rule"), reason=said("reason"),
        owner=said("owner", state.beside.owner), suggestion=said("suggestion"), now=now,
        values=hashes_of(_with_all(found.rows, schema)),
    )  # fmt: skip
    ids = made.column(ID).to_pylist()
    first = {one: n for n, one in reversed(list(enumerate(ids)))}
    known: dict[str, tuple[str, str]] = {}
    if state.items is not None:
        names = (ID, "work_state", "work_values")
        parts = (state.items.column(name).to_pylist() for name in names)
        known = {one: (s, v) for one, s, v in zip(*parts, strict=True)}
    values = made.column("work_values").to_pylist()
    new = [
        n
        for one, n in sorted(first.items(), key=lambda item: item[1])
        if one not in known or (known[one][0] == "dismissed" and known[one][1] != values[n])
    ]
    if not new:
        return None, [], 0
    fresh = made.take(pa.array(new))
    rest, before = state.items, state.beside.work
    if rest is not None:
        out = set(fresh.column(ID).to_pylist())
        rest = rest.filter(pa.array([one not in out for one in rest.column(ID).to_pylist()]))
    entries = list(_entries(blobs, fresh, "found", list(schema.key), state.beside.owner))
    known_schema = before.schema if before else None
    return quarantine.joined(rest, known_schema, (fresh, work_schema(schema)[1])), entries, len(new)


def _keys_of(base: DatasetVersion, rows: Sequence[dict[str, Any]]) -> pa.Table:
    schema = base.schema
    if not schema.key:
        raise InvalidInput(
            f"{base.dataset} has no key, so no row of it can be named",
            hint="commit it with ev.Schema(..., key=(...)) first",
        )
    if not rows:
        raise InvalidInput("there are no rows to put on the work list")
    allowed = {*schema.key, "rule", "reason", "owner", "suggestion"}
    faults = []
    for n, row in enumerate(rows):
        for name in (*schema.key, "rule", "reason"):
            if row.get(name) in (None, ""):
                faults.append(Fault(f"rows[{n}].{name}", "is missing"))
        for name in sorted(set(row) - allowed):
            faults.append(Fault(f"rows[{n}].{name}", f"is none of {', '.join(sorted(allowed))}"))
    columns = {}
    for name in schema.key if not faults else ():
        kind = schema.field(name).type
        values = [row[name] for row in rows]
        try:
            column = pa.array(values)
            if pa.types.is_string(column.type):
                read = read_texts(column, kind)
                if isinstance(read, Unreadable):
                    faults.append(Fault(f"rows[{read.row}].{name}", f"is no {kind}"))
                    continue
                column = read
            columns[name] = column.cast(arrow_type(kind))
        except (pa.ArrowException, TypeError):
            faults.append(Fault(f"rows.{name}", f"not all values are {kind}"))
    if faults:
        raise InvalidInput("these are no findings", faults[:_MOST_FAULTS])
    return pa.table(columns)


# Dismissals


def dismissed(
    blobs: BlobStore, state: State, ids: Sequence[str], reason: str, by: str, now: datetime
) -> tuple[Aside | None, Aside | None, list[Entry]]:
    """What lies beside a dataset without these items, and what the ledger says of them."""
    wanted = set(ids)
    schema, entries = state.base.schema, list[Entry]()
    rest: Aside | None = None
    empty, of_work = work_schema(schema)
    made = [state.items] if state.items is not None else []
    known = state.beside.work.schema if state.beside.work else None
    if state.waiting is not None and state.beside.waiting is not None:
        out = np.array([i in wanted for i in state.waiting.column(quarantine.ID).to_pylist()])
        if out.any():
            gone = state.waiting.filter(pa.array(out))
            rest = state.waiting.filter(pa.array(~out)), state.beside.waiting.schema
            item = _as_items(gone, empty, schema)
            made.append(_marked(item, np.ones(item.num_rows, bool), reason, by))
            columns = [name for name in gone.column_names if name not in quarantine.OWN]
            whole = item
            for name in columns:
                if name not in whole.column_names:
                    whole = whole.append_column(name, gone.column(name))
            told = _entries(blobs, whole, "dismissed", columns, state.beside.owner, reason, by)
            entries += told
    if state.items is not None:
        out = np.array([i in wanted for i in state.items.column(ID).to_pylist()])
        if out.any():
            gone = state.items.filter(pa.array(out))
            key = [name for name in schema.key if name in gone.column_names]
            told = _entries(blobs, gone, "dismissed", key, state.beside.owner, reason, by)
            entries += told
            made[0] = _marked(state.items, out, reason, by)
    work: Aside = made[0], known or of_work
    if len(made) > 1:
        work = quarantine.joined(made[0], known, (made[1], of_work))
    elif state.items is None:
        work = made[0], of_work
    return rest, work, entries


def _as_items(waiting: pa.Table, empty: pa.Table, schema: Schema) -> pa.Table:
    """Rows of a quarantine as items, so that they are known when they come again."""
    count = waiting.num_rows
    own = {
        ID: waiting.column(quarantine.ID),
        "work_state": pa.array(["open"] * count),
        "work_kind": pa.array(["quarantined"] * count),
        "work_rule": waiting.column("quarantine_rule"),
        "work_reason": waiting.column("quarantine_reason"),
        "work_owner": waiting.column("quarantine_owner"),
        "work_rows": pa.array([1] * count, pa.int64()),
    }
    for name in schema.key:
        if name in waiting.column_names:
            own[name] = waiting.column(name)
    for field in empty.schema:
        if field.name not in own:
            own[field.name] = pa.nulls(count, field.type)
    return pa.table({field.name: own[field.name] for field in empty.schema}).cast(empty.schema)


def _marked(rows: pa.Table, which: np.ndarray, note: str, by: str) -> pa.Table:
    mask = pa.array(which)
    for name, value in (("work_state", "dismissed"), ("work_note", note), ("work_by", by)):
        column = pc.if_else(mask, pa.scalar(value), rows.column(name))
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows


def _entries(
    blobs: BlobStore,
    rows: pa.Table,
    action: Any,
    columns: list[str],
    owner: str,
    note: str = "",
    by: str = "",
) -> Iterator[Entry]:
    end = f"; {action} by {by}: {note}" if by else ""
    names = ("work_rule", "work_reason", "work_owner")
    by_rule: dict[tuple[str, str, str], list[int]] = {}
    for n, told in enumerate(zip(*(rows.column(name).to_pylist() for name in names), strict=True)):
        by_rule.setdefault(told, []).append(n)
    shown = rows.select([ID, *columns])
    for (rule, reason, who), at in by_rule.items():
        mine = shown.take(pa.array(at))
        for one in str(rule).split(JOINT):
            yield entry(blobs, one, action, f"{reason}{end}", who or owner, mine)
