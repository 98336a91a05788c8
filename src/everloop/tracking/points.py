"""Metric points: written in bulk with the latest of each key beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, select

from everloop.catalog.tables import metric_keys, metric_latest, runs
from everloop.catalog.transaction import Transaction
from everloop.core.run import Metric
from everloop.tracking.store import chunks

__all__ = ["MetricWriter", "latest_points", "point_of"]

# The one place with statements of its own for each dialect: points are the hottest write.
_POINTS_SQLITE = (
    "INSERT INTO metric_points (run_pk, key_pk, step, at_ms, value, is_nan) "
    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_POINTS_POSTGRES = (
    "INSERT INTO metric_points (run_pk, key_pk, step, at_ms, value, is_nan) "
    "SELECT * FROM unnest(%b::bigint[], %b::bigint[], %b::bigint[], %b::bigint[], "
    "%b::double precision[], %b::boolean[]) ON CONFLICT DO NOTHING"
)
_TAIL = (
    " ON CONFLICT (run_pk, key_pk) DO UPDATE SET step = excluded.step, at_ms = excluded.at_ms, "
    "value = excluded.value, is_nan = excluded.is_nan WHERE "
    "(excluded.step, excluded.at_ms, excluded.value) "
    "> (metric_latest.step, metric_latest.at_ms, metric_latest.value)"
)
_LATEST_SQLITE = (
    "INSERT INTO metric_latest (run_pk, key_pk, step, at_ms, value, is_nan) "
    "VALUES (?, ?, ?, ?, ?, ?)" + _TAIL
)
_LATEST_POSTGRES = _POINTS_POSTGRES.replace("metric_points", "metric_latest").replace(
    " ON CONFLICT DO NOTHING", _TAIL
)

_Row = tuple[int, int, int, int, float, bool]


class MetricWriter:
    """Writes points within a transaction; remembers the keys of metric names over transactions."""

    def __init__(self) -> None:
        self._keys: dict[str, int] = {}

    def remember(self, keys: dict[str, int]) -> None:
        """Keep the keys that ``make_keys`` gave, once its transaction has committed."""
        self._keys.update(keys)

    def make_keys(self, tx: Transaction, points: Sequence[Metric]) -> dict[str, int]:
        """The keys of the names in `points`; unknown names get one within this transaction."""
        names = {point.key for point in points}
        missing = sorted(name for name in names if name not in self._keys)
        return {**self._keys, **_make_keys(tx, missing)} if missing else self._keys

    def knows(self, points: Sequence[Metric]) -> bool:
        """Whether all names in `points` have a key that is known here."""
        keys = self._keys
        return {point.key for point in points} <= keys.keys()

    def write_known(
        self, cursor: Any, dialect: str, logged: Sequence[tuple[int, Sequence[Metric]]]
    ) -> None:
        """Write points of several runs, given by their keys, under names that are known."""
        rows: list[_Row] = []
        for run_pk, points in logged:
            rows += _rows(run_pk, points, self._keys)
        _write(cursor, dialect, rows)

    @staticmethod
    def write(
        cursor: Any, dialect: str, run_pk: int, points: Sequence[Metric], keys: dict[str, int]
    ) -> None:
        """Write points and the latest of each key by a driver's cursor, within its transaction.

        The latest is the greatest by (step, time, value); NaN counts as 0 there.
        """
        _write(cursor, dialect, _rows(run_pk, points, keys))


def _rows(run_pk: int, points: Sequence[Metric], keys: dict[str, int]) -> list[_Row]:
    rows: list[_Row] = []
    for point in points:
        value = float(point.value)  # whole numbers are welcome
        is_nan = value != value
        rows.append(
            (run_pk, keys[point.key], point.step, point.at_ms, 0.0 if is_nan else value, is_nan)
        )
    return rows


def _write(cursor: Any, dialect: str, rows: list[_Row]) -> None:
    if not rows:
        return
    # In the order of keys, so that two writers never wait for each other in a circle. The rows of
    # a key are in the order of (step, time, value) then, so that its last one is the latest.
    rows.sort()
    newest = list({row[:2]: row for row in rows}.values())
    if dialect == "sqlite":
        cursor.executemany(_POINTS_SQLITE, rows)
        cursor.executemany(_LATEST_SQLITE, newest)
    else:
        cursor.execute(_POINTS_POSTGRES, _columns(rows))
        cursor.execute(_LATEST_POSTGRES, _columns(newest))


def _columns(rows: list[_Row]) -> tuple[list[Any], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))


def _make_keys(tx: Transaction, names: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in chunks(names):
        query = select(metric_keys.c.name, metric_keys.c.pk).where(metric_keys.c.name.in_(part))
        found.update((row.name, row.pk) for row in tx.all(query))
        absent = [name for name in part if name not in found]
        for name in absent:
            tx.insert_new(metric_keys, {"name": name})
        if absent:
            found.update((row.name, row.pk) for row in tx.all(query))
    return found


def point_of(key: str, row: Row[Any]) -> Metric:
    """A point from its row (step, at_ms, value, is_nan)."""
    value = math.nan if row.is_nan else row.value
    return Metric(key=key, value=value, step=row.step, at_ms=row.at_ms)


def latest_points(tx: Transaction, run_ids: Sequence[str]) -> dict[str, list[Metric]]:
    """The latest point of each key of each run that has any, by key."""
    latest = metric_latest.c
    query = (
        select(
            runs.c.id, metric_keys.c.name, latest.step, latest.at_ms, latest.value, latest.is_nan
        )
        .join(metric_latest, latest.run_pk == runs.c.pk)
        .join(metric_keys, metric_keys.c.pk == latest.key_pk)
        .order_by(metric_keys.c.name)
    )
    found: dict[str, list[Metric]] = {}
    for part in chunks(run_ids):
        for row in tx.all(query.where(runs.c.id.in_(part))):
            found.setdefault(row.id, []).append(point_of(row.name, row))
    return found
