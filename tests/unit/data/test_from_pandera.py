"""Pandera's schemas beside what Pandera itself says of the same frames."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pa
import pandera.polars as pp
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everloop as ev
from everloop.data.frame import heed_zones
from everloop.data.judge import judge_frame
from everloop.data.schema_code import schema_code
from everloop.data.schema_from import translated
from everloop.errors import InvalidInput

heed_zones()  # for the tests of other modules, which run in this process, too

WHOLE = st.one_of(st.none(), st.integers(-2, 4))
REAL = st.sampled_from([None, math.nan, -math.inf, -1.5, -0.0, 0.0, 1.0, 2.5, math.inf])
TEXT = st.one_of(st.none(), st.sampled_from(["", "a", "b", "ab", "ba", "abc", "äb", "a\n"]))
TIME = st.one_of(st.none(), st.integers(0, 4))
ROWS = st.lists(
    st.fixed_dictionaries({"i": WHOLE, "f": REAL, "s": TEXT, "t": TIME}), max_size=7
)  # fmt: skip


def columns_of(module: Any) -> dict[str, list[Any]]:
    """One schema of a single rule for each kind of check, for a back end."""
    check, times = module.Check, [pd.Timestamp("2020-01-01"), pd.Timestamp("2020-01-03")]
    return {
        "i": [
            check.ge(0), check.gt(0), check.le(2), check.lt(2), check.eq(1), check.ne(1),
            check.in_range(0, 3), check.in_range(0, 3, include_min=False, include_max=False),
            check.isin([1, 2]), check.notin([1, 2]),
        ],
        "f": [
            check.ge(0), check.gt(0), check.le(1), check.lt(1), check.eq(1), check.ne(1),
            check.in_range(-1.5, 1, include_max=False), check.isin([1.0, 2.5]), check.notin([0.0]),
        ],
        "s": [
            check.isin(["a", "ab"]), check.notin(["a", "ab"]), check.eq("a"), check.ne("a"),
            check.str_matches("a|b$"), check.str_matches("^b"), check.str_contains("b"),
            check.str_startswith("a"), check.str_endswith("b"), check.str_length(1, 2),
            check.str_length(max_value=2), check.str_length(exact_value=2),
        ],
        "t": [check.ge(times[0]), check.lt(times[1]), check.isin(times)],
    }  # fmt: skip


def frames_of(rows: list[dict[str, Any]]) -> tuple[pd.DataFrame, pl.DataFrame]:
    start = pd.Timestamp("2019-12-31")
    times = [None if row["t"] is None else start + pd.Timedelta(days=row["t"]) for row in rows]
    kinds = {"i": pl.Int64, "f": pl.Float64, "s": pl.String}
    polars = pl.DataFrame(
        {name: pl.Series([row[name] for row in rows], dtype=kind) for name, kind in kinds.items()}
    ).with_columns(t=pl.Series(times, dtype=pl.Datetime("us")))
    pandas = pd.DataFrame({
        "i": pd.array([row["i"] for row in rows], dtype="Int64"),
        "f": pd.Series([row["f"] for row in rows], dtype="float64"),
        "s": pd.Series([row["s"] for row in rows], dtype="str"),
        "t": pd.Series(times, dtype="datetime64[us]"),
    })  # fmt: skip
    return pandas, polars


STAYS = ["all", "exclude_first", "exclude_last"]
PANDAS_TYPES = {"i": "Int64", "f": "float64", "s": "str", "t": "datetime64[us]"}
POLARS_TYPES = {"i": pl.Int64, "f": pl.Float64, "s": pl.String, "t": pl.Datetime("us")}


def of_pandera(schema: Any, frame: Any) -> set[int]:
    """The rows that Pandera's own engine names."""
    try:
        schema.validate(frame, lazy=True)
    except (pa.errors.SchemaErrors, pp.errors.SchemaErrors) as caught:
        cases = caught.failure_cases
        return {int(n) for n in cases["index"]}
    return set()


def of_everloop(schema: Any, frame: Any) -> set[int]:
    report = judge_frame(frame, ev.schema_from(schema))
    assert not report.faults
    return {row.row for rule in report.broken for row in rule.rows}


