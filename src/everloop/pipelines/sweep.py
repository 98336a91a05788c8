"""Sweeps: many trials of a pipeline, to find the arguments that do best.

A sweep is a run, and its trials are runs below it; nothing else is stored. What a trial was and
what became of it is read from its run, so that a sweep which died goes on where it was, and no
trial is left that looks as if it were still being tried. Optuna proposes, by ask and tell; it keeps
nothing itself.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import cloudpickle
import msgspec

from everloop.core.context import current_workspace
from everloop.core.owner import this_process
from everloop.core.run import PARENT_TAG, Metric, Run
from everloop.core.stop import StopIf
from everloop.core.time import ManualClock
from everloop.errors import (
    EverloopError,
    InvalidInput,
    MissingExtra,
    StateError,
    UserCodeError,
    described,
)
from everloop.pipelines.arguments import stored_arguments
from everloop.pipelines.engine import LEASE_S, RENEW_S
from everloop.pipelines.pool import Pool
from everloop.pipelines.shipping import StepReference, call_to_bytes
from everloop.pipelines.space import Choice, Space
from everloop.pipelines.trial import (
    Order,
    TrialEnd,
    execute_order,
    finished_end,
    place_of,
    run_trial,
)
from everloop.pipelines.values import load
from everloop.pipelines.worker import Task, setup_here
from everloop.tracking.current import logging_to

__all__ = ["Plan", "Sweep", "Trial", "run_sweep"]

Goal = Literal["min", "max"]

NUMBER_TAG = "everloop.sweep.trial"
PLAN_TAG = "everloop.sweep"
_PRUNED = "was stopped:"
_MOST_TRIALS = 50_000


class Plan(NamedTuple):
    """What to try, and when to end; see :meth:`everloop.pipelines.api.Pipeline.sweep`."""

    space: Space
    metric: str
    goal: Goal
    trials: int | None
    sampler: str
    stop: tuple[StopIf, ...]
    seed: int
    workers: int
    on: str
    timeout_s: float | None


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One trial.

    Attributes:
        number: From 0, in the order in which they began.
        params: What was chosen for it.
        state: ``pruned`` was given up early.
        value: Of the metric; None unless it finished.
        run_id: Id of its run.
        error: Why it failed or was given up.
    """

    number: int
    params: dict[str, Any]
    state: Literal["finished", "pruned", "failed"]
    value: float | None
    run_id: str
    error: str = ""


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a sweep.

    Attributes:
        run_id: Id of its own run, the parent of the trials' runs.
        metric: What was looked at.
        goal: Whether high (``max``) or low (``min``) is good.
        trials: The finished ones, the best first; then those given up, then the failed ones.
    """

    run_id: str
    metric: str
    goal: Goal
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The trial that did best.

        Raises:
            StateError: If none finished.
        """
        if not self.trials or self.trials[0].state != "finished":
            raise StateError(
                f"no trial of sweep {self.run_id} finished", hint="see the errors in its trials"
            )
        return self.trials[0]


def run_sweep(pipeline: Any, plan: Plan, resume: str) -> Sweep:
    """Run, or go on with, a sweep of `pipeline` in the current workspace.

    Raises:
        InvalidInput: If the plan is wrong, or is not the one of the sweep to resume; nothing ran.
        UserCodeError: If every trial failed.
    """
    workspace = current_workspace()
    if logging_to.get() is not None:
        raise StateError(
            f"a sweep of {pipeline.name} was started inside a run",
            hint="start it outside: each trial is a run",
        )
    _check(pipeline, plan)
    proposer = _proposer(plan)
    fixed = stored_arguments(plan.space.fixed, workspace.blobs, f"the sweep of {pipeline.name}")
    told = _told(plan, {name: value["digest"] for name, value in fixed.items()})
    with _own_run(workspace, pipeline, plan, told, resume) as own:
        driver = _Driver(workspace, pipeline, plan, proposer, own)
        if resume:
            driver.take_up()
        driver.run()
        found = driver.result()
        _raise_if_all_failed(found)
    return found


