"""One trial of a sweep: a run of the pipeline, in this process or in a worker's."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Mapping
from functools import partial
from numbers import Real
from typing import Any, Literal, NamedTuple, Protocol

from everloop.core.context import current_workspace
from everloop.core.project import module_name
from everloop.core.run import PARENT_TAG, Metric, Run
from everloop.core.stop import MOST, SAMPLED, StopIf, StopWatch
from everloop.errors import EverloopError, InvalidInput, RunStopped
from everloop.pipelines.watcher import Watcher

__all__ = [
    "Curve",
    "Order",
    "Runnable",
    "TrialEnd",
    "execute_order",
    "finished_end",
    "place_of",
    "run_trial",
]

Curve = dict[int, float]


class Runnable(Protocol):
    """What a trial needs of a pipeline."""

    name: str

    def run_watched(
        self, watcher: Watcher, arguments: Mapping[str, Any], *, resume: str = "", on: str = ""
    ) -> Any: ...


class Order(NamedTuple):
    """What a trial is to do.

    Attributes:
        arguments: Of the pipeline; empty if `resume` says which run to go on with.
        tags: Of its run.
        described: Code, repository and environment of its run.
        stop: Rules that give it up.
        on: A cluster for its steps.
    """

    arguments: dict[str, Any]
    resume: str
    tags: dict[str, str]
    described: dict[str, Any]
    metric: str
    stop: tuple[StopIf, ...]
    on: str


class TrialEnd(NamedTuple):
    """What came of a trial.

    Attributes:
        run_id: Empty if no run began.
        value: The metric; None unless it finished.
        curve: The metric by step.
        error: Why it failed or was given up.
    """

    run_id: str
    state: Literal["finished", "pruned", "failed"]
    value: float | None
    curve: Curve
    error: str = ""


class _Judge(Watcher):
    """Follows the metrics of one trial, and gives it up where a rule says so."""

    def __init__(self, order: Order) -> None:
        super().__init__(order.tags, order.described)
        self._order = order
        self._watches = [StopWatch(rule, partial(self._others, rule.metric)) for rule in order.stop]
        self.run_id = order.resume
        self.curve: Curve = {}

    def begun(self, run: Run) -> None:
        self.run_id = run.id
        self._experiment = run.experiment

    def see(self, point: Metric) -> str:
        if point.key == self._order.metric:
            self.curve[point.step] = point.value
        reasons = (
            watch.verdict(point.value, point.step)
            for watch in self._watches
            if watch.rule.metric == point.key
        )
        return next(filter(None, reasons), "")

    def returned(self, result: Any) -> list[Metric]:
        if self.curve:
            return []
        metric = self._order.metric
        if isinstance(result, Mapping):
            result = result.get(metric)
        if type(result) is bool or not isinstance(result, Real):
            return []
        return [Metric(key=metric, value=float(result), at_ms=time.time_ns() // 1_000_000)]

    def _others(self, metric: str) -> list[list[Metric]]:
        """The points of the trials of the sweep that finished."""
        tracking = current_workspace().tracking
        query = f"tags.`{PARENT_TAG}` = '{self._order.tags[PARENT_TAG]}' AND status = 'FINISHED'"
        found = tracking.runs([self._experiment], filter=query, limit=MOST).runs
        ids = [run.id for run in found if metric in run.metrics]
        return list(tracking.sampled_history(ids, metric, points=SAMPLED).values()) if ids else []


def run_trial(pipeline: Runnable, order: Order) -> TrialEnd:
    """Run a trial; what the pipeline raises is the trial's failure.

    Raises:
        InvalidInput: If the pipeline cannot take the arguments; nothing ran.
    """
    judge = _Judge(order)
    try:
        pipeline.run_watched(judge, order.arguments, resume=order.resume, on=order.on)
    except RunStopped as error:
        return TrialEnd(judge.run_id, "pruned", None, judge.curve, error.message)
    except EverloopError as error:
        if not judge.run_id:
            raise
        return TrialEnd(judge.run_id, "failed", None, judge.curve, str(error))
    return finished_end(judge.run_id, order.metric, judge.curve)


def finished_end(run_id: str, metric: str, curve: Curve) -> TrialEnd:
    """What came of a trial whose run finished: it has failed without a value of the metric."""
    if not curve:
        told = f"the run logged no metric {metric!r}, and the pipeline returned none"
        return TrialEnd(run_id, "failed", None, {}, told)
    value = curve[next(reversed(curve))]
    if math.isnan(value):
        return TrialEnd(run_id, "failed", None, curve, f"{metric} is NaN")
    return TrialEnd(run_id, "finished", value, curve)


# In a worker process


def place_of(pipeline: Any) -> tuple[str, str]:
    """Module and name by which another process finds a pipeline.

    Raises:
        InvalidInput: If there is no such way: it was written in a notebook, or in a function.
    """
    function = pipeline.function
    module, name = module_name(function.__module__), function.__qualname__
    if module == "__main__" or "<" in name:
        raise InvalidInput(
            f"pipeline {pipeline.name} cannot be run in another process",
            [("workers", "needs a pipeline that stands in a file, not in a function or notebook")],
            hint="put it into a file, or sweep with workers=1",
        )
    return module, name


def execute_order(module: str, name: str, order: Order) -> list[Any]:
    """Run a trial of the pipeline that stands there; a :class:`TrialEnd` as plain values."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    end = run_trial(found, order)
    return [*end._replace(curve=list(end.curve.items()))]  # type: ignore[arg-type]
