"""Random adversarial rows for features, the definitions that read them, and a slow oracle."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa
from hypothesis import strategies as st

from everloop.core.expr_sql import compile_sql
from everloop.core.feature import Aggregate, FeatureView
from everloop.features.define import agg, col, feature_set, feature_view, source
from everloop.features.sets import FeatureSet

INSTANT = pa.timestamp("us", tz="UTC")
EVENTS = pa.schema(
    [
        ("k", pa.string()),
        ("j", pa.int64()),
        ("time", INSTANT),
        ("known", INSTANT),
        ("x", pa.float64()),
        ("n", pa.int64()),
        ("s", pa.string()),
        ("b", pa.bool_()),
    ]
)
FACTS = pa.schema([("k", pa.string()), ("size", pa.float64())])
REQUESTS = pa.schema(
    [("k", pa.string()), ("j", pa.int64()), ("t", INSTANT), ("asked", pa.float64())]
)
KINDS: Any = {
    "k": "string", "j": "int", "time": "timestamp", "known": "timestamp", "x": "float", "n": "int",
    "s": "string", "b": "bool", "size": "float",
}  # fmt: skip

keys = st.sampled_from(["a", "b", "", "a\0b", None])
places = st.sampled_from([0, 1, -1, 2**63 - 1, None])
# Few instants, so that there are ties and bounds are hit; now and then one that is far away.
instants = st.one_of(st.integers(-3, 24), st.integers(-3, 24), st.sampled_from([-(10**15), 10**16]))
# Quarters: their sums are exact in any order, so the oracle may add as it likes.
quarters = st.integers(-40, 40).map(lambda n: n / 4)
events = st.tuples(
    keys,
    places,
    st.one_of(st.none(), instants, instants, instants),
    st.one_of(st.none(), instants, instants),
    st.one_of(st.none(), quarters, quarters, quarters),
    st.one_of(st.none(), st.sampled_from([2**53 + 1, -(2**63), 7])),
    st.one_of(st.none(), st.sampled_from(["", "u", "it's", "é"])),
    st.one_of(st.none(), st.booleans()),
)
facts = st.tuples(keys, st.one_of(st.none(), quarters))
requests = st.tuples(keys, places, instants, st.one_of(st.none(), quarters))


def table(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema
    )


def definitions() -> FeatureSet:
    """Views of every kind: newest row and window, known late or at once, with a ttl or none."""
    late = source("events", time="time", known="known")
    prompt = source("events", time="time")
    newest = {
        "{}_x": col.x,
        "{}_n": col.n.cast("int64"),
        "{}_s": col.s.cast("string"),
        "{}_t": col.time.cast("timestamp"),
        "{}_up": (col.x > 0).cast("bool"),
    }

    def named(name: str) -> dict[str, Any]:
        return {label.format(name): value for label, value in newest.items()}

    return feature_set(
        "cases",
        feature_view("late", entity=("k", "j"), source=late, ttl="6us", features=named("late")),
        feature_view("ever", entity="k", source=late, features=named("ever")),
        feature_view("prompt", entity="j", source=prompt, ttl="4us", features=named("prompt")),
        feature_view(
            "windows",
            entity="k",
            source=late,
            features={
                "w_rows": agg.count("7us"),
                "w_x": agg.count(col.x, "7us"),
                "w_sum": agg.sum(col.x, "7us"),
                "w_mean": agg.mean(col.x * 2 > col.n, "3us"),
                "w_min": agg.min(col.x, "7us", closed="both"),
                "w_max": agg.max(col.x, "9us", closed="left"),
                "w_open": agg.count("5us", closed="neither"),
            },
        ),
        feature_view(
            "mixed",
            entity=("j", "k"),
            source=late,
            ttl="5us",
            features={"m_x": col.x, "m_sum": agg.sum(col.x, "8us"), "m_b": col.b.cast("bool")},
        ),
        feature_view("facts", entity="k", source=source("facts"), features=[col.size]),
        time="t",
        request={"k": str | None, "j": int | None, "asked": float | None},
        on_demand={"ratio": col.asked / col.size, "far": col.w_rows + col.w_x.fill(-1.0)},
    )


def wild() -> FeatureSet:
    """Sums over values of any size and sign, as the oracle of sums cannot have them."""
    late = source("events", time="time", known="known")
    features = {
        "sum": agg.sum(col.x, "9us"),
        "mean": agg.mean(col.x, "4us"),
        "min": agg.min(col.x, "9us"),
        "max": agg.max(col.x, "9us"),
    }
    return feature_set(
        "wild",
        feature_view("windows", entity="k", source=late, features=features),
        feature_view("ever", entity="k", source=late, features={"x": col.x}),
        time="t",
        request={"k": str | None},
    )


def oracle(definition: FeatureSet, data: dict[str, pa.Table], *, as_of: bool) -> pa.Table:
    """The views' features by plain joins in DuckDB, row by row as the rules say."""
    with duckdb.connect() as sql:
        sql.execute("SET threads = 1")
        sql.execute("SET TimeZone = 'UTC'")
        for name, rows in data.items():
            numbered = rows.append_column("seq", pa.array(range(rows.num_rows), pa.int64()))
            sql.register(name, numbered)
        columns: dict[str, Any] = {}
        for view in definition.views:
            for feature in view.features:
                if isinstance(feature.value, Aggregate):
                    text = _window(view, feature.value, as_of)
                else:
                    text = _newest(view, compile_sql(feature.value, KINDS), as_of)
                columns[feature.name] = sql.sql(text).to_arrow_table().column("value")
        return pa.table(columns)


