"""The runs of a data test: one of the test, whose steps are the trainings, and one below it each.

The trainings are steps of a pipeline, so each is looked up by its key first, may be executed in a
worker process, and is committed by itself: a test that dies or fails goes on where it was.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from everloop.core.context import current_workspace
from everloop.core.data_test import TEST_TAG
from everloop.core.run import PARENT_TAG, Metric, Run, RunInput
from everloop.data.frame import Source, Table
from everloop.errors import EverloopError, InvalidInput, StateError, UserCodeError
from everloop.evaluation.data_tests.training import as_of, code_of, training_step
from everloop.evaluation.metrics import Task
from everloop.pipelines.api import Pipeline, Step, current_run
from everloop.pipelines.watcher import Watcher

__all__ = [
    "Order",
    "Outcome",
    "Training",
    "in_run",
    "note_inputs",
    "note_run",
    "outcomes_of",
    "train_all",
]

Floats = npt.NDArray[np.float64]


class Training(NamedTuple):
    """A step that trains and scores, and the name of what it does (``code_of``)."""

    step: Step[..., Any]
    code: str

    @classmethod
    def of(cls, train: Any, task: Task) -> Training:
        """Of a user's function."""
        return cls(training_step(train, task), code_of(train))


class Order(NamedTuple):
    """A training to be done; `place` names it among the others."""

    place: Any
    training: Training
    rows: Callable[[], Table]
    seed: int
    repetition: int = 0


class Outcome(NamedTuple):
    """The scores of a training, or why there are none."""

    scores: Floats | None
    error: str = ""


class _Begun(Watcher):
    def begun(self, run: Run) -> None:
        self.run = run


_work: ContextVar[Callable[[], Any]] = ContextVar("everloop_data_test")


def _do_work(_: Any) -> None:
    _work.get()()


def in_run(
    name: str,
    train: Any,
    work: Callable[[], Any],
    tags: Mapping[str, str],
    workers: int,
) -> tuple[Any, Run]:
    """Do `work` as a run of its own, in which steps are steps; what it returns, and the run.

    Args:
        name: Of the pipeline, and so of the experiment.
        train: The user's function: its code is the run's.

    Raises:
        StateError: If this is called within a run.
    """
    if current_run() is not None:
        raise StateError(
            "a data test was started inside a run",
            hint="start it outside: it is a run itself, and each training one below it",
        )

    def data_test() -> None:
        # The training is named, so that the run keeps its code; the work is no part of that.
        _do_work(train)

    found: list[Any] = []
    pipeline = Pipeline(as_of(train.function if isinstance(train, Step) else train, data_test))
    pipeline.name = name
    watcher = _Begun(dict(tags))
    token = _work.set(lambda: found.append(work()))
    try:
        pipeline.run_watched(watcher, {}, workers=workers)
    finally:
        _work.reset(token)
    return found[0], watcher.run


def train_all(holdout: Table, orders: list[Order], workers: int) -> dict[Any, Outcome]:
    """Train and score; one that fails is told, and the others go on."""
    plain = _content(holdout)
    if workers == 1:
        return {order.place: _outcome(order, partial(_trained, plain, order)) for order in orders}
    found: dict[Any, Outcome] = {}
    # Not all at once: each holds its rows until it is sent.
    together = 4 * workers
    for start in range(0, len(orders), together):
        some = orders[start : start + together]
        handles = [o.training.step.submit(*_arguments(plain, o)) for o in some]
        for order, handle in zip(some, handles, strict=True):
            found[order.place] = _outcome(order, handle.result)
    return found


def _trained(holdout: Table, order: Order) -> Any:
    return order.training.step(*_arguments(holdout, order))


def _arguments(holdout: Table, order: Order) -> tuple[Any, ...]:
    rows = _content(order.rows())
    return rows, holdout, order.seed, order.repetition, order.training.code


def _content(rows: Table) -> Table:
    # Without where they come from: equal content is one training, whichever version it is.
    return Table(rows.to_arrow(), key=rows.key)


def _outcome(order: Order, call: Callable[[], Any]) -> Outcome:
    try:
        return Outcome(np.asarray(call()))
    except InvalidInput as error:  # our own words on what the training gave
        return Outcome(None, str(error))
    except EverloopError:
        raise  # the store or the catalog: nothing that this version is to blame for
    except Exception as error:  # noqa: BLE001 - the user's: kept as the reason of this version
        where = f"the training with seed {order.seed}"
        return Outcome(None, UserCodeError.caught(where, error).message)


def note_run(
    experiment: str,
    name: str,
    parent: str,
    *,
    params: Mapping[str, str],
    metrics: Mapping[str, float],
    source: Source | None,
    error: str,
) -> str:
    """Keep one training as a run below the test's; its id."""
    tracking = current_workspace().tracking
    run = tracking.create_run(
        experiment,
        name=name,
        params=dict(params),
        tags={PARENT_TAG: parent, TEST_TAG: "training"},
    )
    if metrics:
        at_ms = time.time_ns() // 1_000_000
        tracking.log(run.id, [Metric(key=k, value=v, at_ms=at_ms) for k, v in metrics.items()])
    note_inputs(run.id, {"train": source})
    tracking.end_run(run.id, run.fence, "failed" if error else "finished", error=error)
    return str(run.id)


def note_inputs(run_id: str, sources: Mapping[str, Source | None]) -> None:
    """Link dataset versions to a run, by role."""
    inputs = [
        RunInput(dataset=s.dataset, version=s.version, digest=s.digest, role=role)
        for role, s in sources.items()
        if s is not None
    ]
    if inputs:
        current_workspace().tracking.log_inputs(run_id, inputs)


def outcomes_of(run_id: str) -> tuple[int, int]:
    """How many steps of a run were executed, and how many were answered from the store."""
    with contextlib.suppress(EverloopError):
        steps = current_workspace().pipelines.steps(run_id)
        cached = sum(step.outcome == "cached" for step in steps)
        return len(steps) - cached, cached
    return 0, 0
