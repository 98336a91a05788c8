"""Coverage and balance: planted differences are named, likeness is not called a difference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import everloop as ev
from everloop.errors import InvalidInput, NotFound, UserCodeError


def rows(n: int, seed: int, *, shift: float = 0, bond: float = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    a = random.normal(size=n)
    return {
        "a": a + shift,
        "b": bond * a + math.sqrt(1 - bond**2) * random.normal(size=n),
        "c": random.normal(size=n),
        "carrier": np.array(["AA", "BB", "CC"])[random.integers(0, 3, n)],
    }


def test_samples_of_one_source_are_alike() -> None:
    alike = 0
    for seed in range(6):
        found = ev.coverage(rows(1500, seed), rows(1000, seed + 100))
        alike += bool(found.is_alike)
        assert len(found) == 0
        assert found.effective_share > 0.9
        assert found.auc.low <= found.auc.estimate <= found.auc.high
    assert alike >= 5


def test_a_shifted_feature_is_the_one_that_tells_them_apart() -> None:
    found = ev.coverage(rows(2000, 0), rows(1500, 1, shift=0.7))
    assert found.is_alike is False
    assert found.features[0].name == "a"
    assert found.features[0].distance > 3 * found.features[1].distance
    assert found.features[0].auc > 0.65
    assert found.effective_share < 0.9


def test_a_changed_bond_of_two_is_seen_jointly_and_by_no_feature_alone() -> None:
    found = ev.coverage(rows(2000, 0), rows(1500, 1, bond=0.9))
    assert found.auc.low > 0.6
    assert {one.name for one in found.features[:2]} == {"a", "b"}
    assert all(one.auc < 0.55 for one in found.features)


def test_weights_make_training_rows_stand_for_what_is_served() -> None:
    train, served = rows(4000, 0), rows(3000, 1, shift=0.5)
    found = ev.coverage(train, served)
    weighted = np.average(train["a"], weights=found.weights)
    assert abs(weighted - served["a"].mean()) < 0.15
    assert found.weights.mean() == pytest.approx(1)


def test_served_rows_far_from_all_training_are_the_finding() -> None:
    served = rows(1000, 1)
    served["a"][:80] += 9
    served["carrier"] = np.where(np.arange(1000) < 5, "ZZ", served["carrier"])
    [far] = ev.coverage(rows(2000, 0), served)
    assert (far.kind, far.side) == ("uncovered", "served")
    assert set(range(80)) <= set(far.numbers.tolist())
    assert (np.diff(far.scores) <= 0).all()
    told = {one.name: one for one in ev.coverage(rows(2000, 0), served).features}
    assert told["carrier"].outside_share == 0.005
    assert told["a"].outside_share > 0.05


def test_a_model_of_the_user_judges_instead() -> None:
    def fit(train: ev.Table) -> Any:
        x, y = train.to_numpy(["a"])[:, 0], train.column("served").to_numpy()
        middle = (x[y == 1].mean() + x[y == 0].mean()) / 2
        return lambda held: 1 / (1 + np.exp(middle - held.to_numpy(["a"])[:, 0]))

    found = ev.coverage(rows(500, 0), rows(500, 1, shift=1), fit=fit)
    assert found.auc.low > 0.6
    assert found.features[0].name == "a"
    assert found.features[-1].importance == 0

    def broken(train: ev.Table) -> Any:
        raise RuntimeError("no memory left")

    with pytest.raises(UserCodeError, match="no memory left"):
        ev.coverage(rows(100, 0), rows(100, 1), fit=broken)


def test_few_rows_and_odd_columns_are_answers_not_crashes() -> None:
    small = ev.coverage(rows(10, 0), rows(1000, 1))
    assert "too small to tell" in small.reason
    assert small.is_alike is None
    odd = rows(200, 0) | {
        "same": [1.0] * 200, "nan": np.full(200, np.nan), "huge": [2**62] * 200,
        "lists": [[1]] * 200, "mail": ["a@example.org"] * 200,
    }  # fmt: skip
    schema = ev.Schema((ev.Field("mail", "string", pii="email"),), extra="allow")
    found = ev.coverage(odd, odd, schema=schema)
    assert found.figures["skipped"] == ["lists"]
    assert "mail" not in {one.name for one in found.features}
    assert "a@example.org" not in found._repr_html_() + found.summary()
    with pytest.raises(InvalidInput, match="no feature"):
        ev.coverage({"x": [[1]]}, {"x": [[1]]})
    with pytest.raises(NotFound):
        ev.coverage(rows(100, 0), rows(100, 1), features=["z"])


def test_scarce_classes_and_odd_groups_are_found_with_their_condition() -> None:
    n = 3000
    random = np.random.default_rng(0)
    group = np.array(["AA", "BB", "CC"])[random.integers(0, 3, n)]
    y = (random.random(n) < np.where(group == "CC", 0.6, 0.05)).astype(int)
    table = ev.Table.of({"y": y, "group": group})
    found = ev.balance(table, label="y", groups="group")
    assert found.answer == "imbalanced"
    odd = [one for one in found if one.name == "group = 'CC'"]
    assert len(odd) == 1
    assert len(table.filter(odd[0].condition)) == len(odd[0])
    assert {row.name: row.answer for row in found.classes}["y = 0"] == "balanced"
    scarce = ev.balance({"y": [1] * 10 + [0] * 990}, label="y")
    assert [one.name for one in scarce] == ["y = 1"]
    assert scarce[0].numbers.tolist() == list(range(10))


def test_too_small_to_tell_is_an_answer_of_its_own() -> None:
    rows = {"y": [0, 1] * 30, "group": ["a", "a", "b", "b"] * 15}
    found = ev.balance(rows, label="y", groups=["group"])
    assert {row.answer for row in found.groups} == {"too small to tell"}
    assert found.answer == "too small to tell"
    large = ev.balance({k: v * 100 for k, v in rows.items()}, label="y", groups=["group"])
    assert large.answer == "balanced"
    tiny = ev.balance({"y": [0, 0, 0, 1]}, label="y", groups=[])
    assert {row.answer for row in tiny.classes} == {"balanced", "too small to tell"}


def test_balance_is_right_about_its_level() -> None:
    wrong = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        found = ev.balance(
            {"y": random.integers(0, 2, 400), "g": random.integers(0, 6, 400)},
            label="y", groups="g", by=0.01, min_rows=20,
        )  # fmt: skip
        wrong += found.answer == "imbalanced"
    assert wrong <= 8


def test_balance_without_classes_groups_and_with_personal_ones() -> None:
    assert "1 class" in ev.balance({"y": [1, 1]}, label="y").reason
    assert "0 class" in ev.balance({"y": [None, None]}, label="y").reason
    schema = ev.Schema((ev.Field("who", "string", pii="person"),), extra="allow")
    rows = {"y": [1] * 100 + [0] * 300, "who": ["ann"] * 100 + ["bob"] * 300}
    found = ev.balance(rows, label="y", groups="who", schema=schema)
    assert len(found) == 2
    told = found.summary() + found._repr_html_() + str(found.to_frame().to_dicts())
    assert "ann" not in told
    assert all(one.condition == "" for one in found)
    with pytest.raises(InvalidInput, match="shares"):
        ev.balance(rows, label="y", by=0)
