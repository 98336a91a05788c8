"""Rules that end a hopeless run: pure decisions."""

from __future__ import annotations

import math
from typing import Any

import pytest

from everloop.core.run import Metric
from everloop.core.stop import StopIf, StopWatch, stop_if
from everloop.errors import InvalidInput


def curve(*values: float) -> list[Metric]:
    return [Metric(key="loss", value=value, step=step) for step, value in enumerate(values)]


def verdicts(rule: StopIf, values: list[float], *others: list[Metric]) -> list[bool]:
    watch = StopWatch(rule, lambda: others)
    return [bool(watch.verdict(value, step)) for step, value in enumerate(values)]


def test_bound_holds_from_its_step_on() -> None:
    assert verdicts(stop_if("loss", 5, after=2), [9, 9, 5, 6, 4]) == [0, 0, 0, 1, 0]
    assert verdicts(stop_if("auc", 0.5, goal="max"), [0.6, 0.5, 0.4]) == [0, 0, 1]


def test_nan_is_worse_than_any_bound() -> None:
    assert verdicts(stop_if("loss", math.inf), [1, math.inf, math.nan]) == [0, 0, 1]
    assert verdicts(stop_if("loss", 5, after=1), [math.nan, 1.0]) == [0, 0]


def test_best_value_is_held_against_the_median_of_running_means() -> None:
    # Means up to step 1: 1.5, 3, 5; the median is 3.
    others = (curve(1, 2), curve(3, 3), curve(5, 5))
    assert verdicts(stop_if("loss", after=1), [4, 3], *others) == [0, 0]
    assert verdicts(stop_if("loss", after=1), [4, 3.1], *others) == [0, 1]
    assert verdicts(stop_if("loss", after=1), [2, 9], *others) == [0, 0]  # it was good once
    assert verdicts(stop_if("loss", goal="max"), [2.9], *others) == [1]


def test_median_needs_three_runs_that_came_so_far() -> None:
    assert verdicts(stop_if("loss"), [9], curve(1), curve(1)) == [0]
    late = [Metric(key="loss", value=1, step=7)]
    assert verdicts(stop_if("loss"), [9], curve(1), curve(1), late) == [0]
    assert verdicts(stop_if("loss"), [9], curve(1), curve(1), curve(math.nan)) == [0]
    assert verdicts(stop_if("loss"), [9], curve(1), curve(1), curve(1)) == [1]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"metric": ""}, "is empty"),
        ({"metric": "a", "worse_than": "mean"}, "'median'"),
        ({"metric": "a", "worse_than": math.nan}, "number"),
        ({"metric": "a", "goal": "low"}, "'min' or 'max'"),
    ],
)
def test_wrong_rules_are_refused(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(InvalidInput, match=fault):
        stop_if(**options)
