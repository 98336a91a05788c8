"""``ev.step``, ``ev.pipeline`` and ``ev.log``: plain functions with a memory.

Outside a run a step is the bare function. Inside ``pipeline.run()`` each call of a step is looked
up by its key, and executed and stored only if nothing is found.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

import msgspec

from everloop.core.context import current_workspace
from everloop.core.owner import this_process
from everloop.core.pipeline import StoredValue
from everloop.core.reads import READS_TAG, noting, to_text
from everloop.core.run import Run
from everloop.core.secret import is_shown, masked
from everloop.core.stop import StopIf
from everloop.core.time import duration_micros
from everloop.errors import (
    Conflict,
    EverloopError,
    InvalidInput,
    RunStopped,
    StateError,
    UserCodeError,
    described,
)
from everloop.pipelines.arguments import shown_arguments, stored_arguments
from everloop.pipelines.asking import Waits, waiting_error
from everloop.pipelines.code import fingerprint
from everloop.pipelines.definition import Step as StepDefinition
from everloop.pipelines.definition import full_name
from everloop.pipelines.engine import (
    LEASE_S,
    Execution,
    executing,
)
from everloop.pipelines.handles import Handle, resolved
from everloop.pipelines.kept import kept_modules
from everloop.pipelines.signature import Signature
from everloop.pipelines.snapshot import data_of, files_of
from everloop.pipelines.space import Space
from everloop.pipelines.values import Unreadable, load
from everloop.pipelines.watcher import Watcher
from everloop.ports.executor import Executor
from everloop.tracking.current import logging_to
from everloop.tracking.surroundings import environment_of, git_of, snapshot_code

if TYPE_CHECKING:
    from everloop.pipelines.backfill import Backfill
    from everloop.pipelines.sweep import Sweep

__all__ = ["Pipeline", "Step", "current_run", "log", "pipeline", "step"]

P = ParamSpec("P")
R = TypeVar("R")

_RUN_OPTIONS = frozenset({"resume", "force", "trigger", "workers", "on"})


def _is_plain_function(function: object) -> bool:
    return callable(function) and not inspect.iscoroutinefunction(function)


class Step(StepDefinition, Generic[P, R]):
    """A step. Call it as the function it is."""

    def __init__(self, function: Callable[P, R], **options: Any) -> None:
        if not _is_plain_function(function):
            raise InvalidInput("a step is a plain function", [("", repr(function))])
        super().__init__(function, **options)
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        execution = executing.get()
        if execution is None:
            return self.function(*args, **kwargs)  # type: ignore[no-any-return]
        return execution.call(self, args, kwargs)  # type: ignore[no-any-return]

    def map(self, items: Iterable[Any], **fixed: Any) -> list[R]:
        """Call the step for each item, side by side in worker processes.

        Args:
            items: The first argument of each call.
            **fixed: The other arguments, the same for all.

        Returns:
            The results, in the order of the items.

        Raises:
            InvalidInput: If an argument is of the wrong type, or cannot be sent to a process.
            Exception: What the first call that failed raised. The others are executed all the
                same, and their results are kept for the next run.
        """
        execution = executing.get()
        if execution is None:
            call: Callable[..., R] = self.function
            return [call(item, **fixed) for item in items]
        from everloop.pipelines.fan import FanOut

        return FanOut(execution, self).run(list(items), fixed)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Begin a call in a worker process and go on; the handle has the result when it is there.

        A handle may be given to other steps in place of the result. Outside a run the step is
        executed at once.
        """
        execution = executing.get()
        if execution is not None:
            return execution.submit(self, args, kwargs)
        future: Future[R] = Future()
        try:
            future.set_result(self.function(*resolved(args), **kwargs))
        except Exception as error:  # noqa: BLE001 - the user's: `result()` raises it
            future.set_exception(error)
        return Handle(future)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        raise InvalidInput(
            f"step {self.name} stands in a class",
            hint="make it a function of the module; a method has a self that no key can hold",
        )

    def __repr__(self) -> str:
        return f"<step {self.name}>"


