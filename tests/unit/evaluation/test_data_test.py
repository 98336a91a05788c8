"""``ev.data_test``: only the data differs, and what that is worth."""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import everloop as ev
from everloop.core.context import using
from everloop.core.data_test import TEST_TAG, DataTestReport
from everloop.core.run import PARENT_TAG
from everloop.errors import InvalidInput, NotFound, StateError, UserCodeError
from everloop.evaluation.data_tests.stored import report_of
from everloop.workspace import Workspace

COLUMNS = ("age", "income")
SCHEMA = ev.Schema(
    (
        ev.Field("id", "int64", nullable=False),
        ev.Field("age", "float64"),
        ev.Field("income", "float64"),
        ev.Field("purpose", "string"),
        ev.Field("bad", "int64"),
    ),
    key=("id",),
)


def loans(count: int, start: int = 0, seed: int = 0) -> dict[str, Any]:
    """People whose income and age say how likely their loan goes bad."""
    drawn = np.random.default_rng([seed, start])
    age, income = drawn.normal(40, 10, count), drawn.normal(3, 1, count)
    chance = 1 / (1 + np.exp(1.5 * (income - 3) + 0.05 * (age - 40)))
    return {
        "id": np.arange(start, start + count),
        "age": age,
        "income": income,
        "purpose": drawn.choice(["car", "house"], count),
        "bad": (drawn.random(count) < chance).astype(np.int64),
    }


def spoiled(rows: dict[str, Any], flipped: int = 150, swapped: int = 0) -> dict[str, Any]:
    """The same with the first labels turned round, and incomes behind them in another unit."""
    made = {name: np.array(column) for name, column in rows.items()}
    made["bad"][:flipped] = 1 - made["bad"][:flipped]
    made["income"][flipped : flipped + swapped] *= -20
    return made


def fitted(rows: ev.Table, seed: int) -> Callable[[ev.Table], Any]:
    """Least squares on a resample of the rows."""
    picked = np.random.default_rng(seed).integers(0, len(rows), len(rows))
    inputs = np.column_stack([np.ones(len(rows)), rows.to_numpy(COLUMNS)])[picked]
    weights, *_ = np.linalg.lstsq(inputs, rows.to_numpy(["bad"])[picked, 0], rcond=None)
    return lambda held: (
        np.column_stack([np.ones(len(held)), held.to_numpy(COLUMNS)]) @ weights
    ).clip(0, 1)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workspace]:
    """A workspace with two versions of loans and a hold-out."""
    with ev.open(tmp_path / ".everloop") as workspace, using(workspace):
        good = loans(400)
        ev.commit("loans", spoiled(good), schema=SCHEMA)
        ev.commit("loans", good, mode="replace")
        ev.commit("held", loans(500, 10_000), schema=SCHEMA)
        yield workspace


def compared(versions: Any = ("loans@1", "loans@2"), train: Any = fitted, **more: Any) -> Any:
    given: dict[str, Any] = {"holdout": "held", "label": "bad", "seeds": 3, "metrics": ("brier",)}
    return ev.data_test(train, versions, **(given | more))


def noted_tests(place: Workspace) -> list[Any]:
    return list(place.tracking.runs(filter=f"tags.`{TEST_TAG}` = 'test'").runs)


# --- what it finds --------------------------------------------------------------------------------


def test_better_data_is_found_better_and_named_best(place: Workspace) -> None:
    found = compared(metrics=("brier", "auc"))
    assert found.best == "loans@2"
    effect = found.effect("loans@2")
    assert effect.answer == "better"
    assert 0 < effect.low < effect.estimate < effect.high
    assert "loans@2 is better than loans@1" in found.summary()
    [before, after] = [row for row in found.table() if row["metric"] == "brier"]
    assert before["value"] - after["value"] == pytest.approx(effect.estimate)  # lower is better


def test_worse_data_is_worse_and_nothing_is_best(place: Workspace) -> None:
    found = compared(["loans@2", "loans@1"])
    assert found.best is None
    assert found.effect("loans@1").answer == "worse"
    assert "no version is better than loans@2" in found.summary()