def _visible(view: FeatureView, as_of: bool) -> tuple[str, str]:
    """When a row of the view becomes visible, and which rows ever do."""
    if not view.source.time:
        return "0", "TRUE"
    event, known = "epoch_us(s.time)", "epoch_us(s.known)"
    if not view.source.known or as_of:
        return event, "s.time IS NOT NULL"
    both = "s.time IS NOT NULL AND s.known IS NOT NULL"
    return f"greatest({event}, {known})", both


def _of_source(text: str) -> str:
    for name in KINDS:
        text = text.replace(f'"{name}"', f"s.{name}")
    return text


def _joined(view: FeatureView, as_of: bool) -> str:
    _, ever = _visible(view, as_of)
    on = " AND ".join(f"s.{key} = r.{key}" for key in view.entity)
    return f"requests r LEFT JOIN {view.source.dataset} s ON {on} AND {ever}"


def _newest(view: FeatureView, value: str, as_of: bool) -> str:
    visible, _ = _visible(view, as_of)
    where, order = "TRUE", "s.seq DESC"
    if view.source.time:
        where = f"{visible} <= epoch_us(r.t)"
        if view.ttl_us:
            where += f" AND epoch_us(r.t) - epoch_us(s.time) <= {view.ttl_us}"
        known = ", s.known DESC NULLS LAST" if view.source.known else ""
        order = f"s.time DESC{known}, s.seq DESC"
    value = _of_source(value)
    # The row of a request without a candidate must stay, so ranking is among candidates only.
    inner = f"""SELECT r.seq AS asked, {value} AS value,
        row_number() OVER (PARTITION BY r.seq ORDER BY {order}) AS place
        FROM {_joined(view, as_of)} WHERE s.seq IS NOT NULL AND {where}"""
    return f"""SELECT f.value FROM requests r
        LEFT JOIN ({inner}) f ON f.asked = r.seq AND f.place = 1 ORDER BY r.seq"""


def _window(view: FeatureView, value: Aggregate, as_of: bool) -> str:
    visible, _ = _visible(view, as_of)
    since = ">=" if value.closed in ("left", "both") else ">"
    until = "<=" if value.closed in ("right", "both") else "<"
    what = "s.seq"
    if value.argument is not None:
        what = f"CAST({_of_source(compile_sql(value.argument, KINDS))} AS DOUBLE)"
    function = {"mean": "avg"}.get(value.function, value.function)
    within = f"""{visible} {since} epoch_us(r.t) - {value.window_us}
        AND {visible} {until} epoch_us(r.t)"""
    named = " AND ".join(f"r.{key} IS NOT NULL" for key in view.entity)
    aggregate = f"{function}({what}) FILTER ({within})"
    return f"""SELECT CAST(CASE WHEN any_value({named}) THEN {aggregate} END AS DOUBLE) AS value
        FROM {_joined(view, as_of)} GROUP BY r.seq ORDER BY r.seq"""


def cells(column: Any) -> list[Any]:
    """Values in a form in which equal bits are equal, NaN included."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us")).cast(pa.int64())
    return [
        ("nan" if value != value else struct.pack("<d", value + 0.0))
        if isinstance(value, float)
        else value
        for value in column.to_pylist()
    ]