@overload
def step(function: Callable[P, R], /) -> Step[P, R]: ...
@overload
def step(
    *,
    cache: bool = ...,
    version: str = ...,
    environment: Iterable[str] = ...,
    retries: int = ...,
    backoff: str | timedelta | None = ...,
    timeout: str | timedelta | None = ...,
    memory: str | int = ...,
    isolate: bool = ...,
    cpus: float = ...,
    gpus: float = ...,
) -> Callable[[Callable[P, R]], Step[P, R]]: ...
def step(
    function: Callable[..., Any] | None = None,
    /,
    *,
    cache: bool = True,
    version: str = "",
    environment: Iterable[str] = (),
    retries: int = 0,
    backoff: str | timedelta | None = None,
    timeout: str | timedelta | None = None,
    memory: str | int = 0,
    isolate: bool = False,
    cpus: float = 1,
    gpus: float = 0,
) -> Any:
    """Make a function a step of pipelines.

    Args:
        function: The function.
        cache: Whether a stored result of another run may be used. A step that is not cached runs
            once in each run, also over a resume.
        version: A text that is part of the key: change it to have the step run again.
        environment: Names of environment variables that the step depends on.
        retries: How often to try again when it raises.
        backoff: How long to wait before the first new try, such as ``"1s"``; twice as long before
            each further one. At once if not given.
        timeout: How long one try may take, such as ``"10m"``; then its process is killed.
        memory: How much memory one try may use for its data, such as ``"2GB"`` (10**9 bytes) or
            ``"512MiB"`` (2**20), or a number of bytes. Includes what the libraries take.
        isolate: Execute each call in a process of its own: whatever it does there, even a crash,
            is an error of the step and nothing more. A timeout or a limit of memory implies it.
        cpus: Processors that a call takes on a cluster (``run(on=...)``); parts of one are
            possible. With 0 a plain call is executed where the pipeline runs. Here it says nothing,
            nor do `gpus`.
        gpus: Graphics cards that a call takes on a cluster; parts of one are possible.

    Raises:
        InvalidInput: If an option is wrong, or `function` is no plain function.
    """
    names = tuple(environment)
    if isinstance(environment, str):
        raise InvalidInput("environment is a list of names", [("environment", repr(environment))])
    if type(retries) is not int or retries < 0:
        raise InvalidInput("retries is a number from 0", [("retries", repr(retries))])
    faults = [(n, repr(v)) for n, v in (("cpus", cpus), ("gpus", gpus)) if not _is_share(v)]
    if faults:
        raise InvalidInput("cpus and gpus are numbers from 0", faults)
    options = {
        "cache": cache,
        "version": str(version),
        "environment": names,
        "retries": retries,
        "backoff_s": duration_micros(backoff) / 1e6 if backoff is not None else 0.0,
        "timeout_s": duration_micros(timeout) / 1e6 if timeout is not None else None,
        "memory": _bytes(memory),
        "isolate": isolate,
        "cpus": cpus,
        "gpus": gpus,
    }
    if function is not None:
        return Step(function, **options)
    return lambda decorated: Step(decorated, **options)


def _is_share(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value < math.inf  # type: ignore[operator]


_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def _bytes(size: str | int) -> int:
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ki|mi|gi|k|m|g|)b?\s*", str(size).lower())
    if found is None or isinstance(size, bool):
        raise InvalidInput(
            "memory is a number of bytes", [("memory", repr(size))], hint='such as "2GB"'
        )
    return round(float(found[1]) * _SIZES[found[2]])


