"""A worker process: executes calls of steps for one driver, and ends when the driver does.

It is started with a connection as an inherited descriptor. Results are made durable here, so that
large ones do not travel; only their stored form goes back, and the driver commits it. What comes
over the connection was written by the process that started this one, on the same machine: that is
why it may be a pickle.
"""

from __future__ import annotations

import functools
import os
import pickle
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any, NamedTuple

from everloop.core.context import acting, open_elsewhere
from everloop.core.pipeline import StoredValue
from everloop.core.process import watch_lifeline
from everloop.core.project import module_name
from everloop.core.reads import Read, fixing, noting
from everloop.core.run import Metric, Run
from everloop.core.secret import is_shown, masked
from everloop.errors import EverloopError, InvalidInput, described
from everloop.pipelines.alike import Checks, refuse_unlike
from everloop.pipelines.definition import full_name
from everloop.pipelines.kept import KeptModule, import_as_kept
from everloop.pipelines.shipping import LazyBlobs, StepReference, call_from_bytes
from everloop.pipelines.signature import Signature
from everloop.pipelines.values import store
from everloop.tracking.current import logging_to

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["Outcome", "Raised", "Setup", "StepLog", "Task", "execute", "main", "setup_here"]


class Setup(NamedTuple):
    """What a worker is told first.

    Attributes:
        folder: Where it works.
        main: Name of the driver's main module.
        location: Of the workspace.
        actor: Whom events name.
        environment: Variables that are set for it, or unset where None.
    """

    folder: str
    main: str
    location: str
    actor: str
    environment: tuple[tuple[str, str | None], ...] = ()
    modules: dict[str, KeptModule] | None = None


def setup_here(location: str, actor: str, modules: dict[str, KeptModule] | None = None) -> Setup:
    """What workers of this process are told: its folder and main module are theirs."""
    return Setup(os.getcwd(), module_name("__main__"), location, actor, modules=modules)


class Task(NamedTuple):
    """Calls of one step, to be executed in turn.

    Attributes:
        step: Where the function is.
        calls: The arguments of each call, as :func:`shipping.call_to_bytes` wrote them.
        run: The run that they belong to.
        now: The instant of the driver's manual clock; None if it goes by the machine's.
        memory: Bytes that the process may use for its data; 0 is no limit.
        fixed: In the repetition of a run, its id and what it was answered.
        checks: What must be the same here as where the driver runs, if that is elsewhere.
        folder: Where relative paths of the calls lead to; where the worker began if empty.
        environment: Variables that the key names, as the driver has them; None is unset.
        constants: Those that the key names: place and content; empty if that is elsewhere.
    """

    step: StepReference
    calls: list[bytes]
    run: Run
    now: datetime | None = None
    memory: int = 0
    fixed: tuple[str, dict[tuple[str, str], list[str]]] | None = None
    checks: Checks | None = None
    folder: str = ""
    environment: tuple[tuple[str, str | None], ...] = ()
    constants: tuple[tuple[str, str], ...] = ()


class Raised(NamedTuple):
    """An exception on its way home.

    Attributes:
        error: The pickled exception; empty if it cannot be pickled.
        kind: Name of its class.
        message: Its text.
        trace: The traceback, as lines of text.
    """

    error: bytes
    kind: str
    message: str
    trace: str


class Outcome(NamedTuple):
    """What became of one call.

    Attributes:
        stored: The result, durable; None if it raised or has no stored form.
        value: The pickled result if it has no stored form.
        refused: Why it has none: the paths inside the result.
        tables: Tables in the result: path, sources and pending changes.
        logged: Metric points that the step logged.
        reads: What the step read from the workspace by a moving name.
        raised: The exception, if it raised.
        committed: 1 if the worker committed it itself, 2 if another one did.
    """

    began: datetime
    ended: datetime
    stored: StoredValue | None = None
    value: bytes = b""
    refused: tuple[tuple[str, str], ...] = ()
    tables: tuple[tuple[str, Any, Any], ...] = ()
    logged: tuple[Metric, ...] = ()
    reads: tuple[Read, ...] = ()
    raised: Raised | None = None
    committed: int = 0


class StepLog:
    """Takes the metrics that one call of a step logs.

    Args:
        run: The run.
        forward: Is given each point as well.
    """

    def __init__(self, run: Run, forward: Callable[[Metric], None] | None = None) -> None:
        self.run = run
        self.points: list[Metric] = []
        self._forward = forward

    def log(self, metrics: Mapping[str, Any], /, *, step: int = 0) -> None:
        """Keep points for the end of the step."""
        at_ms = time.time_ns() // 1_000_000
        for key, value in metrics.items():
            point = Metric(key=key, value=value, step=step, at_ms=at_ms)
            self.points.append(point)
            if self._forward is not None:
                self._forward(point)


def execute(function: Callable[..., Any], task: Task, arguments: bytes) -> Outcome:
    """Execute one call; what the step raises is part of the outcome."""
    began, log = datetime.now(UTC), StepLog(task.run)
    token = logging_to.set(log)
    try:
        _return_to(task)  # a step before it may have gone elsewhere
        with (
            _memory_limit(task.memory),
            fixing(*task.fixed) if task.fixed else nullcontext(),
            noting(task.run.id) as reads,
        ):
            args, kwargs = call_from_bytes(arguments)
            value = function(*args, **kwargs)
            _signature(function).check_result(value)
            return _stored(value, began, log)._replace(reads=tuple(reads))
    except BaseException as error:  # noqa: BLE001 - the user's: whatever it is, the driver raises it
        raised = _raised(error)
        return Outcome(began, datetime.now(UTC), logged=tuple(log.points), raised=raised)
    finally:
        logging_to.reset(token)


