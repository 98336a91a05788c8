"""From a prediction to training rows, to source rows, to what rules did to them and to owners."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import everloop as ev
from everloop.core.context import using
from everloop.core.schema import Field, Schema
from everloop.errors import InvalidInput, NotFound
from everloop.governance.neighbours import distances, find_neighbours
from everloop.governance.render import neighbours_text
from everloop.workspace import Workspace

OPS, DESK = "ops@example.org", "desk@example.org"
SCHEMA = Schema(
    (
        Field("id", "int64", nullable=False),
        Field("x", "float64", le=90, on_fail="warn", owner=DESK),
        Field("place", "string"),
        Field("mail", "string", pii="email"),
    ),
    key=("id",),
)
PLACES = ("EWR", "JFK", "LGA")


@ev.step
def clean(rows: ev.Table) -> ev.Table:
    kept = rows.drop_where("no place", "place IS NULL", reason="nobody knows where")
    return kept.sort("x", descending=True).with_columns(double="x * 2")


@ev.step
def counted(rows: ev.Table) -> ev.Table:
    made = rows.to_polars().group_by("place").agg(n=ev_len()).sort("place")
    return ev.Table(made.to_arrow(), sources=rows.sources)


def ev_len() -> Any:
    import polars as pl

    return pl.len()


@ev.pipeline
def train() -> int:
    return len(counted(clean(ev.read("d"))))


@pytest.fixture
def run_id(tmp_path: Path) -> Any:
    with ev.open(tmp_path / ".everloop") as ws, using(ws):
        rows = [
            {"id": n, "x": float(n), "place": (*PLACES, None)[n % 4], "mail": f"secret-{n}@x.org"}
            for n in range(100)
        ]
        ev.commit("d", rows, schema=SCHEMA, owner=OPS)
        train.run()
        yield ws, train.run_id


def test_neighbours_are_followed_to_their_source_rows_and_owners(
    run_id: tuple[Workspace, str],
) -> None:
    ws, run = run_id
    found = find_neighbours(ws.catalog, ws.blobs, run, {"double": 188.2, "place": "LGA"}, 3)
    assert (found.rows, found.source) == (75, "d@1")
    assert found.step.endswith("clean")
    assert [one.key["id"] for one in found.neighbours] == [94, 98, 90]
    first = found.neighbours[0]
    assert first.row == {"id": 94, "x": 94.0, "place": "LGA", "mail": "(masked)"}
    assert [(c.rule, c.action, c.owner) for c in first.changes] == [("x.le", "warned", DESK)]
    assert first.owners == (OPS, DESK)
    assert found.neighbours[2].owners == (OPS,)
    spread = np.std([n * 2.0 for n in range(100) if n % 4 != 3])
    assert first.distance == pytest.approx(0.2 / (4 * spread))
    text = neighbours_text(found)
    assert "d@1, id=94" in text
    assert "secret" not in text


def test_an_aggregation_is_followed_by_step_and_says_so(run_id: tuple[Workspace, str]) -> None:
    ws, run = run_id
    found = find_neighbours(ws.catalog, ws.blobs, run, {"place": "JFK", "n": 25}, 1)
    [one] = found.neighbours
    assert (one.distance, one.key, one.row) == (0.0, {}, None)
    assert found.source == ""
    assert (
        found.followed == "the rows carry no key: it is known only that the table was made of d@1"
    )


def test_what_cannot_be_told_says_why(run_id: tuple[Workspace, str]) -> None:
    ws, run = run_id
    with pytest.raises(NotFound, match="every feature") as got:
        find_neighbours(ws.catalog, ws.blobs, run, {"x": 1.0, "y": 1.0}, 1)
    assert "lacks y" in (got.value.hint or "")
    with pytest.raises(NotFound, match="not known here"):
        find_neighbours(ws.catalog, ws.blobs, "", {"x": 1.0}, 1)
    with pytest.raises(InvalidInput, match="1 to 100"):
        find_neighbours(ws.catalog, ws.blobs, run, {"x": 1.0}, 0)


NUMBERS = st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(math.nan))
TEXTS = st.one_of(st.none(), st.sampled_from(PLACES))


@given(st.lists(st.tuples(NUMBERS, TEXTS), min_size=1, max_size=12), NUMBERS, TEXTS)
def test_distances_are_what_the_paper_says(
    rows: list[tuple[float | None, str | None]], x: float | None, place: str | None
) -> None:
    table = pa.table(
        {
            "x": pa.array([r[0] for r in rows], pa.float64()),
            "place": pa.array([r[1] for r in rows], pa.string()),
        }
    )
    known = [a for a, _ in rows if a is not None and not math.isnan(a)]
    spread = float(np.std(known)) if known else 0.0

    def far(a: float | None) -> float:
        gone = [value is None or math.isnan(value) for value in (a, x)]
        if any(gone):
            return 0.0 if all(gone) else 1.0
        assert a is not None
        assert x is not None
        return abs(a - x) / (4 * spread) if spread else float(a != x)

    wanted = [math.hypot(far(a), float(b != place)) for a, b in rows]
    assert distances(table, {"x": x, "place": place}) == pytest.approx(wanted)


def test_row_identity_ends_where_a_key_is_set() -> None:
    rows = ev.Table.of({"id": [3, 1, 2], "x": [1.0, None, 1.0]}, key=["id"])
    assert rows.filter("x = 1").take([1]).with_columns(y="x").sort("x").key == ("id",)
    assert rows.sort("x", "id").column("id").to_pylist() == [2, 3, 1]
    assert rows.sort("x", descending=True).column("id").to_pylist() == [3, 2, 1]
    assert rows.with_columns(id="id").key == ("id",)
    assert rows.with_columns(id="id + 1").key == ()
    assert rows.set_where("r", "id", "9", "id = 1", reason="wrong").key == ()
    assert ev.Table.concat([rows, rows.with_columns(id="id + 5")]).key == ()
    with pytest.raises(InvalidInput, match="name a column"):
        rows.sort()


def test_times_and_texts_of_a_request_are_compared_as_such() -> None:
    at = datetime(2013, 1, 1, tzinfo=UTC)
    table = pa.table({"at": pa.array([at, None]), "kind": pa.array(["a", "b"]).dictionary_encode()})
    assert distances(table, {"at": at.isoformat(), "kind": "b"}).tolist() == [1.0, 1.0]
    assert distances(table, {"kind": 3}).tolist() == [1.0, 1.0]