@settings(max_examples=15, deadline=None)
@given(rows=ROWS, nullable=st.booleans(), data=st.data())
def test_the_same_rows_fail_as_with_pandera(
    rows: list[dict[str, Any]], nullable: bool, data: st.DataObject
) -> None:
    pandas, polars = frames_of(rows)
    for module, frame, types in ((pa, pandas, PANDAS_TYPES), (pp, polars, POLARS_TYPES)):
        every = columns_of(module)
        for name, checks in every.items():
            check = data.draw(st.sampled_from(checks))
            column = module.Column(types[name], check, nullable=nullable)
            schema = module.DataFrameSchema({name: column})
            told = (module.__name__, name, check)
            assert of_everloop(schema, frame) == of_pandera(schema, frame), told


@settings(max_examples=15, deadline=None)
@given(
    rows=ROWS,
    nullable=st.booleans(),
    stays=st.sampled_from(["all", "exclude_first", "exclude_last"]),
)
@pytest.mark.filterwarnings("ignore:Setting report_duplicates:UserWarning")
def test_what_repeats_is_what_pandera_names(
    rows: list[dict[str, Any]], nullable: bool, stays: Any
) -> None:
    pandas, polars = frames_of(rows)
    for module, frame, types in ((pa, pandas, PANDAS_TYPES), (pp, polars, POLARS_TYPES)):
        columns = {name: module.Column(types[name], nullable=nullable) for name in types}
        pair = module.DataFrameSchema(columns, unique=["i", "s"], report_duplicates=stays)
        _assert_repeats(pair, frame, rows, ("i", "s"))
        for name in ("i", "f", "s"):
            column = module.Column(
                types[name], nullable=nullable, unique=True, report_duplicates=stays
            )
            _assert_repeats(module.DataFrameSchema({name: column}), frame, rows, (name,))


def _assert_repeats(
    schema: Any, frame: Any, rows: list[dict[str, Any]], names: tuple[str, ...]
) -> None:
    ours, theirs = of_everloop(schema, frame), of_pandera(schema, frame)
    assert bool(ours) == fails(schema, frame)
    # Two nulls are the same to Pandera and refuse the frame, but its list leaves them out.
    left = {n for n in ours - theirs if all(gone(rows[n][name]) for name in names)}
    assert ours - left == theirs


def fails(schema: Any, frame: Any) -> bool:
    try:
        schema.validate(frame, lazy=True)
    except (pa.errors.SchemaErrors, pp.errors.SchemaErrors):
        return True
    return False


def gone(value: Any) -> bool:
    return value is None or value != value


@settings(max_examples=8, deadline=None)
@given(rows=ROWS)
def test_checks_of_the_users_own_are_run_by_pandera(rows: list[dict[str, Any]]) -> None:
    pandas, polars = frames_of(rows)
    by_pandas = pa.DataFrameSchema(
        {
            "f": pa.Column(
                "float64",
                [
                    pa.Check(lambda column: column < column.max(), name="below the greatest"),
                    pa.Check(lambda value: value < 2, element_wise=True, name="below 2"),
                ],
                nullable=True,
            ),
            "i": pa.Column("Int64", nullable=True),
        },
        checks=pa.Check(lambda frame: frame["f"] > -1, name="f above -1"),
    )
    by_polars = pp.DataFrameSchema(
        {
            "i": pp.Column(
                pl.Int64,
                pp.Check(
                    lambda data: data.lazyframe.select(pl.col(data.key) <= pl.col(data.key).mean())
                ),
                nullable=True,
            ),
            "s": pp.Column(
                pl.String, pp.Check(lambda value: len(value) < 2, element_wise=True), nullable=True
            ),
        },
        checks=pp.Check(lambda data: data.lazyframe.select(pl.col("i") > 0), name="i above 0"),
    )
    assert of_everloop(by_pandas, pandas) == of_pandera(by_pandas, pandas)
    assert of_everloop(by_polars, polars) == of_pandera(by_polars, polars)


class Flights(pa.DataFrameModel):
    """As people write them."""

    number: int = pa.Field(ge=1, unique=True)
    origin: str = pa.Field(isin=["EWR", "JFK"], description="where it starts")
    delay: float = pa.Field(le=1440, nullable=True, raise_warning=True)

    class Config:
        strict = True
        drop_invalid_rows = False


