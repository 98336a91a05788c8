"""Work lists as they are read: counted and told item by item, or as rows to be corrected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from everloop.core.dataset import DatasetVersion
from everloop.core.work import WorkCount, WorkItem, WorkList
from everloop.data import quarantine
from everloop.data.by_key import rows_by_key
from everloop.data.fixing import JOINT, State
from everloop.data.ledger import masked, plain
from everloop.data.rows import row_parts
from everloop.data.work import ID, hashes_of
from everloop.ports.blobs import BlobStore

__all__ = ["Asked", "Beside", "listed", "whole_rows"]

_GIVEN = (ID, "work_rule", "work_reason", "work_owner", "work_suggestion", "work_row")
_ITEM = (
    "work_state", "work_kind", "work_rule", "work_reason", "work_owner", "work_suggestion",
    "work_since", "work_rows", "work_note", "work_by",
)  # fmt: skip


class Asked(NamedTuple):
    """Which items."""

    owner: str
    rule: str
    dismissed: bool
    limit: int


class Beside(NamedTuple):
    """Owners and latest versions of the datasets by name, and columns of personal data."""

    owners: Mapping[str, str]
    bases: Mapping[str, DatasetVersion]
    hidden: Collection[str]


def listed(
    blobs: BlobStore, versions: list[DatasetVersion], beside: Beside, asked: Asked
) -> WorkList:
    """The items of quarantines and work lists; these are read part by part."""
    counts: Counter[tuple[str, str, Any, str]] = Counter()
    items: list[WorkItem] = []
    for version in versions:
        name, _, end = version.dataset.rpartition(".")
        if end == quarantine.SUFFIX[1:] and asked.dismissed:
            continue
        base = beside.bases.get(name)
        key = [k for k in (base.schema.key if base else ()) if k in version.schema.names]
        is_waiting = end == quarantine.SUFFIX[1:]
        if is_waiting and not key:
            key = [n for n in version.schema.names if n not in quarantine.OWN]
        own = list(quarantine.OWN) if is_waiting else [ID, *_ITEM]
        for part in row_parts(blobs, version, [*own, *key]):
            rows = _chosen(part, beside.owners.get(name, ""), asked, is_waiting=is_waiting)
            _count(counts, name, rows, is_waiting=is_waiting)
            if len(items) < asked.limit:
                shown = masked(rows.slice(0, asked.limit - len(items)), beside.hidden)
                since = version.created_at if is_waiting else None
                items += [_item(name, row, key, since) for row in plain_items(shown)]
    told = tuple(
        WorkCount(owner=owner, dataset=name, kind=kind, rule=rule, items=count)
        for (owner, name, kind, rule), count in sorted(counts.items(), key=lambda c: (-c[1], c[0]))
    )
    return WorkList(total=sum(counts.values()), counts=told, items=tuple(items))


def plain_items(rows: pa.Table) -> list[dict[str, Any]]:
    """The rows with values as JSON has them; when it came up stays a time."""
    found = list(plain(rows))
    if "work_since" in rows.column_names:
        for row, at in zip(found, rows.column("work_since").to_pylist(), strict=True):
            row["work_since"] = at
    return found


def _chosen(rows: pa.Table, owner: str, asked: Asked, *, is_waiting: bool) -> pa.Table:
    """The rows that are asked for, with the owner of the dataset where a rule has none."""
    names = ("quarantine_owner", "quarantine_rule") if is_waiting else ("work_owner", "work_rule")
    whose = rows.column(names[0])
    nobody = pc.equal(pc.fill_null(whose, ""), "")
    whose = pc.if_else(nobody, pa.scalar(owner), whose)
    rows = rows.set_column(rows.schema.get_field_index(names[0]), names[0], whose)
    if not is_waiting:
        state = "dismissed" if asked.dismissed else "open"
        rows = rows.filter(pc.equal(rows.column("work_state"), state))
    for name, wanted in zip(names, (asked.owner, asked.rule), strict=True):
        if wanted:
            rows = rows.filter(_among(rows.column(name), wanted))
    return rows


def _among(texts: pa.ChunkedArray, wanted: str) -> pa.Array:
    """Which of some texts, with ``; `` between several in one, have `wanted` among them."""
    known = pc.unique(texts).to_pylist()
    fitting = [text for text in known if text and wanted in text.split(JOINT)]
    return pc.is_in(texts, value_set=pa.array(fitting, pa.string()))


def _count(counts: Counter[Any], name: str, rows: pa.Table, *, is_waiting: bool) -> None:
    by = ["quarantine_owner", "quarantine_rule"] if is_waiting else ["work_owner", "work_rule"]
    if is_waiting:
        rows = rows.append_column("work_kind", pa.array(["quarantined"] * rows.num_rows))
    found = rows.group_by([*by, "work_kind"]).aggregate([([], "count_all")])
    columns = (found.column(n).to_pylist() for n in (*by, "work_kind", "count_all"))
    for owner, rule, kind, count in zip(*columns, strict=True):
        counts[owner or "", name, kind, rule or ""] += count


def _item(name: str, row: dict[str, Any], key: list[str], since: Any) -> WorkItem:
    of_key = {k: row[k] for k in key}
    if quarantine.ID in row:
        return WorkItem(
            id=row[quarantine.ID], dataset=name, kind="quarantined", rule=row["quarantine_rule"],
            reason=row["quarantine_reason"], owner=row["quarantine_owner"], key=of_key,
        )  # fmt: skip
    kind = row["work_kind"]
    return WorkItem(
        id=row[ID], dataset=name, kind=kind, state=row["work_state"],
        rule=row["work_rule"] or "", reason=row["work_reason"] or "",
        owner=row["work_owner"] or "", suggestion=row["work_suggestion"] or "",
        key={} if kind == "rule" else of_key, rows=row["work_rows"] or 0,
        since=row["work_since"], note=row["work_note"] or "", by=row["work_by"] or "",
    )  # fmt: skip


def whole_rows(
    blobs: BlobStore,
    state: State,
    hidden: Collection[str],
    *,
    owner: str,
    rule: str,
    limit: int,
) -> pa.Table:
    """The rows behind open items, each once, with its ids, rules and owners."""
    asked = Asked(owner, rule, dismissed=False, limit=limit)
    names = list(state.base.schema.names)
    whose = state.beside.owner
    parts = []
    if state.waiting is not None:
        rows = _chosen(state.waiting, whose, asked, is_waiting=True).slice(0, limit)
        given = {
            ID: rows.column(quarantine.ID),
            "work_rule": rows.column("quarantine_rule"),
            "work_reason": rows.column("quarantine_reason"),
            "work_owner": rows.column("quarantine_owner"),
            "work_suggestion": pa.array([""] * rows.num_rows),
            "work_row": pa.array([""] * rows.num_rows),
        }
        there = [name for name in names if name in rows.column_names]
        parts.append(pa.table({**given, **{name: rows.column(name) for name in there}}))
    items = _chosen(state.open_items(), whose, asked, is_waiting=False)
    items = items.filter(pc.not_equal(items.column("work_kind"), "rule"))
    items = items.slice(0, limit - sum(part.num_rows for part in parts))
    if items.num_rows:
        parts.append(_current(blobs, state, items, names))
    if not parts:
        empty = {name: pa.array([], pa.string()) for name in _GIVEN}
        return pa.table(empty)
    return masked(pa.concat_tables(parts, promote_options="default"), hidden)


def _current(blobs: BlobStore, state: State, items: pa.Table, names: list[str]) -> pa.Table:
    """The rows of the latest version behind items, one for all items of a row."""
    key = list(state.base.schema.key)
    keys = items.select(key)
    first: dict[tuple[Any, ...], int] = {}
    groups: list[list[int]] = []
    for n, row in enumerate(zip(*(keys.column(name).to_pylist() for name in key), strict=True)):
        at = first.setdefault(row, len(groups))
        if at == len(groups):
            groups.append([])
        groups[at].append(n)
    found = rows_by_key(
        blobs, state.base, keys.take(pa.array([group[0] for group in groups])), names
    )
    kept = [groups[n] for n in np.flatnonzero(found.there).tolist()]
    given: dict[str, Any] = {}
    for name in _GIVEN[:-1]:
        texts = items.column(name).to_pylist()
        parts = (dict.fromkeys(texts[n] for n in group if texts[n]) for group in kept)
        given[name] = pa.array([JOINT.join(part) for part in parts], pa.string())
    given["work_row"] = pa.array(hashes_of(found.rows), pa.string())
    return pa.table(
        {**given, **{name: found.rows.column(name) for name in found.rows.column_names}}
    )
