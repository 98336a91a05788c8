"""Suites of Great Expectations beside what Great Expectations itself said of the same frames.

Its answers were recorded (``gx_golden.py`` says how, and by which version): the library is too
large to be installed with ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import everloop as ev
from everloop.data.judge import judge_frame
from everloop.data.schema_code import schema_code
from everloop.data.schema_from import translated
from everloop.errors import InvalidInput

GOLDEN = json.loads((Path(__file__).parent / "gx_golden.json").read_text(encoding="utf-8"))
MILES = {"min_value": 0, "max_value": 5000}
TYPES = {"i": pl.Int64, "f": pl.Float64, "g": pl.Float64, "s": pl.String}
FRAMES = [pl.DataFrame(frame, schema=TYPES) for frame in GOLDEN["frames"]]


def suite(*expectations: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """As GX 1 writes it."""
    return {
        "name": "flights",
        "expectations": [{"type": kind, "kwargs": given} for kind, given in expectations],
    }


def test_every_recorded_case_names_the_rows_that_great_expectations_named() -> None:
    assert len(GOLDEN["cases"]) > 900
    schemas: dict[str, ev.Schema] = {}
    for number, kind, given, is_well, rows in GOLDEN["cases"]:
        key = json.dumps([kind, given])
        if key not in schemas:
            schemas[key] = ev.schema_from(suite((kind, given)), like=FRAMES[0])
        report = judge_frame(FRAMES[number], schemas[key])
        named = sorted({row.row for rule in report.broken for row in rule.rows})
        told = (number, kind, given, FRAMES[number].to_dicts())
        assert report.ok == is_well, told
        assert named == ([] if is_well else rows), told


def test_the_code_that_is_written_gives_an_equal_schema() -> None:
    every = suite(*((kind, given) for _, kind, given, _, _ in GOLDEN["cases"][:400]))
    found = translated(every, FRAMES[0])
    assert not found.untranslated
    names: dict[str, Any] = {}
    exec(schema_code(found.schema, title="golden"), names)
    assert names["SCHEMA"] == found.schema
    assert names["SCHEMA"].digest == found.schema.digest


def test_a_suite_of_0_18_on_disk_becomes_fields_that_a_person_would_write(tmp_path: Path) -> None:
    file = tmp_path / "flights.json"
    expectations = [
        ("expect_column_values_to_be_of_type", {"column": "id", "type_": "int64"}),
        ("expect_column_values_to_not_be_null", {"column": "id", "result_format": "BASIC"}),
        (
            "expect_column_values_to_be_between",
            {"column": "miles", **MILES},
        ),
        ("expect_column_values_to_be_in_set", {"column": "origin", "value_set": ["EWR", "JFK"]}),
    ]
    file.write_text(
        json.dumps({
            "data_asset_type": None,
            "expectation_suite_name": "flights",
            "expectations": [
                {"expectation_type": kind, "kwargs": given, "meta": {}}
                for kind, given in expectations
            ],
            "meta": {"great_expectations_version": "0.18.22"},
        })
    )  # fmt: skip
    wanted = ev.Schema(
        (
            ev.Field("id", "int64", nullable=False, required=True),
            ev.Field("miles", "float64", ge=0, le=5000, required=True),
            ev.Field("origin", "string", among=("EWR", "JFK"), required=True),
        ),
        extra="allow",
    )
    assert ev.schema_from(file) == ev.schema_from(str(file)) == wanted


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [
        ("expect_column_kl_divergence_to_be_less_than", {"column": "f"}, "has no counterpart"),
        ("expect_column_values_to_not_be_null", {"column": "nope"}, "'nope' cannot be told"),
        ("expect_column_values_to_be_between", {"column": "f"}, "no bound"),
        ("expect_column_values_to_be_in_set", {"column": "f", "value_set": []}, "set is empty"),
        (
            "expect_column_values_to_be_between",
            {"column": "f", "min_value": {"$PARAMETER": "low"}},
            "the parameter 'low'",
        ),
        (
            "expect_column_values_to_be_unique",
            {"column": "f", "parse_strings_as_datetimes": True},
            "parse_strings_as_datetimes has no counterpart",
        ),
        ("expect_column_values_to_match_regex", {"column": "f", "regex": "a"}, "needs text"),
        ("expect_column_values_to_match_regex", {"column": "s", "regex": "(?=a)"}, "look-around"),
        (
            "expect_column_values_to_not_be_null",
            {"column": "f", "row_condition": "f.mean() > 3"},
            "cannot be translated",
        ),
        (
            "expect_column_values_to_not_be_null",
            {"column": "f", "row_condition": "zz > 3"},
            "'zz', whose type is not known",
        ),
        (
            "expect_column_values_to_not_be_null",
            {"column": "f", "mostly": 2},
            "a share from 0 to 1",
        ),
        ("expect_column_to_exist", {"column": "f", "column_index": 3}, "order is not judged"),
        ("expect_my_own", {}, "has no counterpart"),
        ("expect_compound_columns_to_be_unique", {"column_list": []}, "cannot be read"),
        ("expect_column_pair_values_to_be_equal", {"column_A": "f"}, "cannot be read"),
        ("expect_column_values_to_be_in_set", {"column": "f", "value_set": 3}, "cannot be read"),
        ("expect_column_values_to_be_between", {"column": "f", "min_value": "a"}, "one kind"),
        (
            "expect_column_values_to_not_be_null",
            {"column": "f", "row_condition": "__import__('os').getcwd()"},
            "cannot be translated",
        ),
    ],
)
def test_what_cannot_be_said_is_named_with_its_path(
    kind: str, given: dict[str, Any], told: str
) -> None:
    rules = suite(("expect_column_to_exist", {"column": "i"}), (kind, given))
    with pytest.raises(InvalidInput, match=told) as caught:
        ev.schema_from(rules, like=FRAMES[0])
    assert [fault.path for fault in caught.value.faults] == [f"expectations[1] {kind}"]
    with pytest.warns(UserWarning, match=told):
        kept = ev.schema_from(rules, like=FRAMES[0], unsupported="warn")
    assert "i" in kept.names


def test_a_column_whose_type_nobody_tells_is_asked_for() -> None:
    rules = suite(("expect_column_values_to_not_be_null", {"column": "id"}))
    with pytest.raises(InvalidInput, match="give like="):
        ev.schema_from(rules)
    assert ev.schema_from(rules, like={"id": [1]}).field("id").type == "int64"


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("i > 0 and (s == 'a' or f < 0)", [0, 3]),
        ("(i > 0) & ~(s == 'a')", [1, 3]),
        ("0 < i <= 2", [0, 1]),
        ("`i` in [1, 3] | f.isna()", [0, 2, 3]),
        ('col("i") >= 2', [1, 3]),
        ('col("f").notNull()', [0, 1, 3]),
        (
            {"type": "comparison", "column": {"name": "i"}, "operator": ">", "parameter": 0},
            [0, 1, 3],
        ),
        (
            {
                "type": "and",
                "conditions": [
                    {"type": "nullity", "column": {"name": "f"}, "is_null": False},
                    {"type": "comparison", "column": {"name": "i"}, "operator": "NOT_IN",
                     "parameter": [1]},
                ],
            },
            [1, 3],
        ),
    ],
)  # fmt: skip
def test_conditions_of_every_spelling_choose_rows(condition: Any, rows: list[int]) -> None:
    frame = pl.DataFrame(
        {"i": [1, 2, -1, 3], "f": [1.0, 2.0, None, -1.0], "s": ["a", "b", "a", None], "x": [0] * 4}
    )
    given = {"column": "x", "value_set": [9], "row_condition": condition}
    schema = ev.schema_from(suite(("expect_column_values_to_be_in_set", given)), like=frame)
    assert [row.row for row in judge_frame(frame, schema).broken[0].rows] == rows


def test_severity_and_notes_are_kept() -> None:
    rules = suite(("expect_column_values_to_be_between", {"column": "f", "min_value": 0}))
    rules["expectations"][0] |= {"severity": "warning", "meta": {"notes": "by contract"}}
    (check,) = ev.schema_from(rules, like=FRAMES[0]).checks
    assert (check.on_fail, check.reason) == ("warn", "by contract")


def test_a_table_has_just_the_columns_of_a_set() -> None:
    given = {"column_set": ["i", "f"], "exact_match": True}
    schema = ev.schema_from(suite(("expect_table_columns_to_match_set", given)), like=FRAMES[0])
    assert (schema.names, schema.extra) == (("i", "f"), "refuse")
    assert not judge_frame(FRAMES[1], schema).ok
    assert judge_frame(FRAMES[1].select("f", "i"), schema).ok
    open_schema = ev.schema_from(suite(("expect_column_to_exist", {"column": "i"})), like=FRAMES[0])
    assert judge_frame(FRAMES[1], open_schema).ok
    assert not judge_frame(FRAMES[1].drop("i"), open_schema).ok


@pytest.mark.parametrize("given", [{}, {"expectations": [3]}, "no-such.json", 3, None])
def test_what_is_no_suite_is_refused(given: Any) -> None:
    with pytest.raises(InvalidInput):
        ev.schema_from(given)