def test_noise_is_no_difference(place: Workspace) -> None:
    found = compared({"one": loans(400, 20_000), "other": loans(400, 30_000)}, seeds=4)
    assert found.effect("other").answer == "no difference shown"
    assert found.best is None


def test_equal_content_is_trained_once_and_its_effect_is_exactly_0(place: Workspace) -> None:
    good = loans(400)
    ev.commit("loans", good | {"age": good["age"] + 1}, mode="replace")
    ev.commit("loans", good, mode="replace")
    found = compared([2, 4, "loans@3"], dataset="loans")
    one = found.report.version("loans@4")
    assert (one.same_as, one.runs) == ("loans@2", ())
    assert found.effect("loans@4").estimate == 0
    assert found.effect("loans@4").answer == "same data"
    assert "trained once" in found.summary()
    assert found.report.trained == 2 * 3 + 1  # and one of them twice


def test_slices_hold_together_and_small_ones_are_not_judged(place: Workspace) -> None:
    found = compared(slices={"old": "age > 40", "young": "age <= 40", "few": "age > 65"})
    answers = {part.slice: part.effect.answer for part in found.report.slices}
    assert answers == {"old": "better", "young": "better", "few": "too small to tell"}
    by_value = compared(slices="purpose").report.slices
    assert sorted(part.slice for part in by_value) == ["purpose = car", "purpose = house"]
    assert sum(part.rows for part in by_value) == 500


def test_days_are_drawn_where_a_time_is_named(place: Workspace) -> None:
    held = ev.Table.of(loans(500, 40_000)).with_columns(
        at="TIMESTAMP '2024-01-01' + INTERVAL (id % 20) DAY"
    )
    found = compared(holdout=held, at="at")
    assert (found.report.holdout.drawn, found.report.holdout.blocks) == ("days", 20)
    with pytest.raises(InvalidInput, match="spans 1 days"):
        compared(holdout=held.filter("id % 20 = 0"), at="at")


def poor(rows: ev.Table, seed: int) -> Any:
    """Looks at the age alone."""
    return lambda held: (0.7 - held.to_numpy(["age"])[:, 0] / 100).clip(0, 1)


def test_better_data_is_held_against_a_better_or_worse_model(place: Workspace) -> None:
    rivals = {"by age": (poor, "loans@2"), "by age on raw": (poor, "loans@1")}
    found = compared(rivals=rivals, against="by age")
    assert found.report.against == "by age"
    assert found.report.version("by age").train.endswith("poor")
    # One that looks at the age alone learns nothing from the rows.
    assert found.effect("by age on raw").answer == "no difference shown"
    assert found.effect("by age on raw").estimate == 0
    assert found.effect("loans@2").answer == "better"
    assert found.best == "loans@2"
    assert compared(rivals=rivals).best == "loans@2"  # never one of another training
    with pytest.raises(InvalidInput, match="trained by other code"):
        found.blame("loans@2", against="by age")
    for more, told in (
        ({"rivals": {"x": poor}}, "rivals"),
        ({"rivals": {"loans@1": (poor, 2)}, "dataset": "loans"}, "stands there 2 times"),
        ({"rivals": {"x": (5, "loans@1")}}, "train is a function"),
        ({"against": "loans@3"}, "loans@3"),
    ):
        with pytest.raises((InvalidInput, NotFound), match=told):
            compared(**more)


# --- runs and the store ---------------------------------------------------------------------------


def test_only_what_is_new_is_trained(place: Workspace) -> None:
    assert (compared().report.trained, compared().report.cached) == (7, 7)
    assert compared().report.trained == 0
    more = compared(["loans@1", "loans@2", loans(300, 50_000)], seeds=4)
    assert more.report.trained == 2 + 4


def test_other_code_is_another_training_whatever_it_is_wrapped_in(place: Workspace) -> None:
    def steady(rows: ev.Table, seed: int, weight: float = 0.5) -> Any:
        return lambda held: np.full(len(held), weight)

    class Fixed:
        def __init__(self, weight: float) -> None:
            self.weight = weight

        def __call__(self, rows: ev.Table, seed: int) -> Any:
            return lambda held: np.full(len(held), self.weight)

    values = [
        compared(["loans@1"], train, seeds=1).report.versions[0].metrics[0].value
        for train in (
            steady,
            functools.partial(steady, weight=0.1),
            functools.partial(steady, weight=0.9),
            Fixed(0.2),
            Fixed(0.8),
            fitted,
        )
    ]
    assert len(set(values)) == 6


