"""What is new in a run since a cursor: a position in each metric, never the whole history.

``metric_latest`` tells which metrics moved on, so that a look at a run where nothing happened
reads no point at all.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

import msgspec
from sqlalchemy import Row, false, select, true, tuple_

from everloop.catalog.tables import metric_keys, metric_latest, metric_points
from everloop.catalog.transaction import Transaction
from everloop.core.run import Metric, PointPage
from everloop.errors import InvalidInput
from everloop.tracking.limits import check_page
from everloop.tracking.points import point_of
from everloop.tracking.store import RunRow, chunks

__all__ = ["page_after"]

#: Step, time in ms, value (as text: JSON has no infinities), whether it is NaN.
_Place = tuple[int, int, str, bool]
_Cursor = dict[str, _Place]


def page_after(
    tx: Transaction, run: RunRow, cursor: str, keys: list[str] | None, limit: int
) -> PointPage:
    """The points of a run after `cursor`.

    Raises:
        InvalidInput: If the cursor is none of ours, or the limit out of its range.
    """
    check_page(limit)
    places = _decode(cursor)
    moved = [row for row in _latest(tx, run.pk, keys) if _is_after(row, places.get(row.name))]
    found: list[Metric] = []
    has_more = False
    # Each metric that moved gets its share, so that a long one does not hold up the others.
    share = max(1, limit // max(1, len(moved)))
    for latest in moved[:limit]:
        rows = _points(tx, run.pk, latest.key_pk, places.get(latest.name), share + 1)
        has_more = has_more or len(rows) > share
        found += [point_of(latest.name, row) for row in rows[:share]]
        if rows:
            places[latest.name] = _place(rows[:share][-1])
    return PointPage(
        points=tuple(found),
        cursor=_encode(places),
        has_more=has_more or len(moved) > limit,
        state=run.state,
    )


def _latest(tx: Transaction, run_pk: int, keys: list[str] | None) -> list[Row[Any]]:
    latest = metric_latest.c
    columns = (latest.key_pk, latest.step, latest.at_ms, latest.value, latest.is_nan)
    query = (
        select(metric_keys.c.name, *columns)
        .join(metric_keys, metric_keys.c.pk == latest.key_pk)
        .where(latest.run_pk == run_pk)
        .order_by(metric_keys.c.name)
    )
    if keys is None:
        return list(tx.all(query))
    return [r for part in chunks(keys) for r in tx.all(query.where(metric_keys.c.name.in_(part)))]


def _place(row: Row[Any]) -> _Place:
    return (row.step, row.at_ms, repr(float(row.value)), bool(row.is_nan))


def _is_after(row: Row[Any], place: _Place | None) -> bool:
    # The latest is the greatest by step, time and value alone; that it is NaN decides no tie.
    return place is None or (row.step, row.at_ms, row.value) > (place[0], place[1], float(place[2]))


def _points(
    tx: Transaction, run_pk: int, key_pk: int, place: _Place | None, limit: int
) -> list[Row[Any]]:
    points = metric_points.c
    order = (points.step, points.at_ms, points.value, points.is_nan)
    query = select(*order).where(points.run_pk == run_pk, points.key_pk == key_pk)
    if place is not None:
        step, at_ms, value, is_nan = place
        after = tuple_(step, at_ms, float(value), true() if is_nan else false())
        query = query.where(tuple_(*order) > after)
    return list(tx.all(query.order_by(*order).limit(limit)))


def _encode(places: _Cursor) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(places)).decode()


def _decode(cursor: str) -> _Cursor:
    if not cursor:
        return {}
    try:
        text = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True)
        places = msgspec.json.decode(text, type=_Cursor)
        sound = all(not math.isnan(float(place[2])) for place in places.values())
    except (binascii.Error, msgspec.DecodeError, ValueError):
        sound = False
    if not sound:
        raise InvalidInput("the cursor is none of ours", [("cursor", cursor[:80])])
    return places
