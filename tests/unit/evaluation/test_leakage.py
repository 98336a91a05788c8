"""Leakage: each planted leak is found with its rows; clean sides show none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

import everloop as ev
from everloop.errors import InvalidInput, NotFound

START = datetime(2013, 1, 1, tzinfo=UTC)


def rows(n: int, seed: int, first: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "id": np.arange(first, first + n),
        "a": random.normal(size=n),
        "b": random.normal(size=n),
        "text": random.integers(0, 10**9, n).astype(str),
        "y": random.integers(0, 2, n),
        "at": np.array([START + timedelta(hours=h) for h in range(first, first + n)], dtype=object),
    }


def two() -> tuple[dict[str, Any], dict[str, Any]]:
    return rows(300, 0), rows(200, 1, first=300)


def kinds(found: Any) -> set[tuple[str, str]]:
    return {(one.kind, one.side) for one in found}


def test_clean_sides_show_nothing() -> None:
    train, test = two()
    found = ev.leakage(train, test, key="id", time="at", label="y")
    assert kinds(found) == set()
    assert "nothing was found" in found.summary()


def test_a_row_on_both_sides_is_found_under_another_key() -> None:
    train, test = two()
    for name in ("a", "b", "text", "y", "at"):
        test[name][7] = train[name][11]
    found = ev.leakage(train, test, key="id", label="y")
    assert kinds(found) == {("shared_row", "test")}
    [shared] = found
    assert (shared.numbers.tolist(), shared.rows[0].figures) == ([7], {"same_as": 11})
    assert len(shared.drop_from()) == 199


def test_rows_that_stand_twice_are_found_on_their_side() -> None:
    train, test = two()
    for name in ("a", "b", "text", "y", "at"):
        train[name][[5, 9]] = train[name][2]
        test[name][3] = test[name][1]
    found = ev.leakage(train, test, key="id")
    assert kinds(found) == {("duplicate", "train"), ("duplicate", "test")}
    ours = next(one for one in found if one.side == "train")
    assert ours.numbers.tolist() == [5, 9]
    assert [row.figures["same_as"] for row in ours.rows] == [2, 2]


def test_equal_rows_with_two_labels_are_named() -> None:
    train, test = two()
    for name in ("a", "b", "text", "at"):
        train[name][5] = train[name][2]
    train["y"][[2, 5]] = [0, 1]
    found = ev.leakage(train, test, key="id", label="y")
    assert found["conflicting_label"].numbers.tolist() == [2, 5]


def test_almost_equal_rows_are_found_and_equal_ones_are_not_told_twice() -> None:
    train, test = two()
    test["a"][4], test["b"][4] = train["a"][8] + 1e-5, train["b"][8]
    test["a"][5], test["b"][5] = train["a"][9], train["b"][9]
    found = ev.leakage(train, test, key="id", time="at", features=["a", "b"], near=0.01)
    near = found["near_duplicate"]
    assert near.numbers.tolist() == [4]
    assert near.rows[0].figures["same_as"] == 8
    assert len(ev.leakage(train, test, key="id", features=["a", "b"], near=0)) == 0


def test_keys_and_times_that_overlap_are_found() -> None:
    train, test = two()
    test["id"][:3] = [0, 1, 2]
    test["at"][3] = START
    found = ev.leakage(train, test, key=["id"], time="at")
    assert kinds(found) == {("shared_key", "test"), ("not_later", "test")}
    assert found["shared_key"].numbers.tolist() == [0, 1, 2]
    assert found["not_later"].numbers.tolist() == [3]


@pytest.mark.parametrize("copy", ["same", "text", "scaled"])
def test_a_column_that_tells_the_label_is_found(copy: str) -> None:
    train, test = two()
    for side in (train, test):
        y = np.asarray(side["y"])
        side["copy"] = {"same": y, "text": np.where(y, "yes", "no"), "scaled": y * 5.0 + 1}[copy]
    found = ev.leakage(train, test, key="id", label="y")
    [telling] = found
    assert (telling.kind, telling.name) == ("telling_feature", "copy tells y")
    assert telling.figures["accuracy"] == 1
    assert "a" not in [one.name.split()[0] for one in found]


def test_personal_values_are_masked() -> None:
    train, test = two()
    test["id"][:3] = [0, 1, 2]
    schema = ev.Schema(
        (ev.Field("id", "int64", pii="person", nullable=False),), key=("id",), extra="allow"
    )
    [shared] = ev.leakage(train, test, schema=schema)
    assert {row.key["id"] for row in shared.rows} == {"(masked)"}
    assert shared.to_frame()["id"].to_list() == ["(masked)"] * 3
    assert {item["id"] for item in shared.work_items()} == {"(masked)"}
    with pytest.raises(InvalidInput, match="personal data"):
        shared.as_check()


def test_columns_that_cannot_be_compared_are_named_and_the_rest_is() -> None:
    train, test = two()
    train["lists"], test["lists"] = [[1]] * 300, [[1]] * 200
    found = ev.leakage(train, test, key="id", label="y")
    assert found.figures["not_compared"] == ["lists"]
    test["a"] = test["a"].astype(str)
    assert ev.leakage(train, test, key="id").figures["not_compared"] == ["a", "lists"]
    test["id"] = test["id"].astype(float)
    with pytest.raises(InvalidInput, match="keys cannot be compared"):
        ev.leakage(train, test, key="id")


def test_empty_sides_one_value_and_missing_columns() -> None:
    train, test = two()
    empty = {name: np.asarray(column)[:0] for name, column in test.items()}
    assert len(ev.leakage(train, empty, key="id", label="y")) == 0
    assert len(ev.leakage(empty, test, key="id", label="y")) == 0
    same = {"x": [1.0] * 50, "y": [0] * 50}
    found = ev.leakage(same, same, label="y")
    assert kinds(found) == {("duplicate", "train"), ("duplicate", "test"), ("shared_row", "test")}
    with pytest.raises(NotFound, match="'wher'"):
        ev.leakage(train, test, time="wher")
    with pytest.raises(InvalidInput, match="near"):
        ev.leakage(train, test, near=1.5)
    with pytest.raises(InvalidInput, match="no time"):
        ev.leakage(train, test, time="text")
