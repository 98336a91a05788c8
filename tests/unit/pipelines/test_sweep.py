"""Sweeps: trials are runs, nothing is done twice, and a sweep that died goes on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop.core.context import using
from everloop.core.run import PARENT_TAG
from everloop.core.stop import stop_if
from everloop.errors import InvalidInput, StateError, UserCodeError
from everloop.pipelines import sweep as sweeps
from everloop.pipelines.space import (
    Range,
    Space,
    choice,
    integers,
    loguniform,
    read_distribution,
    uniform,
)
from everloop.workspace import Workspace, open_workspace
from tests.unit.pipelines.sweep_steps import scored, silent, tune


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workspace]:
    with open_workspace(tmp_path / "everloop") as workspace, using(workspace):
        yield workspace


def executed(folder: Path) -> Counter[str]:
    file = folder / "executed"
    return Counter(file.read_text().splitlines() if file.exists() else [])


def space(folder: Path, **more: Any) -> dict[str, Any]:
    return {"folder": str(folder), "size": 3, "rate": loguniform(1e-4, 1.0), **more}


def test_trials_are_runs_below_the_sweep_and_share_their_steps(
    place: Workspace, tmp_path: Path
) -> None:
    found = tune.sweep(space(tmp_path, depth=integers(2, 8)), trials=8, minimize="loss", seed=1)
    assert len(found.trials) == 8
    assert found.best.value == min(t.value for t in found.trials if t.value is not None)
    assert [t.value for t in found.trials] == sorted(t.value or 0 for t in found.trials)
    own = place.tracking.run(found.run_id)
    assert own.state == "finished"
    assert own.metrics["loss"] == found.best.value
    for trial in found.trials:
        run = place.tracking.run(trial.run_id)
        assert run.state == "finished"
        assert run.tags[PARENT_TAG] == found.run_id
        assert run.params["depth"] == str(trial.params["depth"])
        assert float(run.params["rate"]) == trial.params["rate"]
        assert run.code
        assert run.environment
    assert executed(tmp_path)["prepare"] == 1


def test_the_same_sweep_again_executes_nothing(place: Workspace, tmp_path: Path) -> None:
    plan = space(tmp_path, depth=5)
    first = tune.sweep(plan, trials=4, minimize="loss", sampler="random", seed=3)
    before = executed(tmp_path)
    again = tune.sweep(plan, trials=4, minimize="loss", sampler="random", seed=3)
    assert executed(tmp_path) == before
    assert [t.params for t in again.trials] == [t.params for t in first.trials]
    assert [t.value for t in again.trials] == [t.value for t in first.trials]


def test_learning_from_trials_finds_a_better_place_than_chance(
    place: Workspace, tmp_path: Path
) -> None:
    plan = space(tmp_path, depth=integers(1, 12))
    found = tune.sweep(plan, trials=40, minimize="loss", seed=0)
    early = [t.value for t in found.trials if t.number < 10 and t.value is not None]
    late = [t.value for t in found.trials if t.number >= 30 and t.value is not None]
    assert sum(late) / len(late) < sum(early) / len(early)


def test_a_grid_tries_each_combination_once_in_processes_side_by_side(
    place: Workspace, tmp_path: Path
) -> None:
    plan = space(tmp_path) | {"rate": choice(0.01, 0.1), "depth": integers(4, 6)}
    found = tune.sweep(plan, minimize="loss", sampler="grid", workers=2)
    tried = Counter((t.params["rate"], t.params["depth"]) for t in found.trials)
    assert tried == Counter({(r, d): 1 for r in (0.01, 0.1) for d in (4, 5, 6)})
    assert found.best.params == {"rate": 0.01, "depth": 5}
    assert executed(tmp_path)["prepare"] == 1


def test_a_hopeless_trial_is_given_up(place: Workspace, tmp_path: Path) -> None:
    plan = space(tmp_path) | {"rate": choice(0.01), "depth": integers(1, 12)}
    rule = stop_if("loss", 20.0, after=1)
    found = tune.sweep(plan, minimize="loss", sampler="grid", stop=[rule])
    by_depth = {trial.params["depth"]: trial for trial in found.trials}
    assert by_depth[12].state == "pruned"
    assert "worse than 20" in by_depth[12].error
    assert place.tracking.run(by_depth[12].run_id).state == "killed"
    assert by_depth[5].state == "finished"
    states = [trial.state for trial in found.trials]
    assert states == sorted(states)  # finished, then pruned


def test_the_median_is_that_of_the_trials_of_the_sweep(place: Workspace, tmp_path: Path) -> None:
    rule = stop_if("loss", after=1)
    plan = space(tmp_path) | {"rate": choice(0.01), "depth": choice(5, 4, 6, 12)}
    found = tune.sweep(plan, minimize="loss", sampler="grid", stop=[rule])
    states = {trial.params["depth"]: trial.state for trial in found.trials}
    assert states == {5: "finished", 4: "finished", 6: "finished", 12: "pruned"}


def test_a_trial_that_fails_does_not_end_the_sweep(place: Workspace, tmp_path: Path) -> None:
    plan = space(tmp_path) | {"rate": 0.1, "depth": choice(13, 4, 5)}
    found = tune.sweep(plan, minimize="loss", sampler="grid")
    assert [t.state for t in found.trials] == ["finished", "finished", "failed"]
    assert found.best.params == {"depth": 5}
    assert "thirteen is too deep" in found.trials[-1].error


def test_a_sweep_whose_trials_all_fail_raises_what_the_first_said(
    place: Workspace, tmp_path: Path
) -> None:
    plan = space(tmp_path) | {"depth": 13}
    with pytest.raises(UserCodeError, match=r"all 3 trials .*(?s:.*)thirteen is too deep"):
        tune.sweep(plan, trials=3, minimize="loss")
    [own] = [r for r in place.tracking.runs().runs if "everloop.sweep" in r.tags]
    assert own.state == "failed"


def test_the_process_of_a_trial_may_die(place: Workspace, tmp_path: Path) -> None:
    plan = space(tmp_path) | {"rate": 0.1, "depth": choice(66, 5, 4)}
    found = tune.sweep(plan, minimize="loss", sampler="grid", workers=2)
    assert [t.state for t in found.trials] == ["finished"] * 3
    runs = place.tracking.runs(filter=f"tags.`{PARENT_TAG}` = '{found.run_id}'").runs
    assert len(runs) == 3
    assert {run.state for run in runs} == {"finished"}


def test_a_metric_that_is_returned_is_logged(place: Workspace) -> None:
    found = scored.sweep({"x": choice(1.0, 4.0, 0.0)}, maximize="score", sampler="grid")
    assert found.best.params == {"x": 1.0}
    assert place.tracking.run(found.best.run_id).metrics == {"score": 1.0}
    assert [t.state for t in found.trials] == ["finished", "finished", "failed"]
    assert found.trials[-1].error == "score is NaN"


def test_a_pipeline_that_says_nothing_of_the_metric(place: Workspace) -> None:
    with pytest.raises(UserCodeError, match="logged no metric 'score'"):
        silent.sweep({"x": choice(1.0, 2.0)}, maximize="score", sampler="grid")


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_sweep_that_was_stopped_goes_on_with_its_trials(
    place: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = space(tmp_path, depth=integers(2, 8))
    straight = sweeps._Driver._note

    def note(self: Any, number: int, params: Any, end: Any) -> None:
        if number == 3:
            raise Killed
        straight(self, number, params, end)

    monkeypatch.setattr(sweeps._Driver, "_note", note)
    with pytest.raises(Killed):
        tune.sweep(plan, trials=8, minimize="loss", seed=5)
    monkeypatch.undo()
    [own] = [r for r in place.tracking.runs().runs if "everloop.sweep" in r.tags]
    assert own.state == "killed"
    before = executed(tmp_path)
    found = tune.sweep(plan, trials=8, minimize="loss", seed=5, resume=own.id)
    assert found.run_id == own.id
    assert sorted(t.number for t in found.trials) == list(range(8))
    after = executed(tmp_path)
    assert max(after.values()) == 1  # nothing was executed twice, nothing proposed twice
    assert sum(after.values()) == sum(before.values()) + 4


def test_a_trial_without_the_metric_has_failed_after_a_resume_too(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {"x": choice(0.0, 1.0, 2.0)}

    def stop(self: Any, number: int, params: Any, end: Any) -> None:
        raise Killed

    monkeypatch.setattr(sweeps._Driver, "_note", stop)
    with pytest.raises(Killed):
        scored.sweep(plan, maximize="score", sampler="grid")
    monkeypatch.undo()
    [own] = [r for r in place.tracking.runs().runs if "everloop.sweep" in r.tags]
    found = scored.sweep(plan, maximize="score", sampler="grid", resume=own.id)
    states = {trial.params["x"]: trial.state for trial in found.trials}
    assert states == {0.0: "failed", 1.0: "finished", 2.0: "finished"}


def test_a_sweep_is_resumed_as_it_was_started(place: Workspace, tmp_path: Path) -> None:
    first = tune.sweep(space(tmp_path), trials=2, minimize="loss")
    with pytest.raises(InvalidInput, match="other values of: space"):
        tune.sweep(
            space(tmp_path, depth=integers(1, 2)), trials=2, minimize="loss", resume=first.run_id
        )
    with pytest.raises(InvalidInput, match="it is no sweep"):
        tune.sweep(space(tmp_path), trials=2, minimize="loss", resume=first.best.run_id)
    with pytest.raises(StateError):
        tune.sweep(space(tmp_path), trials=2, minimize="loss", resume=first.run_id)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"trials": 3}, "maximize"),
        ({"trials": 3, "minimize": "loss", "maximize": "auc"}, "not both"),
        ({"minimize": "loss"}, "say how many"),
        ({"minimize": "loss", "trials": 0}, "trials"),
        ({"minimize": "loss", "trials": 3, "workers": 0}, "workers"),
        ({"minimize": "loss", "trials": 3, "sampler": "guess"}, "sampler"),
        ({"minimize": "loss", "trials": 3, "seed": -1}, "seed"),
        ({"minimize": "loss", "sampler": "grid"}, "cannot be counted"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    place: Workspace, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidInput, match=told):
        tune.sweep(space(tmp_path), **options)
    assert place.tracking.runs().runs == ()


def test_wrong_spaces_are_refused_before_anything_runs(place: Workspace, tmp_path: Path) -> None:
    for wrong, told in (
        ({"rate": 0.1}, "nothing is to be chosen"),
        (space(tmp_path, colour=choice("red")), "colour.*does not take it"),
        (space(tmp_path, depth=choice("deep")), "depth"),
        ({"rate": uniform(0, 1)}, "folder.*missing"),
    ):
        with pytest.raises(InvalidInput, match=f"(?s){told}"):
            tune.sweep(wrong, trials=2, minimize="loss")
    assert place.tracking.runs().runs == ()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: uniform(2, 1), "more than high"),
        (lambda: uniform(0, math.inf), "finite"),
        (lambda: loguniform(0, 1), "more than 0"),
        (lambda: integers(1.5, 3), "whole"),  # type: ignore[arg-type]
        (lambda: integers(1, 9, step=0), "step"),
        (lambda: integers(1, 9, log=True, step=2), "log scale"),
        (lambda: uniform("a", 3), "finite number"),  # type: ignore[arg-type]
        (lambda: choice(), "there is none"),
        (lambda: choice(1, 2, 1), "twice"),
        (lambda: read_distribution("uniform(1"), "cannot be read"),
        (lambda: read_distribution("uniform(1, 2).values()"), "cannot be read"),
        (lambda: read_distribution("choice(__import__('os'))"), "cannot be read"),
    ],
)
def test_wrong_distributions_say_what_is_wrong(make: Any, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        make()


def test_one_and_true_are_two_options() -> None:
    assert [choice(1, True, 1.0).place(value) for value in (1, True, 1.0, "1")] == [0, 1, 2, -1]


floats = st.floats(1e-6, 1e6)


@given(
    st.one_of(
        st.tuples(floats, floats).map(lambda p: uniform(min(p), max(p))),
        st.tuples(floats, floats).map(lambda p: loguniform(min(p), max(p))),
        st.tuples(st.integers(1, 99), st.integers(1, 99), st.booleans()).map(
            lambda p: integers(min(p[:2]), max(p[:2]), log=p[2])
        ),
        st.lists(st.integers() | st.text() | st.none(), min_size=1, unique=True).map(
            lambda options: choice(*options)
        ),
    )
)
def test_a_distribution_written_as_python_reads_back(found: Any) -> None:
    if isinstance(found, Range):
        kind = "integers" if found.whole else ("loguniform" if found.log else "uniform")
        more = ", log=True" if found.whole and found.log else ""
        text = f"{kind}({found.low!r}, {found.high!r}{more})"
    else:
        text = str(found)
    assert read_distribution(text) == found


def test_a_grid_holds_every_combination_in_order() -> None:
    made = Space({"a": integers(1, 2), "b": choice("x", "y"), "c": uniform(0, 1, step=0.5)})
    points = made.grid()
    assert len(points) == 12
    assert points[:2] == [{"a": 1, "b": "x", "c": 0.0}, {"a": 1, "b": "x", "c": 0.5}]
    assert all(made.of_run(point) == point for point in points)