def test_each_training_is_a_run_below_the_test_with_its_data(place: Workspace) -> None:
    found = compared()
    own = place.tracking.run(found.id)
    assert own.state == "finished"
    assert {(one.dataset, one.version, one.role) for one in own.inputs} == {
        ("held", 1, "holdout"), ("loans", 1, "loans@1"), ("loans", 2, "loans@2"),
    }  # fmt: skip
    below = place.tracking.runs(filter=f"tags.`{PARENT_TAG}` = '{found.id}'").runs
    assert {(run.params["version"], run.params["seed"]) for run in below} == {
        (version, str(seed)) for version in ("loans@1", "loans@2") for seed in range(3)
    }
    first = next(
        run for run in below if run.params == {"version": "loans@1", "seed": "0", "rows": "400"}
    )
    assert [(one.dataset, one.version) for one in first.inputs] == [("loans", 1)]
    assert first.metrics["brier"] == found.report.version("loans@1").metrics[0].by_seed[0]
    assert first.tags[TEST_TAG] == "training"
    assert own.code  # the training's code is kept with the test


def test_the_report_is_kept_and_is_json(place: Workspace) -> None:
    found = compared(slices="purpose")
    found.blame()
    assert report_of(place.tracking, found.id) == found.report
    assert msgspec.convert(json.loads(json.dumps(found.to_dict())), DataTestReport) == found.report
    with pytest.raises(NotFound, match="is no data test"):
        report_of(place.tracking, found.report.version("loans@1").runs[0])


def test_worker_processes_give_the_same(place: Workspace) -> None:
    plain = compared()
    again = compared(versions=["loans@1", "loans@2"], seeds=3, workers=2, train=as_step)
    for name in ("loans@1", "loans@2"):
        assert again.report.version(name).metrics == plain.report.version(name).metrics


@ev.step
def as_step(rows: ev.Table, seed: int) -> Any:
    return fitted(rows, seed)


# --- broken on purpose ----------------------------------------------------------------------------


def raising(rows: ev.Table, seed: int) -> Any:
    if rows.to_numpy(["income"]).min() < -10:
        raise ValueError("an income cannot be so low")
    return fitted(rows, seed)


def test_a_version_whose_training_raises_says_why_and_the_others_are_told(
    place: Workspace,
) -> None:
    odd = spoiled(loans(400), swapped=50)
    found = compared({"odd": odd, "raw": 1, "clean": 2}, raising, dataset="loans")
    error = found.report.version("odd").error
    assert error.startswith("Traceback (most recent call last)")
    assert "an income cannot be so low" in error
    assert "data_tests" not in error  # our own frames say nothing
    assert found.report.against == "raw"
    assert found.best == "clean"
    assert "odd could not be trained: the others are held against raw" in found.summary()
    below = place.tracking.runs(filter=f"tags.`{PARENT_TAG}` = '{found.id}'").runs
    assert {run.state for run in below if run.params["version"] == "odd"} == {"failed"}
    with pytest.raises(NotFound, match="odd could not be trained"):
        found.effect("odd")


def test_if_none_can_be_trained_the_first_traceback_is_raised(place: Workspace) -> None:
    def never(rows: ev.Table) -> Any:
        raise RuntimeError("out of luck")

    with pytest.raises(UserCodeError, match=r"(?s)Traceback.*out of luck.*no version could"):
        compared(train=never)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda held: np.zeros(3), r"shape \(3,\) for 500 rows"),
        (lambda held: np.zeros((500, 3)), r"shape \(500, 3\) for 500 rows"),
        (lambda held: np.full(500, np.nan), "NaN or infinite scores for 500 of 500 rows"),
        (lambda held: np.linspace(-1, 2, 500), "from -1 to 2, and brier takes probabilities"),
        (lambda held: ["no"] * 500, "holds no numbers"),
        (7, "gave nothing that predicts"),
    ],
)
def test_what_predictors_give_is_checked(place: Workspace, answer: Any, told: str) -> None:
    def half(rows: ev.Table, seed: int) -> Any:
        return answer if rows.to_numpy(["bad"])[0, 0] == first else fitted(rows, seed)

    first = spoiled(loans(400))["bad"][0]
    found = compared(train=half)
    assert "loans@2" in found.report.against
    assert re.search(told, found.report.version("loans@1").error)


