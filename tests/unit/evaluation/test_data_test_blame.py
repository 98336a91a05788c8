"""Which changed rows make the difference: grouping, tables in between, shares."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import everloop as ev
from everloop.core.context import using
from everloop.core.run import PARENT_TAG
from everloop.data.frame import Table
from everloop.errors import InvalidInput, NotFound, UserCodeError
from everloop.evaluation.data_tests.effects import effect_of, measured
from everloop.evaluation.data_tests.groups import MOST_GROUPS, grouped
from everloop.evaluation.data_tests.inputs import Contender
from everloop.evaluation.metrics import parse_metric
from everloop.workspace import Workspace
from tests.unit.evaluation.test_data_test import SCHEMA, fitted, loans, spoiled

# --- groups and the tables in between -------------------------------------------------------------

VALUES = st.sampled_from([None, 0.0, 1.0, 2.5])
KEYED = st.dictionaries(st.integers(0, 30), st.tuples(VALUES, st.sampled_from("ab")), max_size=12)


def contender(rows: list[tuple[Any, ...]], *, keyed: bool) -> Contender:
    table = ev.Table.of(
        {
            "id": np.array([row[0] for row in rows], dtype=np.int64),
            "x": [*(row[1] for row in rows), 0.5][:-1] or np.empty(0),
            "kind": [*(row[2] for row in rows), "z"][:-1] or np.empty(0, dtype=str),
        },
    )
    arrow = table.to_arrow()
    cast = arrow.cast(arrow.schema.set(1, arrow.schema.field(1).with_type(pa.float64())))
    return Contender("any", Table(cast, key=("id",) if keyed else ()), None, "")


@given(KEYED, KEYED, st.booleans(), st.randoms(use_true_random=False))
def test_all_changes_give_the_new_rows_and_none_the_old_ones(
    before: dict[int, Any], after: dict[int, Any], keyed: bool, shuffle: Any
) -> None:
    olds = [(key, *value) for key, value in before.items()]
    news = [(key, *value) for key, value in after.items()]
    shuffle.shuffle(news)
    old, new = contender(olds, keyed=keyed), contender(news, keyed=keyed)
    if sorted(map(repr, olds)) == sorted(map(repr, news)):
        with pytest.raises(InvalidInput, match="nothing to blame"):
            grouped(old, new, (), "change")
        return
    found = grouped(old, new, (), "change")
    every = range(len(found.names))
    assert found.table(every).to_arrow().to_pylist() == new.rows.to_arrow().to_pylist()
    without = found.table(()).to_arrow().to_pylist()
    assert sorted(map(repr, without)) == sorted(map(repr, old.rows.to_arrow().to_pylist()))
    gone, come = set(olds) - set(news), set(news) - set(olds)
    differ = {row[0] for row in gone | come} if keyed else gone | come
    assert sum(found.sizes) == len(differ)
    for one in every:  # the changes of one group leave all others as they were
        made = found.table([one])
        assert abs(len(made) - len(without)) <= found.sizes[one]


def test_rows_keep_their_order_and_removed_ones_their_place() -> None:
    old = contender([(n, 1.0, "a") for n in range(6)], keyed=True)
    new = contender([(0, 1.0, "a"), (2, 1.0, "b"), (3, 1.0, "a"), (9, 1.0, "a")], keyed=True)
    found = grouped(old, new, (), "change")
    assert dict(zip(found.names, found.sizes, strict=True)) == {
        "removed": 3, "changed kind": 1, "added": 1,
    }  # fmt: skip
    order = found.table([found.names.index("added")]).column("id").to_pylist()
    assert order == [0, 1, 2, 3, 4, 5, 9]
    assert found.table([]).column("id").to_pylist() == [0, 1, 2, 3, 4, 5]


def test_a_key_that_names_two_rows_is_said_and_content_pairs_them() -> None:
    old = contender([(1, 1.0, "a"), (1, 2.0, "a")], keyed=True)
    new = contender([(1, 1.0, "a")], keyed=True)
    found = grouped(old, new, (), "change")
    assert "does not name each row once" in found.notes[0]
    assert found.names == ("removed",)


def test_groups_by_condition_column_and_many() -> None:
    old = contender([(n, 1.0, "a") for n in range(40)], keyed=True)
    new = contender([(n, 2.5, "ab"[n % 2]) for n in range(40)], keyed=True)
    by = {"first": "id < 10", "more": "id < 20"}
    found = grouped(old, new, (), by)
    assert dict(zip(found.names, found.sizes, strict=True)) == {
        "all others": 20, "first": 10, "more": 10,
    }  # fmt: skip
    assert set(grouped(old, new, (), "kind").names) == {"kind = a", "kind = b"}
    many = grouped(old, new, (), "id")
    assert len(many.names) == MOST_GROUPS
    assert "other groups" in many.names[-1]
    with pytest.raises(NotFound, match="kin"):
        grouped(old, new, (), "kin")
    with pytest.raises(InvalidInput, match="knows of no rule"):
        grouped(old, new, (), "rule")


# --- shares ---------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workspace]:
    with ev.open(tmp_path / ".everloop") as workspace, using(workspace):
        yield workspace


def compared(versions: Any, **more: Any) -> Any:
    held = loans(400, 10_000)
    options: dict[str, Any] = {"label": "bad", "seeds": 3, "metrics": ("brier",), "key": ("id",)}
    return ev.data_test(fitted, versions, holdout=held, **(options | more))


def test_shares_add_up_and_a_change_that_does_nothing_is_worth_nothing(place: Workspace) -> None:
    good = loans(300)
    bad = spoiled(good, flipped=100, swapped=60)
    bad["purpose"] = bad["purpose"].copy()
    bad["purpose"][200:] = "boat"  # nobody looks at it
    test = compared({"bad": bad, "good": good})
    found = test.blame("good", by="change")
    worth = {one.name: one.worth for one in found.groups}
    assert set(worth) == {"changed bad", "changed income", "changed purpose"}
    assert sum(one.estimate for one in worth.values()) == pytest.approx(found.total.estimate)
    assert worth["changed purpose"].estimate == pytest.approx(0, abs=1e-12)
    assert worth["changed purpose"].answer == "no difference shown"
    assert worth["changed income"].answer == "better"
    assert (found.method, found.trainings) == ("shapley", 3 * 6)
    assert found.total == test.effect("good")
    run = place.tracking.run(found.run_id)
    assert run.tags[PARENT_TAG] == test.id
    one = test.blame("good", by="change", method="leave one out")
    lost = {group.name: group for group in one.groups}
    assert one.method == "leave one out"
    assert lost["changed income"].worth.estimate == lost["changed income"].last
    assert place.pipelines.steps(one.run_id)
    assert {step.outcome for step in place.pipelines.steps(one.run_id)} == {"cached"}
    assert [blame.method for blame in test.report.blames] == ["shapley", "leave one out"]
    assert "Which rows make the difference" in test.to_html()


def test_many_groups_are_sampled_and_still_add_up(place: Workspace) -> None:
    good = loans(300)
    bad = spoiled(good, flipped=120)
    test = compared({"bad": bad, "good": good}, seeds=2)
    by = {f"part {n}": f"id % 7 = {n}" for n in range(7)}
    found = test.blame(by=by, orders=3)
    assert found.method == "sampled shapley"
    total = sum(one.worth.estimate for one in found.groups)
    assert total == pytest.approx(found.total.estimate)
    exact = test.blame(by={f"part {n}": f"id % 4 = {n}" for n in range(4)})
    assert exact.method == "shapley"
    widths = [one.worth.high - one.worth.low for one in found.groups]
    assert min(widths) > 0


def test_rules_of_the_ledger_name_the_groups(place: Workspace) -> None:
    good = loans(300)
    bad = spoiled(good, flipped=80, swapped=60)
    ev.commit("loans", bad, schema=SCHEMA)
    raw = ev.read("loans")
    clean = raw.drop_where("negative", "income < -5", reason="another unit").set_where(
        "turned", "bad", "1 - bad", "id < 80", reason="the form was misread"
    )
    committed = clean
    place.data.commit("loans", committed.to_arrow(), mode="replace", note="cleaned")
    for versions in ([1, clean],):
        test = compared(versions, dataset="loans")
        found = test.blame("table 2")
        assert found.by == "rule"
        assert {one.name: one.rows for one in found.groups} == {
            "negative": len(raw) - len(clean), "turned": 80,
        }  # fmt: skip
    with pytest.raises(InvalidInput, match="knows of no rule"):
        compared([1, 2], dataset="loans").blame(by="rule")


def test_what_cannot_be_blamed_is_refused(place: Workspace) -> None:
    good = loans(300)
    test = compared({"bad": spoiled(good), "good": good, "same": good, "other": loans(300, 500)})
    with pytest.raises(InvalidInput, match="nothing to blame"):
        test.blame("same", against="good")
    with pytest.raises(NotFound, match="goood"):
        test.blame("goood")
    for more, told in (({"seeds": 4}, "1 to 3"), ({"orders": 0}, "orders"), ({"method": "x"}, "x")):
        with pytest.raises(InvalidInput, match=told):
            test.blame("good", **more)

    def picky(rows: ev.Table, seed: int) -> Any:
        ids = rows.to_numpy(["id"])[:, 0]
        if len(ids) == 600:
            raise ValueError("too many people")
        return fitted(rows, seed)

    options = {"holdout": loans(400, 10_000), "label": "bad", "seeds": 1, "metrics": "brier"}
    some = ev.data_test(picky, {"a": good, "b": loans(300, 500)}, **options, key=("id",))
    with pytest.raises(UserCodeError, match=r"(?s)too many people.*changes of added alone"):
        some.blame("b")


# --- statistics -----------------------------------------------------------------------------------


def test_intervals_hold_as_often_as_they_say() -> None:
    """Of tests of nothing about as many find something as the level allows."""
    drawn = np.random.default_rng(3)
    spec = parse_metric("brier")
    found = 0
    for _ in range(150):
        y = (drawn.random(300) < 0.4).astype(float)
        blocks = np.arange(300)
        pair = []
        for _ in range(2):
            # Each seed has a skill of its own, which rows alone would not show.
            noise = drawn.normal(0, 0.05, (4, 1)) + drawn.normal(0, 0.05, (4, 300))
            pair.append(measured(spec, y, list((0.4 + noise).clip(0, 1)), blocks))
        effect = effect_of(pair[1] - pair[0], spec.sign, level=0.1)
        found += effect.answer != "no difference shown"
    assert 5 <= found <= 24  # of 150 at 10 %: 15 expected


def test_more_intervals_at_once_are_wider() -> None:
    drawn = np.random.default_rng(4)
    spec = parse_metric("brier")
    y = (drawn.random(300) < 0.4).astype(float)
    one, other = (measured(spec, y, list(drawn.random((3, 300))), np.arange(300)) for _ in range(2))
    alone = effect_of(one - other, spec.sign, level=0.05)
    many = effect_of(one - other, spec.sign, level=0.05, family=20)
    assert alone.estimate == many.estimate
    assert many.high - many.low > 1.3 * (alone.high - alone.low)
    few = effect_of(one - other, spec.sign, level=0.05, rows=30)
    assert few.answer == "too small to tell"
    same = effect_of(one - one, spec.sign, level=0.05)
    assert (same.estimate, same.low, same.high) == (0, 0, 0)


def test_a_commit_tells_the_ledger_what_its_rules_did_once(place: Workspace) -> None:
    ev.commit("loans", loans(50), schema=SCHEMA)
    fixed = ev.read("loans").drop_where(
        "young", "age < 40", reason="not asked for", owner="a@x.org"
    )
    made = ev.commit("loans", fixed)
    ev.commit("loans", fixed)  # as somebody does who is not sure whether it worked
    [entry] = place.data.changes(dataset="loans")
    assert (entry.scope, entry.rule, entry.owner) == (f"dataset:{made.ref}", "young", "a@x.org")
    assert entry.rows == 50 - len(fixed)
