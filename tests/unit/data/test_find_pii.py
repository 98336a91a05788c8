"""Personal data in columns: found by form, check and name; what chance makes is not."""

from __future__ import annotations

import random
import string

import polars as pl
import pytest

import everloop as ev
from everloop.core import checksums
from everloop.core.pii import PiiFinding, PiiReport
from everloop.data.find_pii import sampled_rows
from everloop.errors import InvalidInput

RANDOM = random.Random(7)
ROWS = 400


def numbers(size: int) -> list[int]:
    return [RANDOM.randrange(10 ** (size - 1), 10**size) for _ in range(ROWS)]


def bsns() -> list[str]:
    found: list[str] = []
    while len(found) < ROWS:
        one = f"{RANDOM.randrange(10**9):09}"
        if checksums.dutch_bsn(one):
            found.append(one)
    return found


def by_column(report: PiiReport) -> dict[str, PiiFinding]:
    return {f.column: f for f in report.findings if f.found}


def test_kinds_are_found_in_texts_numbers_and_within_texts() -> None:
    valid = bsns()
    frame = pl.DataFrame(
        {
            "contact": [f" p{n}@example.org" if n % 3 else None for n in range(ROWS)],
            "code": valid,
            "as_number": [int(one) for one in valid],  # some lost a zero in front
            "home_tel": [f"030 {n + 100_000}" for n in range(ROWS)],
            "remark": [f"please call +49 30 {n + 900_000} before you come" for n in range(ROWS)],
            "DateOfBirth": [20000101 + n for n in range(ROWS)],
        }
    )  # fmt: skip
    found = by_column(ev.find_pii(frame))
    assert {name: finding.kind for name, finding in found.items()} == {
        "contact": "email", "code": "nl-bsn", "as_number": "nl-bsn", "home_tel": "phone",
        "remark": "phone", "DateOfBirth": "date-of-birth",
    }  # fmt: skip
    assert found["contact"].values == ROWS - len(range(0, ROWS, 3))
    assert found["remark"].inside
    assert found["code"].share == 1.0


@pytest.mark.parametrize("size", [5, 8, 9, 10, 11, 12, 13, 15, 16, 18])
def test_random_numbers_are_nobodys(size: int) -> None:
    drawn = numbers(size)
    frame = pl.DataFrame({"amount": drawn, "code": [str(n) for n in drawn]})
    assert by_column(ev.find_pii(frame)) == {}


def test_words_times_and_codes_are_no_personal_data() -> None:
    letters = string.ascii_uppercase
    frame = pl.DataFrame(
        {
            "word": ["".join(RANDOM.choices(letters, k=8)) for _ in range(ROWS)],
            "sku": [f"{RANDOM.choice(letters)}{n:08}" for n in range(ROWS)],
            "day": [f"2024-01-{n % 28 + 1:02}" for n in range(ROWS)],
            "hour": [f"{n % 24:02}:{n % 60:02}:00" for n in range(ROWS)],
            "price": [n / 7 for n in range(ROWS)],
            "empty": [None] * ROWS,
        },
        schema_overrides={"empty": pl.String},
    )
    assert by_column(ev.find_pii(frame)) == {}


def test_a_few_values_of_a_weak_check_say_nothing() -> None:
    assert by_column(ev.find_pii({"code": bsns()[:5]})) == {}
    assert by_column(ev.find_pii({"bsn": bsns()[:5]}))["bsn"].kind == "nl-bsn"


def test_a_report_holds_no_value_and_is_the_same_each_time() -> None:
    frame = pl.DataFrame({"x": [f"p{n}@example.org" for n in range(30_000)]})
    report = ev.find_pii(frame, sample=1_000)
    assert (report.rows, report.looked_at) == (30_000, 1_000)
    assert "example.org" not in repr(report)
    assert report == ev.find_pii(frame, sample=1_000)
    assert by_column(ev.find_pii(frame, sample=0))["x"].matched == 30_000


def test_a_sample_is_spread_over_all_rows() -> None:
    assert sampled_rows(10, 0) is None
    assert sampled_rows(10, 10) is None
    assert sampled_rows(10, 5) == [0, 2, 4, 6, 8]
    with pytest.raises(InvalidInput):
        ev.find_pii({"x": ["a"]}, sample=-1)


def test_no_rows_and_no_columns_are_no_error() -> None:
    assert ev.find_pii(pl.DataFrame({"x": []}, schema={"x": pl.String})).findings == ()
    assert by_column(ev.find_pii(pl.DataFrame({"mail": [None]}, schema={"mail": pl.String}))) == {}