def test_a_version_without_label_or_rows_is_told_and_not_trained(place: Workspace) -> None:
    rows = loans(50, 60_000)
    found = compared(
        {
            "good": 2,
            "empty": ev.Table.of(rows).filter("false"),
            "misnamed": {("baad" if k == "bad" else k): v for k, v in rows.items()},
            "unknown": {**rows, "bad": [None] * 50},
            "some": {**rows, "bad": [None, *rows["bad"][1:].tolist()]},
        },
        lambda table, seed: fitted(table.filter("bad IS NOT NULL"), seed),
        dataset="loans",
    )
    errors = {one.name: one.error for one in found.report.versions}
    assert "has no rows" in errors["empty"]
    assert "baad" in errors["misnamed"]  # the nearest name
    assert "no row of unknown has a bad" in errors["unknown"]
    assert not errors["some"]
    assert "1 rows have no bad" in " ".join(found.report.version("some").notes)


def test_rows_of_the_holdout_in_a_version_are_refused_or_left_out(place: Workspace) -> None:
    held = ev.Table.concat([ev.read("held"), ev.read("loans", 2).filter("id < 3")])
    with pytest.raises(InvalidInput, match=r"loans@1: 3 rows are in .* too, as id=0; id=1; id=2"):
        compared(holdout=held)
    assert not noted_tests(place)
    found = compared(holdout=held, overlap="drop")
    assert [one.left_out for one in found.report.versions] == [3, 3]
    assert [one.rows for one in found.report.versions] == [397, 397]
    with pytest.raises(InvalidInput, match="overlap is"):
        compared(overlap="keep")


def test_without_a_key_equal_rows_are_told(place: Workspace) -> None:
    rows = {name: column for name, column in loans(300).items() if name != "id"}
    held = {name: column[:200] for name, column in rows.items()}
    found = compared([rows], holdout=held, seeds=1)
    assert "200 rows equal one of the hold-out" in " ".join(found.report.versions[0].notes)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"holdout": {**loans(60), "bad": [1] * 60}}, "one class only"),
        ({"holdout": {**loans(60), "bad": [None] * 60}}, "no row of the hold-out has a bad"),
        ({"holdout": {**loans(60), "bad": ["y", "n"] * 30}}, "positive='y'"),
        ({"holdout": {**loans(60), "bad": ["y", "n"] * 30}, "positive": "x"}, "'x'"),
        ({"label": "baad"}, "baad"),
        ({"metrics": ()}, "needs a metric"),
        ({"metrics": ("brier", "mae")}, "do not fit these labels"),
        ({"metrics": ("brierr",)}, "brierr"),
        ({"seeds": 0}, "there is none"),
        ({"seeds": (1, 1)}, "each seed stands once"),
        ({"seeds": True}, "True"),
        ({"level": 0.5}, "0.5"),
        ({"workers": 0}, "workers"),
        ({"slices": ("purpos",)}, "purpos"),
        ({"slices": 5}, "slices are columns"),
        ({"slices": {"x": "nothing > 3"}}, "nothing"),
        ({"at": "age"}, "at is a column of times"),
        ({"versions": []}, "needs a version"),
        ({"versions": [1]}, "of which dataset is 1"),
        ({"versions": ["loans@1", "loans@1"]}, "stands there 2 times"),
        ({"versions": ["loans@9"]}, "loans"),
        ({"versions": "loans@1"}, "versions is a list"),
        ({"train": 5}, "train is a function of rows"),
        ({"train": lambda: None}, "takes no rows"),
        ({"train": lambda rows, seed, depth: None}, "depth would be missing"),
    ],
)
def test_what_cannot_be_tested_is_refused_before_anything_runs(
    place: Workspace, more: dict[str, Any], told: str
) -> None:
    with pytest.raises((InvalidInput, NotFound), match=told):
        compared(**more)
    assert not noted_tests(place)