@functools.lru_cache(maxsize=64)
def _signature(function: Callable[..., Any]) -> Signature:
    return Signature(function, "step", full_name(function))


def _stored(value: Any, began: datetime, log: StepLog) -> Outcome:
    try:
        stored, encoder = store(value, LazyBlobs(), "it")
    except InvalidInput as error:
        faults = tuple((fault.path, fault.message) for fault in error.faults)
        pickled = pickle_or_nothing(value)
        return Outcome(
            began, datetime.now(UTC), value=pickled, refused=faults, logged=tuple(log.points)
        )
    tables = tuple((path, table.sources, table.changes) for path, table in encoder.tables)
    return Outcome(began, datetime.now(UTC), stored=stored, tables=tables, logged=tuple(log.points))


def _raised(error: BaseException) -> Raised:
    frames = traceback.extract_tb(error.__traceback__)
    inside = [f for f in frames if "/everloop/pipelines/" not in f.filename]
    if not inside and not isinstance(error, EverloopError):
        inside = list(frames)
    lines = traceback.format_list(inside)
    trace = "".join(["Traceback (most recent call last):\n", *lines]) if lines else ""
    kind, told = type(error).__name__, described(error)
    try:
        shown = f"{error}{error!r}{trace}"
    except Exception:  # noqa: BLE001 - the user's class: it would raise where it is read, too
        pickled = b""
    else:
        # With a secret in it the error itself stays here: who reads it knows not what to mask.
        pickled = b"" if is_shown(shown) else pickle_or_nothing(error)
    text = told.removeprefix(kind).removeprefix(": ")
    return Raised(pickled, kind, masked(text), masked(trace.rstrip()))


def pickle_or_nothing(value: Any) -> bytes:
    """The pickle of `value`; empty if it has none or cannot be read back."""
    import cloudpickle

    try:
        data: bytes = cloudpickle.dumps(value)
        pickle.loads(data)
    except Exception:  # noqa: BLE001 - pickling runs methods of the user's classes
        return b""
    return data


@contextmanager
def _memory_limit(size: int) -> Iterator[None]:
    if not size:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


class _DriverClock:
    """The machine's clock, or where the driver's manual clock stood when it sent the task."""

    def __init__(self) -> None:
        self.at: datetime | None = None

    def now(self) -> datetime:
        return self.at or datetime.now(UTC)


def _set_variables(environment: Iterable[tuple[str, str | None]]) -> None:
    for name, value in environment:
        if value is None:
            os.environ.pop(name, None)
        elif os.environ.get(name) != value:
            os.environ[name] = value


def _prepare(setup: Setup, clock: _DriverClock) -> None:
    _set_variables(setup.environment)
    os.chdir(setup.folder)
    import_as_kept(setup.modules or {})
    # Classes of the driver's main script must get the same names here and there.
    sys.modules["__main__"].__spec__ = ModuleSpec(setup.main, None)
    open_elsewhere(setup.location, actor=setup.actor, clock=clock)


def main() -> None:
    """Serve the driver until it closes the connection."""
    from multiprocessing.connection import Connection  # the driver does without

    watch_lifeline()
    connection = Connection(int(sys.argv[1]))
    setup: Setup = pickle.loads(connection.recv_bytes())
    clock = _DriverClock()
    _prepare(setup, clock)
    with acting(setup.actor):
        while True:
            try:
                task: Task = pickle.loads(connection.recv_bytes())
            except EOFError:
                return
            clock.at = task.now
            _serve(connection, task)


def _serve(connection: Connection, task: Task) -> None:
    try:
        _return_to(task)
        function = task.step.resolve()
        if task.checks is not None:
            refuse_unlike(function, task.step.name or "of the main script", task.checks)
        _have_constants(connection, task)
    except BaseException as error:  # noqa: BLE001 - importing the user's module runs it
        now = datetime.now(UTC)
        connection.send_bytes(b"")
        for _ in task.calls:
            connection.send_bytes(pickle.dumps(Outcome(now, now, raised=_raised(error))))
        return
    connection.send_bytes(b"")  # ready: from here on it is the step's own time
    for arguments in task.calls:
        connection.send_bytes(pickle.dumps(execute(function, task, arguments)))


def _return_to(task: Task) -> None:
    """Be where the driver was when it made the keys, and have the variables that are in them."""
    if task.folder:
        os.chdir(task.folder)
    _set_variables(task.environment)


#: The constants that each step was last compared with.
_constants: dict[StepReference, tuple[tuple[str, str], ...]] = {}


def _have_constants(connection: Connection, task: Task) -> None:
    if task.constants == _constants.get(task.step, ()):
        return
    from everloop.pipelines.bindings import differing, set_values

    places = differing(dict(task.constants))
    if places:
        connection.send_bytes(pickle.dumps(places))
        set_values(connection.recv_bytes())
    _constants[task.step] = task.constants