def test_a_model_becomes_fields_that_a_person_would_write() -> None:
    schema = ev.schema_from(Flights)
    assert schema.extra == "refuse"
    assert schema.field("number") == ev.Field(
        "number", "int64", nullable=False, ge=1, required=True
    )
    assert schema.field("origin").among == ("EWR", "JFK")
    assert schema.field("origin").description == "where it starts"
    report = judge_frame({"number": [0, 2], "origin": ["LGA", "JFK"], "delay": [1.0, 9e9]}, schema)
    assert [(rule.rule, rule.on_fail, rule.failed) for rule in report.broken] == [
        ("number.ge", "fail", 1),
        ("origin.among", "fail", 1),
        ("delay less_than_or_equal_to(1440)", "warn", 1),
    ]


def test_what_drops_invalid_rows_drops_them_here(tmp_path: Path) -> None:
    schema = pa.DataFrameSchema({"x": pa.Column(int, pa.Check.gt(0))}, drop_invalid_rows=True)
    frame = pd.DataFrame({"x": [1, -1, 3]})
    with ev.open(str(tmp_path / ".everloop")) as ws:
        version = ws.data.commit(
            "rows", ev.Table.of(frame).to_arrow(), schema=ev.schema_from(schema)
        )
        kept = ws.data.read("rows").column("x").to_pylist()
    assert version.rows == 2
    assert kept == schema.validate(frame, lazy=True)["x"].tolist()


def odd() -> Any:
    return pa.DataFrameSchema(
        {
            "x": pa.Column(int, pa.Check.ge(0)),
            "late": pa.Column(str, required=False),
            "^v[0-9]$": pa.Column(float, pa.Check.ge(0), regex=True),
            "ratio": pa.Column(complex),
            "kind": pa.Column(str, parsers=pa.Parser(lambda column: column.str.lower())),
            "n": pa.Column(float, pa.Check.ge(0, ignore_na=False), nullable=True),
        },
        index=pa.Index(int),
        ordered=True,
        strict="filter",
        parsers=pa.Parser(lambda frame: frame),
        add_missing_columns=False,
    )


def test_what_cannot_be_said_is_named_with_its_path() -> None:
    with pytest.raises(InvalidInput) as caught:
        ev.schema_from(odd())
    assert [fault.path for fault in caught.value.faults] == [
        "index", "parsers", "strict", "ordered", "columns.^v[0-9]$", "columns.late",
        "columns.ratio", "columns.kind.parsers", "columns.n.checks[0]",
    ]  # fmt: skip
    with pytest.warns(UserWarning, match="9 rules .* left out") as told:
        schema = ev.schema_from(odd(), unsupported="warn")
    assert "columns.late: required=False needs like=" in str(told[0].message)
    assert schema.names == ("x", "kind", "n")


def test_like_tells_which_columns_there_are() -> None:
    schema = pp.DataFrameSchema(
        {
            "late": pp.Column(pl.String, required=False),
            "here": pp.Column(pl.Int32, required=False),
            "^v[0-9]$": pp.Column(pl.Float64, pp.Check.ge(0), regex=True),
        }
    )
    frame = pl.DataFrame({"here": [1], "v1": [-1.0], "v2": [1.0], "w": ["a"]})
    made = ev.schema_from(schema, like=frame)
    assert made.names == ("here", "v1", "v2")
    report = judge_frame(frame, made)
    assert [rule.columns for rule in report.broken] == [("v1",)]
    assert not judge_frame(frame.drop("here"), made).ok


def test_the_code_that_is_written_gives_an_equal_schema() -> None:
    for module, types in ((pa, PANDAS_TYPES), (pp, POLARS_TYPES)):
        schema = module.DataFrameSchema(
            {n: module.Column(types[n], c, nullable=True) for n, c in columns_of(module).items()},
            unique=["i", "s"],
            checks=module.Check(lambda frame: True, name="odd \"'\n name"),
        )
        found = translated(schema)
        code = schema_code(found.schema, title='a """ title\\', untranslated=found.untranslated)
        names: dict[str, Any] = {}
        exec(code, names)
        assert names["SCHEMA"] == found.schema
        assert names["SCHEMA"].digest == found.schema.digest


def test_what_is_no_schema_of_a_frame_is_refused() -> None:
    with pytest.raises(InvalidInput, match="cannot be translated"):
        ev.schema_from(pa.Column(int))
    with pytest.raises(InvalidInput, match="cannot be read from a int"):
        ev.schema_from(3)