def test_one_seed_and_rows_without_label_are_said(place: Workspace) -> None:
    held = loans(300, 70_000)
    held["bad"] = [None, *held["bad"][1:].tolist()]
    found = compared(seeds=1, holdout=held)
    assert found.report.holdout.unlabelled == 1
    assert any(note.startswith("one seed") for note in found.report.notes)
    assert any("1 rows of the hold-out have no bad" in note for note in found.report.notes)


def test_a_training_that_is_not_deterministic_is_noticed(place: Workspace) -> None:
    def free(rows: ev.Table, seed: int) -> Any:
        return fitted(rows, int(np.random.default_rng().integers(1 << 30)))

    assert any("not deterministic" in note for note in compared(train=free).report.notes)
    assert not compared().report.notes

    def shared(rows: ev.Table) -> Any:  # the generators of the process are seeded for it
        return fitted(rows, random.randrange(1 << 30))

    state = random.getstate()
    found = compared(train=shared)
    assert not found.report.notes
    assert len(set(found.report.version("loans@1").metrics[0].by_seed)) == 3
    assert random.getstate() == state


def test_a_test_within_a_run_is_refused(place: Workspace) -> None:
    with ev.run("mine"), pytest.raises(StateError, match="inside a run"):
        compared()


# --- what predicts --------------------------------------------------------------------------------


def test_estimators_and_artifacts_predict_as_functions_do(place: Workspace) -> None:
    from sklearn.linear_model import LogisticRegression

    def model(rows: ev.Table) -> LogisticRegression:
        return LogisticRegression().fit(rows.to_numpy(COLUMNS), rows.to_numpy(["bad"])[:, 0])

    def named(rows: ev.Table) -> LogisticRegression:
        return LogisticRegression().fit(
            rows.select(COLUMNS).to_pandas(), rows.to_numpy(["bad"])[:, 0]
        )

    def artifact(rows: ev.Table) -> ev.ModelArtifact:
        made: ev.ModelArtifact = ev.model(model(rows), names=list(COLUMNS))
        return made

    def function(rows: ev.Table) -> Any:
        one = model(rows)
        return lambda held: one.predict_proba(held.to_numpy(COLUMNS))

    values = [
        compared(train=train, seeds=1).report.version("loans@1").metrics[0].value
        for train in (named, artifact, function)
    ]
    assert values == pytest.approx([values[0]] * 3, abs=1e-6)
    with pytest.raises(UserCodeError, match="takes 2 columns, the hold-out has 4"):
        compared(train=model, seeds=1)


def test_several_classes_and_numbers_are_tested_too(place: Workspace) -> None:
    def classes(rows: ev.Table, seed: int) -> Any:
        share = np.bincount(rows.to_numpy(["k"])[:, 0].astype(int), minlength=3) / len(rows)
        return lambda held: np.tile(share, (len(held), 1))

    drawn = np.random.default_rng(0)
    base = {"id": np.arange(300), "k": drawn.choice(3, 300, p=(0.6, 0.3, 0.1))}
    held = {"id": np.arange(1000, 1300), "k": drawn.choice(3, 300, p=(0.6, 0.3, 0.1))}
    odd = {**base, "k": (base["k"] + 1) % 3}
    found = compared(
        {"odd": odd, "good": base}, classes, holdout=held, label="k", metrics="log_loss"
    )
    assert found.best == "good"
    assert found.report.holdout.positives is None

    def mean(rows: ev.Table) -> Any:
        level = float(rows.to_numpy(["income"]).mean())
        return lambda held: np.full(len(held), level)

    shifted = {**loans(200), "income": loans(200)["income"] + 1}
    found = compared({"shifted": shifted, "right": loans(200)}, mean, label="income", metrics="mae")
    assert found.best == "right"
