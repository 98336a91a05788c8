"""``ev.step``, ``ev.pipeline`` and ``ev.log``: plain functions with a memory.

Outside a run a step is the bare function. Inside ``pipeline.run()`` each call of a step is looked
up by its key, and executed and stored only if nothing is found.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import threading
from collections.abc import Callable, Iterable
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
from everloop.core.time import duration_micros
from everloop.errors import EverloopError, InvalidInput, StateError, UserCodeError
from everloop.pipelines.approvals import Waits, waiting_error
from everloop.pipelines.code import fingerprint
from everloop.pipelines.definition import Step as StepDefinition
from everloop.pipelines.definition import full_name
from everloop.pipelines.engine import (
    LEASE_S,
    Execution,
    executing,
    shown_arguments,
    stored_arguments,
)
from everloop.pipelines.handles import Handle, resolved
from everloop.pipelines.signature import Signature
from everloop.pipelines.snapshot import data_of, files_of
from everloop.pipelines.values import Unreadable, load
from everloop.tracking.current import logging_to
from everloop.tracking.surroundings import environment_of, git_of, snapshot_code

if TYPE_CHECKING:
    from everloop.pipelines.backfill import Backfill

__all__ = ["Pipeline", "Step", "current_run", "log", "pipeline", "step"]

P = ParamSpec("P")
R = TypeVar("R")

_RUN_OPTIONS = frozenset({"resume", "force", "trigger", "workers"})


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

    Raises:
        InvalidInput: If an option is wrong, or `function` is no plain function.
    """
    names = tuple(environment)
    if isinstance(environment, str):
        raise InvalidInput("environment is a list of names", [("environment", repr(environment))])
    if type(retries) is not int or retries < 0:
        raise InvalidInput("retries is a number from 0", [("retries", repr(retries))])
    options = {
        "cache": cache,
        "version": str(version),
        "environment": names,
        "retries": retries,
        "backoff_s": duration_micros(backoff) / 1e6 if backoff is not None else 0.0,
        "timeout_s": duration_micros(timeout) / 1e6 if timeout is not None else None,
        "memory": _bytes(memory),
        "isolate": isolate,
    }
    if function is not None:
        return Step(function, **options)
    return lambda decorated: Step(decorated, **options)


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
        **arguments: Any,
    ) -> R:
        """Run the pipeline in the current workspace.

        Args:
            resume: Id of a run that died, failed or was stopped; it goes on under its id, with
                the arguments that it was started with.
            force: Run every step, whatever is stored.
            trigger: Id of the firing that started it.
            workers: Processes at most for ``submit`` and ``map``; as many as there are cores if
                not given.
            **arguments: The pipeline's own.

        Returns:
            What the function returned.

        Raises:
            InvalidInput: If an argument is missing, unknown or of the wrong type; nothing ran.
            UserCodeError: If the user's code raised; the run failed and can be resumed.
            Conflict: If the run to resume is alive.
            StateError: If the run to resume finished, or another process took this one over.
            RunWaiting: If it waits for an approval, see :func:`everloop.approve`.
        """
        if executing.get() is not None or isinstance(logging_to.get(), Execution):
            raise StateError(
                f"pipeline {self.name} was started inside a run",
                hint=f"call {self.function.__name__}(...) itself: its steps join the run",
            )
        if workers is not None and (type(workers) is not int or workers < 1):
            raise InvalidInput("workers is a number from 1", [("workers", repr(workers))])
        workspace = current_workspace()
        if resume:
            if arguments:
                faults = [(name, "a resumed run keeps its arguments") for name in arguments]
                raise InvalidInput(f"run {resume} cannot take arguments", faults)
            arguments = self._stored_arguments(workspace, resume)
        bound = self.signature.bind((), arguments)
        run = self._start(workspace, bound, resume, trigger)
        self.run_id = run.id
        execution = Execution(workspace, run, force=force, workers=workers)
        execution.open()
        describing = threading.Thread(
            target=self._describe, args=(workspace, run), name="everloop-describe", daemon=True
        )
        describing.start()
        try:
            with noting() as reads:
                return self._execute(execution, bound)
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

    def _start(self, workspace: Any, bound: dict[str, Any], resume: str, trigger: str) -> Run:
        stored: dict[str, Any] = {}
        if not resume:
            stored = stored_arguments(bound, workspace.blobs, f"pipeline {self.name}")
        return workspace.pipelines.start(  # type: ignore[no-any-return]
            self.name,
            arguments=stored,
            params=shown_arguments(stored),
            run_id=resume,
            trigger=trigger,
            owner=this_process(),
            lease_s=LEASE_S,
        )

    def _stored_arguments(self, workspace: Any, run_id: str) -> dict[str, Any]:
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

    def _execute(self, execution: Execution, bound: dict[str, Any]) -> R:
        args, kwargs = self.signature.unbind(bound)
        token, log_token = executing.set(execution), logging_to.set(execution)
        try:
            result = self.function(*args, **kwargs)
            execution.join()
        except Waits as waits:
            execution.finish("waiting")
            raise waiting_error(execution.run.id, waits.approval) from None
        except Exception as error:  # the user's: the run keeps it, the caller gets it
            told = _told(self, execution, error)
            execution.finish("failed", error=str(told))
            if told is error:
                raise
            raise told from error
        except BaseException as error:  # Ctrl-C, SystemExit: noted, and it goes on
            execution.finish("killed", error=f"{type(error).__name__}: {error}".rstrip(": "))
            raise
        finally:
            executing.reset(token)
            logging_to.reset(log_token)
        execution.finish("finished", result=result)
        return result

    def _describe(self, workspace: Any, run: Run) -> None:
        """Record repository, environment and code; beside the run, as it may take a while."""
        code = fingerprint(self.function)
        module = inspect.getsourcefile(inspect.unwrap(self.function))
        try:
            workspace.pipelines.annotate(
                run.id,
                run.fence,
                code=snapshot_code(files_of(code), workspace.blobs, data=data_of(code)),
                git=git_of(Path(module).parent if module else Path.cwd()),
                environment=environment_of(code.distributions),
            )
        except EverloopError:
            # The run's own commits meet the same trouble and report it; this is only its record.
            return

    def __repr__(self) -> str:
        return f"<pipeline {self.name}>"


def _told(pipeline_: Pipeline[Any, Any], execution: Execution, error: Exception) -> EverloopError:
    if isinstance(error, EverloopError):
        return error
    step_name = execution.step_that_raised(error)
    where = f"step {step_name}" if step_name else f"pipeline {pipeline_.name}"
    hint = f"the run is kept; after the correction go on with run(resume={execution.run.id!r})"
    return UserCodeError.caught(where, error, hint=hint)


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
