"""k-anonymity against counting by hand."""

from __future__ import annotations

from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import everloop as ev
from everloop.errors import InvalidInput, NotFound

ROWS = st.lists(
    st.tuples(
        st.none() | st.sampled_from("ab"),
        st.none() | st.sampled_from([0.0, 1.0, float("nan")]),
        st.integers(0, 2),
    ),
    max_size=40,
)


def frame(rows: list[tuple[str | None, float | None, int]]) -> pl.DataFrame:
    schema = {"a": pl.String, "b": pl.Float64, "s": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def plain(value: object) -> object:
    return None if value != value else value


@given(ROWS, st.integers(1, 6))
def test_groups_are_those_that_counting_finds(
    rows: list[tuple[str | None, float | None, int]], k: int
) -> None:
    found = ev.k_anonymity(frame(rows), ["a", "b"], k=k, sensitive="s")
    groups = Counter((plain(a), plain(b)) for a, b, _ in rows)
    assert found.groups == len(groups)
    assert found.smallest == min(groups.values(), default=0)
    assert found.under == sum(size for size in groups.values() if size < k)
    assert found.unique == sum(size == 1 for size in groups.values())
    assert found.ok is (found.under == 0)
    diverse = [len({s for a, b, s in rows if (plain(a), plain(b)) == group}) for group in groups]
    assert found.distinct_sensitive == (min(diverse) if diverse else None)
    for weight in found.weights:
        other = "b" if weight.name == "a" else "a"
        alone = Counter(plain(row[0 if other == "a" else 1]) for row in rows)
        assert weight.without == sum(size for size in alone.values() if size < k)


def test_rows_that_are_all_unique_and_no_rows_at_all() -> None:
    lonely = ev.k_anonymity({"id": list(range(7))}, ["id"], k=2)
    assert (lonely.smallest, lonely.under, lonely.unique) == (1, 7, 7)
    assert lonely.weights[0].without == 0  # without it all seven are alike
    none = ev.k_anonymity(pl.DataFrame({"id": []}, schema={"id": pl.Int64}), ["id"])
    assert (none.rows, none.groups, none.smallest, none.ok) == (0, 0, 0, True)


def test_columns_may_have_any_name() -> None:
    odd = pl.DataFrame({"rows": [1, 1], "values": [1, 2], "c0": [1, 1]})
    assert ev.k_anonymity(odd, ["rows", "c0"], k=2, sensitive="values").ok


def test_what_cannot_be_asked_is_told() -> None:
    rows = {"age": [1], "sex": ["f"]}
    with pytest.raises(InvalidInput, match="name at least one"):
        ev.k_anonymity(rows, [])
    with pytest.raises(InvalidInput, match=r"twice[\s\S]*below 1"):
        ev.k_anonymity(rows, ["age", "age"], k=0)
    with pytest.raises(NotFound, match="agee"):
        ev.k_anonymity(rows, ["agee"])
    with pytest.raises(InvalidInput, match="a frame has no masks"):
        ev.k_anonymity(rows, ["age"], masked=True)
