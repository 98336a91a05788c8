"""Which rows two versions do not have alike, in groups, and tables with some of the changes made.

Rows are paired by key; without one a row that is not in both is added or removed, as often as it
is. A table with some groups' changes keeps the order of the new version, with rows that it lacks
behind those that they followed in the old one: with all changes it is the new version, row by row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from everloop.core.context import current_workspace
from everloop.data.frame import Table
from everloop.data.ledger import plain
from everloop.data.match import match
from everloop.data.sql import matching_rows
from everloop.errors import InvalidInput, NotFound
from everloop.evaluation.data_tests.inputs import Contender, hashes_of

__all__ = ["MOST_GROUPS", "Changes", "grouped"]

#: More groups than this are put together, the smallest ones.
MOST_GROUPS = 12
_MOST_LEDGER = 1_000_000
_Places = npt.NDArray[np.int64]


class Changes(NamedTuple):
    """What differs, slot by slot in the order of the new version.

    Attributes:
        rows: Those of the old version, then those of the new one.
        old, new: Place of the slot's row in `rows`; -1 where that version has none.
        group: Number of the slot's group; -1 where both versions have the same row.
        names: Of the groups.
        by: What they are grouped by.
    """

    rows: pa.Table
    old: _Places
    new: _Places
    group: npt.NDArray[np.intp]
    names: tuple[str, ...]
    by: str
    notes: tuple[str, ...] = ()

    @property
    def sizes(self) -> list[int]:
        """Rows of each group."""
        return [int(n) for n in np.bincount(self.group[self.group >= 0], minlength=len(self.names))]

    def table(self, made: Collection[int]) -> Table:
        """The old rows with the changes of some groups."""
        is_made = np.isin(self.group, list(made)) | (self.group < 0)
        places = np.where(is_made, self.new, self.old)
        return Table(self.rows.take(pa.array(places[places >= 0])))


def grouped(
    old: Contender, new: Contender, key: Sequence[str], by: str | Mapping[str, str]
) -> Changes:
    """Pair the rows of two versions and group what differs.

    Raises:
        InvalidInput: If nothing differs, or the columns do not fit together.
        NotFound: If `by` is no column and no word.
    """
    shared = [name for name in new.rows.column_names if name in old.rows.column_names]
    notes = []
    if set(shared) != set(old.rows.column_names) | set(new.rows.column_names):
        notes.append(
            "the versions do not have the same columns: rows are compared in those of both"
        )
    names = tuple(key) or old.key or new.key
    slots = _slots(old.rows, new.rows, shared, [n for n in names if n in shared])
    if slots is None:
        notes.append(f"{', '.join(names)} does not name each row once: rows are paired by content")
        slots = _slots(old.rows, new.rows, shared, [])
        assert slots is not None  # without a key there is always a pairing
    olds, news, changed = slots
    if not changed.any():
        raise InvalidInput(
            f"no row of {new.name} differs from {old.name}: there is nothing to blame",
            [("blame", "only the order of the rows differs")],
        )
    try:
        rows = pa.concat_tables(
            [old.rows.to_arrow(), new.rows.to_arrow()], promote_options="permissive"
        )
    except pa.ArrowException as error:
        raise InvalidInput(f"{old.name} and {new.name} do not fit together: {error}") from error
    moved = np.where(news >= 0, news + len(old.rows), -1)
    found = Changes(rows, olds, moved, np.full(len(olds), -1), (), "")
    labels, told = _labels(found, changed, shared, names, old, new, by)
    return _numbered(found, changed, labels, told, notes)


def _slots(
    old: Table, new: Table, shared: list[str], key: list[str]
) -> tuple[_Places, _Places, npt.NDArray[np.bool_]] | None:
    """Place in both versions and whether it changed, slot by slot; None if the key is no key."""
    before, after = hashes_of(old, shared), hashes_of(new, shared)
    if key:
        mine, others = hashes_of(new, key), hashes_of(old, key)
        for one in (mine, others):
            if len(np.unique(np.stack(one), axis=1).T) < len(one.low):
                return None
        pair = match(mine, others)
    else:
        pair = match(after, before)
    is_new = pair < 0
    changed = is_new.copy()
    kept = np.flatnonzero(~is_new)
    to = pair[kept]
    changed[kept] = (after.low[kept] != before.low[to]) | (after.high[kept] != before.high[to])
    gone = np.ones(len(old), dtype=bool)
    gone[to] = False
    removed = np.flatnonzero(gone)
    # A removed row stands behind the last one before it that the new version has, too.
    home = np.full(len(old), -1, dtype=np.int64)
    home[to] = kept
    last = np.maximum.accumulate(np.where(gone, -1, np.arange(len(old)))) if len(old) else home
    anchor = np.where(last[removed] >= 0, home[np.maximum(last[removed], 0)], -1)
    at = np.concatenate([np.arange(len(new)), anchor])
    rank = np.concatenate([np.zeros(len(new)), 1 + np.arange(len(removed))])
    order = np.lexsort((rank, at))
    olds = np.concatenate([pair, removed])[order]
    news = np.concatenate([np.arange(len(new)), np.full(len(removed), -1)])[order]
    is_changed = np.concatenate([changed, np.ones(len(removed), dtype=bool)])[order]
    return olds, news, is_changed


# --- how they are called --------------------------------------------------------------------------


def _labels(
    found: Changes,
    changed: npt.NDArray[np.bool_],
    shared: list[str],
    key: Sequence[str],
    old: Contender,
    new: Contender,
    by: str | Mapping[str, str],
) -> tuple[list[str], str]:
    """A name for each slot that changed, and what they are grouped by."""
    slots = np.flatnonzero(changed)
    if isinstance(by, Mapping):
        return _by_condition(found, slots, by), "condition"
    if by in ("auto", "rule"):
        rules = _rules(old, new, key)
        names = _by_rule(found, slots, key, rules) if rules and key else None
        if names is not None and (by == "rule" or any(names)):
            rest = _by_change(found, slots, shared, key)
            return [n or f"no rule: {r}" for n, r in zip(names, rest, strict=True)], "rule"
        if by == "rule":
            raise InvalidInput(
                f"the row ledger knows of no rule between {old.name} and {new.name}",
                [("by", "rule")], hint='group by="change", by a column, or by SQL conditions',
            )  # fmt: skip
    if by in ("auto", "change"):
        return _by_change(found, slots, shared, key), "change"
    if by not in found.rows.column_names:
        raise NotFound.named("column to group by", by, [*found.rows.column_names, "rule", "change"])
    values = found.rows.column(by).take(pa.array(_either(found, slots))).to_pylist()
    return [f"{by} = {value}" for value in values], by


def _either(found: Changes, slots: _Places) -> _Places:
    """The row of each slot: the new one where there is one."""
    return np.where(found.new[slots] >= 0, found.new[slots], found.old[slots])


def _by_condition(found: Changes, slots: _Places, by: Mapping[str, str]) -> list[str]:
    rows = found.rows.take(pa.array(_either(found, slots)))
    names = [""] * len(slots)
    for name, condition in by.items():
        for place in matching_rows(rows, str(name), str(condition)).tolist():
            names[place] = names[place] or str(name)  # the first that fits
    return [name or "all others" for name in names]


def _by_change(found: Changes, slots: _Places, shared: list[str], key: Sequence[str]) -> list[str]:
    names: list[str] = np.where(
        found.old[slots] < 0, "added", np.where(found.new[slots] < 0, "removed", "changed")
    ).tolist()
    both = np.flatnonzero((found.old[slots] >= 0) & (found.new[slots] >= 0))
    if not len(both):
        return names
    differ = {}
    table = Table(found.rows)
    for column in shared:
        if column not in key:
            one = hashes_of(table, [column])
            a, b = found.old[slots[both]], found.new[slots[both]]
            differ[column] = (one.low[a] != one.low[b]) | (one.high[a] != one.high[b])
    for n, place in enumerate(both.tolist()):
        names[place] = "changed " + ", ".join(c for c, which in differ.items() if which[n])
    return names


def _rules(old: Contender, new: Contender, key: Sequence[str]) -> dict[str, set[str]]:
    """By key the rules that changed or dropped the row on its way to the new version."""
    found: dict[str, set[str]] = {}
    for change in new.rows.changes:
        if change.rows.column_names and set(key) <= set(change.rows.column_names):
            for row in plain(change.rows.select(list(key))):
                found.setdefault(_text(row), set()).add(change.rule)
    if new.source is None:
        return found
    data, name = current_workspace().data, new.source.dataset
    first = old.source.version if old.source and old.source.dataset == name else 0
    is_ours = _scopes(data, name, range(first + 1, new.source.version + 1))
    summaries = [one for one in data.changes(dataset=name) if is_ours(one.scope)]
    for rule in dict.fromkeys(one.rule for one in summaries if one.action != "warned"):
        for entry in data.changed_rows(dataset=name, rule=rule, limit=_MOST_LEDGER):
            if is_ours(entry.scope) and set(key) <= set(entry.row):
                found.setdefault(_text({n: entry.row[n] for n in key}), set()).add(rule)
    return found


def _scopes(data: Any, name: str, numbers: range) -> Callable[[str], bool]:
    """Whether an entry of the ledger is about these versions: of their commits, or their runs."""
    made = [one for one in data.versions(name, branch=None) if one.number in numbers]
    commits = {f"dataset:{one.ref}" for one in made}
    runs = tuple(f"run:{one.run_id}/" for one in made if one.run_id)
    return lambda scope: scope in commits or scope.startswith(runs)


def _by_rule(
    found: Changes, slots: _Places, key: Sequence[str], rules: Mapping[str, set[str]]
) -> list[str]:
    rows = found.rows.select(list(key)).take(pa.array(_either(found, slots)))
    return [" + ".join(sorted(rules.get(_text(row), ()))) for row in plain(rows)]


def _text(row: Mapping[str, Any]) -> str:
    return json.dumps(row, sort_keys=True)


def _numbered(
    found: Changes,
    changed: npt.NDArray[np.bool_],
    labels: list[str],
    by: str,
    notes: Iterable[str],
) -> Changes:
    counts = Counter(labels)
    names = [name for name, _ in counts.most_common()]
    told = list(notes)
    if len(names) > MOST_GROUPS:
        rest = set(names[MOST_GROUPS - 1 :])
        other = f"{len(rest)} other groups"
        names = [*names[: MOST_GROUPS - 1], other]
        labels = [other if label in rest else label for label in labels]
        told.append(f"the {len(rest)} smallest groups were put together")
    place = {name: number for number, name in enumerate(names)}
    group = np.full(len(changed), -1, dtype=np.intp)
    group[changed] = [place[label] for label in labels]
    return found._replace(group=group, names=tuple(names), by=by, notes=tuple(told))