class Pipeline(Generic[P, R]):
    """A function that calls steps.

    Attributes:
        name: ``module.qualname``; its runs are in the experiment of this name.
        run_id: Id of the last run started from this object, or empty.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        if not _is_plain_function(function):
            raise InvalidInput("a pipeline is a plain function", [("", repr(function))])
        self.name = full_name(function)
        self.function = function
        self.signature = Signature(function, "pipeline", self.name)
        self.run_id = ""
        functools.update_wrapper(self, function)
        taken = _RUN_OPTIONS & set(self.signature.names)
        if taken:
            raise InvalidInput(
                f"pipeline {self.name} cannot take these arguments",
                [(name, "is an option of run(); choose another name") for name in sorted(taken)],
            )

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function as it is; within a run its steps belong to that run."""
        return self.function(*args, **kwargs)

    def run(
        self,
        *,
        resume: str = "",
        force: bool = False,
        trigger: str = "",
        workers: int | None = None,
        on: str = "",
        **arguments: Any,
    ) -> R:
        """Run the pipeline in the current workspace.

        Args:
            resume: Id of a run that died, failed or was stopped; it goes on under its id, with
                the arguments that it was started with.
            force: Run every step, whatever is stored.
            trigger: Id of the firing that started it.
            workers: Processes at most for ``submit`` and ``map``; as many as there are cores if
                not given. On a cluster, calls at once; as many as fit if not given.
            on: A cluster that executes the steps: ``ray`` (the one that ``RAY_ADDRESS`` names, or
                that this machine is a node of) or ``ray://host:port``. None is ever started.
            **arguments: The pipeline's own.

        Returns:
            What the function returned.

        Raises:
            InvalidInput: If an argument is missing, unknown or of the wrong type; nothing ran.
            UserCodeError: If the user's code raised; the run failed and can be resumed.
            Conflict: If the run to resume is alive.
            StateError: If the run to resume finished, or another process took this one over.
            BackendError: If there is no cluster at `on`; nothing ran.
            MissingExtra: Without the library of the cluster; nothing ran.
            RunWaiting: If it waits for an approval, see :func:`everloop.approve`.
        """
        return self.run_watched(
            Watcher(),
            arguments,
            resume=resume,
            force=force,
            trigger=trigger,
            workers=workers,
            on=on,
        )

    def run_watched(
        self,
        watcher: Watcher,
        arguments: Mapping[str, Any],
        *,
        resume: str = "",
        force: bool = False,
        trigger: str = "",
        workers: int | None = None,
        on: str = "",
    ) -> R:
        """Run the pipeline as :meth:`run` does, with a watcher beside it.

        Raises:
            RunStopped: If the watcher gave the run up; it ended as killed.
        """
        if executing.get() is not None or isinstance(logging_to.get(), Execution):
            raise StateError(
                f"pipeline {self.name} was started inside a run",
                hint=f"call {self.function.__name__}(...) itself: its steps join the run",
            )
        if workers is not None and (type(workers) is not int or workers < 1):
            raise InvalidInput("workers is a number from 1", [("workers", repr(workers))])
        workspace = current_workspace()
        given = dict(arguments)
        if resume:
            if given:
                faults = [(name, "a resumed run keeps its arguments") for name in given]
                raise InvalidInput(f"run {resume} cannot take arguments", faults)
            given = self.arguments_of(resume)
        bound = self.signature.bind((), given, texts=True)
        if not isinstance(on, str):
            raise InvalidInput('on is a text such as "ray"', [("on", repr(on))])
        # Before the run: without its cluster it would only fail.
        executor = workspace.executor(on) if on else None
        try:
            with _executed_here(resume):
                run = self._start(workspace, bound, resume, trigger, watcher)
                self.run_id = run.id
                watcher.begun(run)
                with _executed_here(run.id if not resume else ""):
                    execution = Execution(
                        workspace, run, force=force, workers=workers, watcher=watcher
                    )
                    return self._run(execution, bound, executor, watcher)
        finally:
            if executor is not None:
                executor.close()

    def sweep(
        self,
        space: Mapping[str, Any],
        *,
        trials: int | None = None,
        maximize: str = "",
        minimize: str = "",
        sampler: str = "tpe",
        stop: Sequence[StopIf] = (),
        seed: int = 0,
        workers: int = 1,
        on: str = "",
        timeout: str | timedelta | None = None,
        resume: str = "",
    ) -> Sweep:
        """Run the pipeline again and again with other arguments, to find the best.

        Each trial is a run, a child of the sweep's own: with its arguments, metrics and steps, of
        which those that other trials have done already are taken from the store.

        Args:
            space: By argument what to choose from (:func:`everloop.uniform`, ``loguniform``,
                ``integers``, ``choice``), or the value that all trials get.
            trials: How many; all combinations if not given, for the sampler ``grid``.
            maximize: The metric to make large: the last value that a trial logged under this name;
                or what the pipeline returned, a number or a mapping with this name.
            minimize: The metric to make small.
            sampler: ``tpe`` (learns from the trials before), ``random`` or ``grid``.
            stop: Rules that give a hopeless trial up, see :func:`everloop.stop_if`; the median is
                that of the sweep's finished trials.
            seed: Of the sampler.
            workers: Trials at once; more than one each in a process of its own.
            on: A cluster for the steps of the trials, as for :meth:`run`.
            timeout: When to begin no further trial, such as ``"1h"``.
            resume: Id of a sweep that was stopped or died: it goes on, and so do its trials.

        Returns:
            The trials, the best first.

        Raises:
            InvalidInput: If space or options are wrong; nothing ran.
            MissingExtra: Without Optuna, for other samplers than ``grid``.
            UserCodeError: If all trials failed; what the first of them raised.
        """
        from everloop.pipelines.sweep import Plan, run_sweep

        if bool(maximize) == bool(minimize):
            raise InvalidInput(
                "a sweep has one goal", [("maximize", "give this or minimize, not both")]
            )
        plan = Plan(
            space=Space(space),
            metric=maximize or minimize,
            goal="max" if maximize else "min",
            trials=trials,
            sampler=sampler,
            stop=tuple(stop),
            seed=seed,
            workers=workers,
            on=on,
            timeout_s=None if timeout is None else duration_micros(timeout) / 1e6,
        )
        return run_sweep(self, plan, resume)

    def _run(
        self,
        execution: Execution,
        bound: dict[str, Any],
        executor: Executor | None,
        watcher: Watcher,
    ) -> R:
        workspace, run = current_workspace(), execution.run
        execution.open()
        describing = threading.Thread(
            target=self._describe,
            args=(workspace, execution, watcher),
            name="everloop-describe",
            daemon=True,
        )
        describing.start()
        execution.modules.result()  # before anything can edit them
        try:
            with noting(run.id) as reads:
                return self._execute(execution, bound, executor, watcher)
        finally:
            execution.close()
            describing.join(timeout=10)
            if reads:
                # Where the catalog is away, the run's own end has said so.
                with contextlib.suppress(EverloopError):
                    workspace.tracking.set_tag(run.id, READS_TAG, to_text(reads))

    def backfill(
        self, *, concurrency: int = 1, fixed: dict[str, Any] | None = None, **values: Iterable[Any]
    ) -> Backfill:
        """Run the pipeline for each of many values; what is stored is not computed again.

        Args:
            concurrency: Runs at the same time, in threads.
            fixed: The other arguments, the same for all.
            **values: By argument: its values. Of several, each combination is run.

        Raises:
            InvalidInput: If there is nothing to run, or the arguments do not fit; nothing ran.
        """
        from everloop.pipelines.backfill import backfill

        return backfill(self, values, concurrency=concurrency, **(fixed or {}))

    def _start(
        self, workspace: Any, bound: dict[str, Any], resume: str, trigger: str, watcher: Watcher
    ) -> Run:
        stored: dict[str, Any] = {}
        if not resume:
            stored = stored_arguments(bound, workspace.blobs, f"pipeline {self.name}")
        return workspace.pipelines.start(  # type: ignore[no-any-return]
            self.name,
            arguments=stored,
            params=shown_arguments(stored),
            run_id=resume,
            tags=watcher.tags,
            trigger=trigger,
            owner=this_process(),
            lease_s=LEASE_S,
            **watcher.described,
        )

    def takes(self, name: str) -> bool:
        """Whether it has a parameter of that name."""
        return name in self.signature.parameters

    def arguments_of(self, run_id: str) -> dict[str, Any]:
        """The arguments that a run of this pipeline was started with.

        Raises:
            StateError: If they cannot be read any more.
        """
        workspace = current_workspace()
        found = workspace.pipelines.arguments(run_id)
        try:
            return {
                name: load(msgspec.convert(value, StoredValue), workspace.blobs)
                for name, value in found.items()
                if name in self.signature.parameters
            }
        except Unreadable as error:
            raise StateError(
                f"the arguments of run {run_id} cannot be read: {error}", hint="start a new run"
            ) from error

    def _execute(
        self,
        execution: Execution,
        bound: dict[str, Any],
        executor: Executor | None,
        watcher: Watcher,
    ) -> R:
        args, kwargs = self.signature.unbind(bound)
        token, log_token = executing.set(execution), logging_to.set(execution)
        try:
            if executor is not None:
                execution.go_to(executor, self.function)
            result = self.function(*args, **kwargs)
            execution.join()
            for point in watcher.returned(result):
                execution.hold(point)
        except RunStopped as error:
            execution.finish("killed", error=error.message)
            raise
        except Waits as waits:
            execution.finish("waiting")
            raise waiting_error(execution.run.id, waits.approval) from None
        except Exception as error:  # the user's: the run keeps it, the caller gets it
            told = _told(self, execution, error)
            execution.finish("failed", error=masked(str(told)))
            if told is error:
                raise
            raise told from error
        except BaseException as error:  # Ctrl-C, SystemExit: noted, and it goes on
            execution.finish("killed", error=masked(described(error)))
            raise
        finally:
            executing.reset(token)
            logging_to.reset(log_token)
        execution.finish("finished", result=result)
        return result

    def describe(self, workspace: Any) -> dict[str, Any]:
        """Code, repository and environment of its runs; keeps the code, and may take a while."""
        code = fingerprint(self.function)
        module = inspect.getsourcefile(inspect.unwrap(self.function))
        return {
            "code": snapshot_code(files_of(code), workspace.blobs, data=data_of(code)),
            "git": git_of(Path(module).parent if module else Path.cwd()),
            "environment": environment_of(code.distributions),
        }

    def _describe(self, workspace: Any, execution: Execution, watcher: Watcher) -> None:
        """Record what the run is made of; beside it, so that it need not wait for all of that."""
        run, files = execution.run, dict[str, str]()
        try:
            files = files_of(fingerprint(self.function))
        finally:  # the run waits for it, whatever became of it
            execution.modules.set_result(kept_modules(files))
        if watcher.described:
            return
        try:
            described = self.describe(workspace)
            described["git"] = watcher.git or described["git"]
            workspace.pipelines.annotate(run.id, run.fence, **described)
        except EverloopError:
            # The run's own commits meet the same trouble and report it; this is only its record.
            return
        except Exception:  # it took longer than the run, whose workspace may be closed by now
            if not execution.is_closed:
                raise

    def __repr__(self) -> str:
        return f"<pipeline {self.name}>"