def _check(pipeline: Any, plan: Plan) -> None:
    faults = []
    for name, value in (("trials", plan.trials), ("workers", plan.workers)):
        if value is not None and (type(value) is not int or value < 1):
            faults.append((name, f"must be a number from 1, got {value!r}"))
    if plan.trials is None and plan.sampler != "grid":
        faults.append(("trials", "say how many; only a grid has an end of its own"))
    if plan.trials is not None and type(plan.trials) is int and plan.trials > _MOST_TRIALS:
        faults.append(("trials", f"at most {_MOST_TRIALS:,}"))
    if plan.sampler not in ("tpe", "random", "grid"):
        faults.append(("sampler", f"must be 'tpe', 'random' or 'grid', got {plan.sampler!r}"))
    if type(plan.seed) is not int or not 0 <= plan.seed < 1 << 32:
        faults.append(("seed", f"must be a whole number from 0, got {plan.seed!r}"))
    unknown = [n for n in (*plan.space.chosen, *plan.space.fixed) if not pipeline.takes(n)]
    faults += [(name, f"pipeline {pipeline.name} does not take it") for name in unknown]
    if faults:
        raise InvalidInput(f"the sweep of {pipeline.name} is wrong", faults)
    if plan.workers > 1 and not plan.on:
        place_of(pipeline)
    # Wrong types are found before anything runs.
    first = {name: _example(found) for name, found in plan.space.chosen.items()}
    pipeline.signature.bind((), {**plan.space.fixed, **first})


def _example(found: Any) -> Any:
    if isinstance(found, Choice):
        return found.options[0]
    return int(found.low) if found.whole else float(found.low)


def _told(plan: Plan, fixed: dict[str, str]) -> str:
    """What must be the same for a sweep to go on."""
    return json.dumps(
        {
            "space": plan.space.describe(),
            "fixed": fixed,
            "metric": plan.metric,
            "goal": plan.goal,
            "sampler": plan.sampler,
            "seed": plan.seed,
        },
        sort_keys=True,
    )


# The sweep's own run


@contextmanager
def _own_run(workspace: Any, pipeline: Any, plan: Plan, told: str, resume: str) -> Iterator[Run]:
    tracking = workspace.tracking
    if resume:
        before = tracking.run(resume).tags.get(PLAN_TAG)
        if before != told:
            raise InvalidInput(
                f"run {resume} cannot be resumed as this sweep",
                [("resume", _differs(before, told))],
            )
        run = tracking.resume_run(resume, owner=this_process(), lease_s=LEASE_S)
    else:
        run = tracking.create_run(
            pipeline.name,
            name=f"sweep of {plan.metric}",
            params=plan.space.describe() | {"goal": f"{plan.goal} {plan.metric}"},
            tags={PLAN_TAG: told},
            owner=this_process(),
            lease_s=LEASE_S,
        )
    stop = threading.Event()
    renewing = threading.Thread(
        target=_renew, args=(tracking, run, stop), name="everloop-sweep-lease", daemon=True
    )
    renewing.start()
    try:
        yield run
    except BaseException as error:  # Ctrl-C too: the run says how it ended
        stop.set()
        state: Any = "failed" if isinstance(error, Exception) else "killed"
        tracking.end_run(run.id, run.fence, state, error=described(error))
        raise
    finally:
        stop.set()
        renewing.join()
    tracking.end_run(run.id, run.fence, "finished")


def _differs(before: str | None, told: str) -> str:
    if before is None:
        return "it is no sweep"
    old, new = json.loads(before), json.loads(told)
    names = ", ".join(sorted(name for name in new if new[name] != old.get(name)))
    return f"it was started with other values of: {names}"


def _renew(tracking: Any, run: Run, stop: threading.Event) -> None:
    while not stop.wait(RENEW_S):
        try:
            tracking.renew_run(run.id, run.fence, lease_s=LEASE_S)
        except EverloopError:
            # Taken over, or the catalog is away: the end of the run says so.
            continue


# Who proposes


class _Proposer(Protocol):
    def ask(self, number: int) -> dict[str, Any] | None:
        """What to try; None if there is nothing more."""

    def taken(self, number: int, params: dict[str, Any]) -> None:
        """Trial `number` was proposed by an earlier process."""

    def tell(self, number: int, params: dict[str, Any], end: TrialEnd) -> None:
        """What came of a trial."""


class _Grid:
    def __init__(self, space: Space) -> None:
        self._points = space.grid()

    def ask(self, number: int) -> dict[str, Any] | None:
        return self._points[number] if number < len(self._points) else None

    def taken(self, number: int, params: dict[str, Any]) -> None:
        """A number is a place in the grid; there is nothing to keep."""

    def tell(self, number: int, params: dict[str, Any], end: TrialEnd) -> None:
        """A grid does not learn."""


class _Optuna:
    """Optuna's samplers, by ask and tell; a choice is its place among the options."""

    def __init__(self, plan: Plan) -> None:
        try:
            import optuna
        except ImportError as error:
            raise MissingExtra.of("sweep", f"the sampler {plan.sampler!r}") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna: Any = optuna
        self._plan = plan
        self._axes = {name: _axis(optuna, found) for name, found in plan.space.chosen.items()}
        self._study = self._optuna.create_study(
            sampler=self._sampler(plan.seed),
            direction="maximize" if plan.goal == "max" else "minimize",
        )
        self._open: dict[int, Any] = {}
        self._has_asked = False

    def _sampler(self, seed: int) -> Any:
        samplers = self._optuna.samplers
        if self._plan.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        # Trials that are being tried count as bad ones, so that not all go to one place.
        return samplers.TPESampler(seed=seed, constant_liar=self._plan.workers > 1)

    def ask(self, number: int) -> dict[str, Any] | None:
        if number and not self._has_asked:
            # Another process proposed the first ones: with the same seed these would come again.
            self._study.sampler = self._sampler(self._plan.seed + number)
        self._has_asked = True
        trial = self._open[number] = self._study.ask(self._axes)
        return {
            name: found.options[trial.params[name]]
            if isinstance(found, Choice)
            else trial.params[name]
            for name, found in self._plan.space.chosen.items()
        }

    def taken(self, number: int, params: dict[str, Any]) -> None:
        self._study.enqueue_trial(self._inner(params))
        self._open[number] = self._study.ask(self._axes)

    def tell(self, number: int, params: dict[str, Any], end: TrialEnd) -> None:
        states = self._optuna.trial.TrialState
        state = {"finished": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}
        trial = self._open.pop(number)
        if end.state == "pruned":
            for step, value in end.curve.items():
                trial.report(value, step)
        # Nothing is learnt from an infinite value, and the samplers refuse it.
        is_known = end.value is not None and math.isfinite(end.value)
        kind = "failed" if end.state == "finished" and not is_known else end.state
        self._study.tell(trial, end.value if is_known else None, state[kind])

    def _inner(self, params: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name, value in params.items():
            axis = self._plan.space.chosen[name]
            found[name] = axis.place(value) if isinstance(axis, Choice) else value
        return found


def _axis(optuna: Any, found: Any) -> Any:
    kinds = optuna.distributions
    if isinstance(found, Choice):
        return kinds.CategoricalDistribution(range(len(found.options)))
    if found.whole:
        return kinds.IntDistribution(int(found.low), int(found.high), found.log, int(found.step))
    return kinds.FloatDistribution(found.low, found.high, found.log, found.step or None)


def _proposer(plan: Plan) -> _Proposer:
    return _Grid(plan.space) if plan.sampler == "grid" else _Optuna(plan)


# Trying


class _Driver:
    """Keeps so many trials going until there are enough."""

    def __init__(
        self, workspace: Any, pipeline: Any, plan: Plan, proposer: _Proposer, own: Run
    ) -> None:
        self._workspace = workspace
        self._pipeline = pipeline
        self._plan = plan
        self._proposer = proposer
        self._own = own
        self._lock = threading.Lock()
        self._ends: dict[int, tuple[dict[str, Any], TrialEnd]] = {}
        self._next = 0
        self._unfinished: list[tuple[int, dict[str, Any], str]] = []
        self._best: float | None = None
        self._is_over = threading.Event()
        self._described: dict[str, Any] = {}
        self._pool: Pool | None = None

    def take_up(self) -> None:
        """Read the trials of the process before."""
        tracking = self._workspace.tracking
        tracking.reap()
        query = f"tags.`{PARENT_TAG}` = '{self._own.id}'"
        found = tracking.runs([self._own.experiment], filter=query, limit=_MOST_TRIALS).runs
        numbered = {int(run.tags[NUMBER_TAG]): run for run in found if NUMBER_TAG in run.tags}
        for number, run in sorted(numbered.items()):
            params = self._plan.space.of_run(self._pipeline.arguments_of(run.id))
            if params is None:
                continue
            self._proposer.taken(number, params)
            end = self._end_of(run)
            if end is None:
                self._unfinished.append((number, params, run.id))
            else:
                self._note(number, params, end)
        self._next = max(numbered, default=-1) + 1

    def _end_of(self, run: Run) -> TrialEnd | None:
        """What came of a trial's run; None if it has to go on."""
        points = self._workspace.tracking.history(run.id, self._plan.metric)
        curve = {point.step: point.value for point in points}
        if run.state == "killed" and _PRUNED in run.error:
            return TrialEnd(run.id, "pruned", None, curve, run.error)
        if run.state == "failed":
            return TrialEnd(run.id, "failed", None, curve, run.error)
        if run.state == "finished":
            return finished_end(run.id, self._plan.metric, curve)
        return None

    def run(self) -> None:
        """Try until there are enough trials, or the time is over."""
        plan = self._plan
        self._described = self._pipeline.describe(self._workspace)
        ends_at = time.monotonic() + (math.inf if plan.timeout_s is None else plan.timeout_s)
        try:
            if plan.workers == 1:
                self._work(ends_at)
                return
            if not plan.on:
                self._pool = Pool(
                    plan.workers, setup_here(self._workspace.location, self._workspace.actor)
                )
            with ThreadPoolExecutor(plan.workers, "everloop-sweep") as threads:
                work = [
                    threads.submit(copy_context().run, self._work, ends_at)
                    for _ in range(plan.workers)
                ]
                try:
                    for future in work:
                        future.result()
                except BaseException:  # Ctrl-C too: the threads end with it
                    self._end()
                    raise
        finally:
            self._end()

    def _end(self) -> None:
        self._is_over.set()
        if self._pool is not None:
            self._pool.close(kill=True)

    def _work(self, ends_at: float) -> None:
        try:
            while not self._is_over.is_set() and time.monotonic() < ends_at:
                todo = self._take()
                if todo is None:
                    return
                number, params, resume = todo
                end = self._try(number, params, resume)
                with self._lock:
                    self._note(number, params, end)
        except BaseException:  # also Ctrl-C: the other threads begin no further trial
            self._is_over.set()
            raise

    def _take(self) -> tuple[int, dict[str, Any], str] | None:
        with self._lock:
            if self._unfinished:
                return self._unfinished.pop(0)
            if self._plan.trials is not None and self._next >= self._plan.trials:
                return None
            params = self._proposer.ask(self._next)
            if params is None:
                return None
            self._next += 1
            return self._next - 1, params, ""

    def _note(self, number: int, params: dict[str, Any], end: TrialEnd) -> None:
        self._proposer.tell(number, params, end)
        self._ends[number] = params, end
        if end.value is None or not math.isfinite(end.value):
            return
        is_better = self._best is None or (
            end.value > self._best if self._plan.goal == "max" else end.value < self._best
        )
        if is_better:
            self._best = end.value
            at_ms = time.time_ns() // 1_000_000
            point = Metric(key=self._plan.metric, value=end.value, step=number, at_ms=at_ms)
            self._workspace.tracking.log_points(self._own.id, [point], fence=self._own.fence)

    def _try(self, number: int, params: dict[str, Any], resume: str) -> TrialEnd:
        order = self._order(number, params, resume)
        if self._pool is None:
            return run_trial(self._pipeline, order)
        end = self._in_worker(order)
        if end is not None:
            return end
        # The process died under it: its run, if there is one, goes on once.
        run_id = resume or self._run_of(number)
        again = self._order(number, params, run_id)
        end = self._in_worker(again)
        return end or TrialEnd(
            self._run_of(number), "failed", None, {}, "the process that executed it died twice"
        )

    def _order(self, number: int, params: dict[str, Any], resume: str) -> Order:
        plan = self._plan
        return Order(
            arguments={} if resume else {**plan.space.fixed, **params},
            resume=resume,
            tags={PARENT_TAG: self._own.id, NUMBER_TAG: str(number)},
            described=self._described,
            metric=plan.metric,
            stop=plan.stop,
            on=plan.on,
        )

    def _in_worker(self, order: Order) -> TrialEnd | None:
        """What came of a trial in a worker process; None if that process died."""
        assert self._pool is not None
        module, name = place_of(self._pipeline)
        where = f"the sweep of {self._pipeline.name}"
        clock = self._workspace.clock
        task = Task(
            StepReference("", "", cloudpickle.dumps(partial(execute_order, module, name))),
            [call_to_bytes((order,), {}, self._workspace.blobs, where)],
            self._own,
            clock.now() if isinstance(clock, ManualClock) else None,
        )
        [outcome] = self._pool.run(task)
        if outcome.raised is not None and outcome.raised.kind == "ChildProcessError":
            return None
        if outcome.raised is not None:
            error = UserCodeError(f"{outcome.raised.kind}: {outcome.raised.message}")
            error.add_note(outcome.raised.trace)
            raise error
        assert outcome.stored is not None
        run_id, state, value, curve, told = load(outcome.stored, self._workspace.blobs)
        return TrialEnd(run_id, state, value, {int(step): y for step, y in curve}, told)

    def _run_of(self, number: int) -> str:
        query = f"tags.`{PARENT_TAG}` = '{self._own.id}' AND tags.`{NUMBER_TAG}` = '{number}'"
        found = self._workspace.tracking.runs([self._own.experiment], filter=query, limit=1).runs
        return found[0].id if found else ""

    def result(self) -> Sweep:
        """The trials so far, the best first."""
        sign = -1.0 if self._plan.goal == "max" else 1.0
        ranks = {"finished": 0, "pruned": 1, "failed": 2}

        def rank(trial: Trial) -> tuple[int, float, int]:
            return ranks[trial.state], sign * (trial.value or 0.0), trial.number

        trials = [
            Trial(
                number=number,
                params=params,
                state=end.state,
                value=end.value,
                run_id=end.run_id,
                error=end.error,
            )
            for number, (params, end) in self._ends.items()
        ]
        return Sweep(
            run_id=self._own.id,
            metric=self._plan.metric,
            goal=self._plan.goal,
            trials=tuple(sorted(trials, key=rank)),
        )


def _raise_if_all_failed(found: Sweep) -> None:
    failed = [trial for trial in found.trials if trial.state == "failed"]
    if failed and len(failed) == len(found.trials):
        raise UserCodeError(
            f"all {len(failed)} trials of sweep {found.run_id} failed; the first: "
            f"{failed[0].error or 'nobody said why'}",
            hint="correct it and sweep again: what was computed is taken from the store",
        )