_here: set[str] = set()
_here_lock = threading.Lock()


@contextlib.contextmanager
def _executed_here(run_id: str) -> Iterator[None]:
    """Keep another thread of this process from resuming a run that one executes."""
    with _here_lock:
        if run_id in _here:
            raise Conflict(
                f"run {run_id} is alive: another thread of this process executes it",
                hint="wait for it",
            )
        if run_id:
            _here.add(run_id)
    try:
        yield
    finally:
        with _here_lock:
            _here.discard(run_id)


def _told(pipeline_: Pipeline[Any, Any], execution: Execution, error: Exception) -> EverloopError:
    if isinstance(error, EverloopError):
        return error
    step_name = execution.step_that_raised(error)
    where = f"step {step_name}" if step_name else f"pipeline {pipeline_.name}"
    hint = f"the run is kept; after the correction go on with run(resume={execution.run.id!r})"
    told = UserCodeError.caught(where, error, hint=hint)
    return UserCodeError(masked(told.message), hint=hint) if is_shown(told.message) else told


def pipeline(function: Callable[P, R]) -> Pipeline[P, R]:
    """Make a function a pipeline: ``.run(**arguments)`` executes it as a recorded run.

    Raises:
        InvalidInput: If it is no plain function, or has a parameter that ``run`` needs itself.
    """
    return Pipeline(function)


def current_run() -> Run | None:
    """The run that this code belongs to, or None outside a run."""
    target = logging_to.get() or executing.get()
    return target.run if target is not None else None


def log(step: int = 0, **metrics: float) -> None:
    """Log metrics to the current run; outside a run nothing happens.

    Args:
        step: Position on the x axis of charts.
        **metrics: Name and value; NaN and infinities are kept.

    Raises:
        InvalidInput: If a value is no number.
    """
    faults = []
    for name, value in metrics.items():
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            faults.append((name, f"wanted a number, got {type(value).__name__}"))
    if faults:
        raise InvalidInput("metrics are numbers", faults)
    target = logging_to.get()
    if target is not None:
        target.log({name: float(value) for name, value in metrics.items()}, step=step)
