"""The engine: one execution of a pipeline, step call by step call.

A step call computes its key. If a result is stored under it, that is the value; if not, the
function runs, its result is made durable, and one transaction commits step and result. Rows of
cached steps ride with the next commit: should the process die, the resumed run finds them again.

Calls may run side by side (``submit``, ``map``): threads of this process hand them to worker
processes and commit what comes back. Two runs that want the same result compute it once.
"""

from __future__ import annotations

import logging
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from everloop.catalog.claims import Claims, OwnClaims
from everloop.core.pipeline import Memo, StoredValue
from everloop.core.process import usable_cores
from everloop.core.reads import Read, fixed_answers, note, noting
from everloop.core.run import Metric, Run, RunInput, StepRun
from everloop.core.secret import masked
from everloop.core.time import ManualClock
from everloop.errors import (
    BackendError,
    EverloopError,
    InvalidInput,
    RunStopped,
    StateError,
    described,
)
from everloop.pipelines.calls import Call, prepare
from everloop.pipelines.definition import Step
from everloop.pipelines.ends import memo_of, record_changes
from everloop.pipelines.handles import Handle, resolved
from everloop.pipelines.kept import KeptModule
from everloop.pipelines.private import is_fixed, private
from everloop.pipelines.reads import moved_on
from everloop.pipelines.shipping import StepReference, call_to_bytes, reference_to
from everloop.pipelines.values import Encoder, Unreadable, load, store
from everloop.pipelines.watcher import Watcher
from everloop.pipelines.worker import Outcome, Raised, StepLog, Task, setup_here
from everloop.ports.executor import Executor
from everloop.tracking.current import logging_to

if TYPE_CHECKING:
    from everloop.pipelines.cluster import Cluster
    from everloop.pipelines.pool import Pool

__all__ = [
    "LEASE_S",
    "End",
    "Execution",
    "executing",
]

_logger = logging.getLogger(__name__)

LEASE_S = 45.0
RENEW_S = 15.0
#: Metric points held back at most, and for how long, seconds. A step that dies is executed again
#: and logs them again, so nothing that is acknowledged rests on them.
_HELD_POINTS, _HELD_S = 500, 1.0
#: What a group of calls should take, seconds: here, and on a cluster, where the way is longer and
#: a worker commits while it executes.
_GROUP_S, _GROUP_AWAY_S = 0.05, 0.5
#: Between two looks at a result that another run computes, seconds.
_LOOK_S, _LOOK_MOST_S = 0.01, 0.2

executing: ContextVar[Execution | None] = ContextVar("everloop_executing", default=None)


class End(NamedTuple):
    """How a call of a step ended.

    Attributes:
        stored: The result, durable; None if it raised or has no stored form.
        value: The result itself, where it did not come from another process.
        error: What it raised.
        tables: Tables in the result: path, sources and pending changes.
        logged: Metric points that it logged.
        reads: What it read from the workspace by a moving name.
        is_here: Whether `value` is the result.
        is_committed: Whether the worker committed it.
    """

    call: Call
    began: datetime
    ended: datetime
    stored: StoredValue | None = None
    value: Any = None
    error: BaseException | None = None
    tables: tuple[tuple[str, Any, Any], ...] = ()
    logged: tuple[Metric, ...] = ()
    reads: tuple[Read, ...] = ()
    is_here: bool = False
    is_committed: bool = False


class Execution:
    """One owner's execution of a run.

    Args:
        workspace: Has ``pipelines``, ``blobs``, ``data``, ``tracking``, ``catalog``, ``location``.
        run: As started.
        force: Run every step, whatever is stored.
        workers: Worker processes at most; as many as there are cores if None. On a cluster calls at
            once; as many as it has room for if None.
        watcher: Sees each metric that is logged, and may end the run.
    """

    def __init__(
        self,
        workspace: Any,
        run: Run,
        *,
        force: bool = False,
        workers: int | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self.run = run
        self.force = force
        self._workspace = workspace
        self._service = workspace.pipelines
        self._blobs = workspace.blobs
        # Through a server others cannot be asked, but equal calls of this run still are one.
        self._claims: Claims = (
            OwnClaims() if workspace.catalog is None else workspace.catalog.claims
        )
        self._most = workers
        self._watcher = watcher
        self._hopeless = ""
        self._cluster: Cluster | None = None
        self._lock = threading.RLock()
        self._seq = 0
        self._cached: list[StepRun] = []
        self._recent: dict[str, StoredValue] = {}
        self._calls: dict[str, int] = {}
        self._inputs: dict[tuple[Any, ...], RunInput] = {}
        self._points: list[Metric] = []
        self._flushed_at = time.monotonic()
        self._raised: list[tuple[str, BaseException]] = []
        self._references: dict[tuple[Step, str], StepReference] = {}
        self._pool: Pool | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._handles: list[Handle[Any]] = []
        #: The modules of the project as they were when the run began, once they are known.
        self.modules: Future[dict[str, KeptModule]] = Future()
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="everloop-lease", daemon=True)

    def open(self) -> None:
        """Read what the pipeline's last runs stored, and begin to renew the lease."""
        self._recent = self._service.recent(self.run.id)
        if self.run.fence > 1:  # resumed
            known = self._service.steps(self.run.id)
            self._seq = max((step.seq for step in known), default=-1) + 1
        self._renewer.start()

    def go_to(self, executor: Executor, root: Callable[..., Any]) -> None:
        """Have the steps executed on a cluster.

        Args:
            executor: The cluster.
            root: The pipeline's function, whose code goes there.

        Raises:
            TooLarge: If that is too much code.
        """
        from everloop.pipelines.cluster import Cluster

        self._cluster = Cluster(self._workspace, self.run, executor, root, self._next_number)

    def stop_workers(self) -> None:
        """End the worker processes with what they do."""
        self._stop.set()
        with self._lock:
            pool = self._pool
        if pool is not None:
            pool.close(kill=True)
        if self._cluster is not None:
            self._cluster.close()

    def close(self) -> None:
        """Stop renewing the lease, and the worker processes with what they still do."""
        self.stop_workers()
        with self._lock:
            threads = self._threads
        if threads is not None:
            threads.shutdown(wait=True, cancel_futures=True)

    @property
    def is_closed(self) -> bool:
        """Whether the run was ended, well or not."""
        return self._stop.is_set()

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            try:
                self._service.renew(self.run.id, self.run.fence, lease_s=LEASE_S)
            except EverloopError:
                # Taken over, or the catalog is away: the next commit is refused or says so.
                continue

    def step_that_raised(self, error: BaseException) -> str:
        """Name of the step that raised this very error; empty if none did."""
        with self._lock:
            return next((name for name, raised in self._raised if raised is error), "")

    # One call

    def call(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Execute one call of a step, or take its stored result."""
        given = {name: resolved(value) for name, value in kwargs.items()} if kwargs else kwargs
        # Who has no processor to ask for is quicker where the pipeline runs.
        away = self._cluster is not None and (step.cpus > 0 or step.gpus > 0)
        return self._call(step, resolved(args), given, self._next(step), away or step.isolate)

    def _call(
        self,
        step: Step,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        nth: int,
        in_worker: bool,
    ) -> Any:
        self._go_on()
        call = self.prepare(step, args, kwargs, nth)
        # Claimed first and looked up then: in between nobody can have stored it unseen.
        with self._claimed(call):
            hits = self.look_up([call])
            if not hits:
                return self._execute(call, in_worker)
        return self.use(call, *hits[call.digest])

    def _next(self, step: Step) -> int:
        with self._lock:
            number = self._calls[step.name] = self._calls.get(step.name, 0) + 1
        return number

    def prepare(self, step: Step, args: Any, kwargs: Any, nth: int = 0) -> Call:
        """A call with its key; the tables among its arguments are inputs of the run."""
        call = prepare(step, args, kwargs, self.run.id, nth or self._next(step))
        for path, table in call.tables:
            self._note_sources(table.sources, path.partition("[")[0])
        return call

    def _note_sources(self, sources: Iterable[Any], role: str) -> None:
        """Note dataset versions as inputs; what came in by an argument keeps that role."""
        with self._lock:
            for dataset, version, digest in sources:
                item = RunInput(dataset=dataset, version=version, digest=digest, role=role)
                self._inputs.setdefault((dataset, version, digest), item)

    # What is stored

    def look_up(self, calls: list[Call]) -> dict[str, tuple[Any, StoredValue]]:
        """The stored results of those calls that have one, by key."""
        wanted = [call.digest for call in calls if not (self.force and call.is_shared)]
        known = {digest: self._recent[digest] for digest in wanted if digest in self._recent}
        missing = [digest for digest in wanted if digest not in known]
        if len(missing) == 1:
            memo = self._service.memo(missing[0])
            known |= {missing[0]: memo.value} if memo else {}
        elif missing:
            known |= self._service.results(missing)
        found = {}
        for digest, stored in known.items():
            moved = moved_on(self._workspace, stored.meta.get("reads", ()))
            if moved:
                self._recent.pop(digest, None)
                self._service.retire(digest, moved)
                continue
            try:
                found[digest] = load(stored, self._blobs), stored
            except Unreadable as error:
                self._recent.pop(digest, None)
                self._service.forget(digest, str(error), damaged=error.damaged)
        return found

    def use(self, call: Call, value: Any, stored: StoredValue) -> Any:
        """Note that a call was answered from the store; its value."""
        name = call.step.name.rpartition(".")[2]
        self._note_sources(stored.meta.get("sources", ()), name)
        for read in stored.meta.get("reads", ()):
            note(*read)
        # What the step logged when it ran belongs to this run too.
        at_ms = time.time_ns() // 1_000_000
        for key, number, at_step in stored.meta.get("logged") or ():
            self.hold(Metric(key=key, value=float(number), step=at_step, at_ms=at_ms))
        with self._lock:
            self._cached.append(self._row(call, "cached", output=stored.digest))
        return value

    @contextmanager
    def _claimed(self, call: Call) -> Iterator[None]:
        """Hold the claim on a result that is not known to be stored; waits for who computes it."""
        if self.claims is None or not call.is_shared or call.digest in self._recent:
            yield
            return
        pause_s = _LOOK_S
        while not self.claims.take([call.digest]):
            self._pause(pause_s)
            pause_s = min(2 * pause_s, _LOOK_MOST_S)
        try:
            yield
        finally:
            self.claims.release([call.digest])

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise StateError(f"run {self.run.id} ended meanwhile")

    @property
    def claims(self) -> Claims | None:
        """Who computes what; None where every call is to be executed."""
        return None if self.force else self._claims

    # Executing

    def _execute(self, call: Call, in_worker: bool) -> Any:
        step = call.step
        for attempt in range(step.retries + 1):
            end = self._once_in_worker(call) if in_worker else self._once_here(call)
            if end.error is None or isinstance(end.error, RunStopped):
                break
            if attempt < step.retries:
                self.tell_retry(end, attempt)
                self._pause(backoff_s(step, attempt))
        self.commit([end])
        if end.error is not None:
            raise end.error
        return self.value_of(end)

    def _once_here(self, call: Call) -> End:
        own = {name: private(value) for name, value in call.bound.items()}
        args, kwargs = call.step.signature.unbind(own)
        log = StepLog(self.run, self._log_here)
        began = datetime.now(UTC)
        # Steps called inside a step are plain functions.
        token, log_token = executing.set(None), logging_to.set(log)
        try:
            with noting(self.run.id) as reads:
                value = call.step.function(*args, **kwargs)
            call.step.signature.check_result(value)
        except Exception as error:  # noqa: BLE001 - the user's: raised again after the last try
            return End(call, began, datetime.now(UTC), error=error, logged=tuple(log.points))
        except BaseException as error:  # Ctrl-C, SystemExit: what ended the step
            self._note_raised(call, error)
            raise
        finally:
            executing.reset(token)
            logging_to.reset(log_token)
        end = End(call, began, datetime.now(UTC), value=value, is_here=True)
        end = end._replace(logged=tuple(log.points), reads=tuple(reads))
        try:
            stored, encoder = store(value, self._blobs, f"step {call.step.name}")
        except InvalidInput as error:
            # Not cached and not to be stored: allowed, and a resume executes it again.
            return end if not call.step.cache else end._replace(error=error)
        except Exception as error:  # noqa: BLE001 - no room for it, or a method of the value's own class
            return end._replace(error=error)
        tables = tuple((path, table.sources, table.changes) for path, table in encoder.tables)
        if not is_fixed(value) and stored.kind != "model":
            # Hand on what later runs will get: tables and arrays mapped and read-only, without the
            # changes that are in the ledger then, and lists that the step does not hold as well.
            end = end._replace(value=None, is_here=False)
        return end._replace(stored=stored, tables=tables)

    def _once_in_worker(self, call: Call) -> End:
        [end] = self.in_worker([call])
        return end

    def in_worker(self, calls: list[Call]) -> Iterator[End]:
        """Execute calls of one step in a worker process, each once; their ends in order.

        Raises:
            InvalidInput: If the step or an argument cannot be sent there.
        """
        step = calls[0].step
        clock = getattr(self._workspace, "clock", None)
        task = Task(
            self._reference(calls[0]),
            [self._sent(call) for call in calls],
            self.run,
            clock.now() if isinstance(clock, ManualClock) else None,
            step.memory,
            fixed_answers(),
        )
        if self._cluster is None:
            # What may have changed here since the workers began; a group is made at one time.
            task = task._replace(
                folder=calls[0].folder,
                environment=calls[0].environment,
                constants=tuple(c for p in calls[0].prints for c in p.constants.items()),
            )
        if self._cluster is None:
            outcomes = self._open_pool().run(task, step.timeout_s)
        else:
            outcomes = self._cluster.run(task, calls)
        for call, outcome in zip(calls, outcomes, strict=True):
            for point in outcome.logged:
                self.hold(point)
            for read in outcome.reads:
                note(*read)
            yield _end_of(call, outcome)

    def _reference(self, call: Call) -> StepReference:
        # A function that travels takes along what its globals hold, as the key has it.
        key = call.step, call.prints[0].digest
        with self._lock:
            if key not in self._references:
                self._references[key] = reference_to(call.step)
            return self._references[key]

    def _sent(self, call: Call) -> bytes:
        args, kwargs = call.step.signature.unbind(call.bound)
        return call_to_bytes(args, kwargs, self._blobs, f"step {call.step.name}")

    def _open_pool(self) -> Pool:
        from everloop.pipelines.pool import Pool

        modules = self.modules.result()
        with self._lock:
            if self._pool is None:
                setup = setup_here(self._workspace.location, self._workspace.actor, modules)
                self._pool = Pool(self._most or usable_cores(), setup)
            return self._pool

    def side_by_side(self, step: Step) -> int:
        """How many calls of a step are executed at once."""
        if self._most is not None:
            return self._most
        return usable_cores() if self._cluster is None else self._cluster.capacity(step)

    def in_hand(self, workers: int) -> int:
        """How many groups of a ``map`` are under way where so many are executed at once."""
        # Here one is got ready while the others are executed; on a cluster the way is longer.
        return workers + 1 if self._cluster is None else 2 * workers

    @property
    def group_s(self) -> float:
        """What a group of calls of a ``map`` should take, seconds."""
        return _GROUP_S if self._cluster is None else _GROUP_AWAY_S

    def tell_retry(self, end: End, attempt: int) -> None:
        """Log that a call failed and is tried again."""
        _logger.warning(
            "step %s failed in try %d of %d: %s",
            *(end.call.step.name, attempt + 1, end.call.step.retries + 1),
            described(end.error),  # type: ignore[arg-type]
            exc_info=end.error,
        )

    def value_of(self, end: End) -> Any:
        """The result of a call that ended well."""
        if end.is_here or end.stored is None:
            return end.value
        try:
            return load(end.stored, self._blobs)
        except Unreadable as error:
            self._service.forget(end.call.digest, str(error), damaged=error.damaged)
            raise BackendError(
                f"the result of step {end.call.step.name} was stored and cannot be read: {error}",
                hint="go on with --resume: it is computed again",
            ) from error

    # Committing

    def commit(self, ends: list[End]) -> None:
        """Make the ends of calls durable, in one transaction."""
        results = []
        for end in ends:
            if end.error is not None:
                self._note_raised(end.call, end.error)
            elif end.stored is not None:
                self._note_tables(end)
                if not end.is_committed:
                    results.append(self._memo(end, end.stored))
        self._flush_points()
        ours = [end for end in ends if not end.is_committed]
        if not ours:
            return  # rows of cached steps ride with a later one
        with self._lock:
            rows, self._cached = self._cached, []
            rows += [self._end_row(end) for end in ours]
        self._service.commit_steps(self.run.id, self.run.fence, rows, results)

    def _note_raised(self, call: Call, error: BaseException) -> None:
        with self._lock:
            self._raised.append((call.step.name, error))

    def _note_tables(self, end: End) -> None:
        for _, sources, _ in end.tables:
            self._note_sources(sources, end.call.step.name.rpartition(".")[2])

    def _memo(self, end: End, stored: StoredValue) -> Memo:
        for _, _, changes in end.tables:
            self._record_changes(f"run:{self.run.id}/{end.call.step.name}", changes)
        key = end.call.key()
        more: Any = {"tables": end.tables, "reads": end.reads, "logged": end.logged}
        return memo_of(key, stored, self.run.id, **more)

    def _record_changes(self, scope: str, changes: Iterable[Any]) -> None:
        record_changes(self._workspace.data, scope, changes)

    def _end_row(self, end: End) -> StepRun:
        if end.error is None:
            output = end.stored.digest if end.stored else ""
            return self._row(end.call, "ran", output=output, began=end.began, ended=end.ended)
        told = masked(described(end.error))
        return self._row(end.call, "failed", error=told, began=end.began, ended=end.ended)

    def _row(
        self,
        call: Call,
        outcome: Any,
        *,
        output: str = "",
        error: str = "",
        began: datetime | None = None,
        ended: datetime | None = None,
    ) -> StepRun:
        return StepRun(
            run_id=self.run.id,
            seq=self._next_number(),
            step=call.step.name,
            key=call.digest,
            outcome=outcome,
            output=output,
            error=error,
            started_at=began or call.began,
            ended_at=ended or datetime.now(UTC),
        )

    def _next_number(self) -> int:
        with self._lock:
            number, self._seq = self._seq, self._seq + 1
        return number

    # Side by side

    def submit(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Handle[Any]:
        """Begin a call in a worker process; it waits for the handles among its arguments."""
        nth = self._next(step)
        with self._lock:
            if self._threads is None:
                # First come, first served: a call never waits for one that begins after it.
                self._threads = ThreadPoolExecutor(self.side_by_side(step) + 1, "everloop-submit")
            future: Future[Any] = self._threads.submit(
                copy_context().run, self._submitted, step, args, kwargs, nth
            )
        handle = Handle(future)
        self._handles.append(handle)
        return handle

    def _submitted(
        self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any], nth: int
    ) -> Any:
        given = {name: resolved(value) for name, value in kwargs.items()}
        return self._call(step, resolved(args), given, nth, in_worker=True)

    def join(self) -> None:
        """Wait for every call that was submitted.

        Raises:
            Exception: What the first of them raised whose result nobody asked for.
        """
        errors = [error for handle in self._handles if (error := _unread(handle)) is not None]
        if errors:
            raise errors[0]

    # Metrics

    def log(self, metrics: Mapping[str, Any], /, *, step: int = 0) -> None:
        """Log metrics of the pipeline itself."""
        at_ms = time.time_ns() // 1_000_000
        for key, value in metrics.items():
            self._log_here(Metric(key=key, value=value, step=step, at_ms=at_ms))

    def _log_here(self, point: Metric) -> None:
        self.hold(point)
        self._go_on()

    def _go_on(self) -> None:
        """Raise RunStopped if the watcher has given the run up."""
        if self._hopeless:
            raise RunStopped(f"run {self.run.id} was stopped: {self._hopeless}")

    def hold(self, point: Metric) -> None:
        """Hold a metric point back for the next flush."""
        if self._watcher is not None:
            self._hopeless = self._hopeless or self._watcher.see(point)
        with self._lock:
            self._points.append(point)
            late = time.monotonic() - self._flushed_at > _HELD_S
            is_due = late or len(self._points) >= _HELD_POINTS
        if is_due:
            self._flush_points()

    def _flush_points(self) -> None:
        with self._lock:
            self._flushed_at = time.monotonic()
            points, self._points = self._points, []
        if points:
            self._workspace.tracking.log(self.run.id, points)

    # The end

    def finish(self, state: Any, *, error: str = "", result: Any = None) -> None:
        """End the run with what is still held back."""
        self.close()
        self._flush_points()
        if state == "finished":
            for _, table in _tables_in(result):
                self._note_sources(table.sources, "result")
                self._record_changes(f"run:{self.run.id}", table.changes)
        steps, self._cached = self._cached, []
        self._service.finish(
            self.run.id,
            self.run.fence,
            state,
            error=error,
            steps=steps,
            inputs=list(self._inputs.values()),
        )


def backoff_s(step: Step, attempt: int) -> float:
    """Seconds to wait after the failed try number `attempt`, counted from 0."""
    return step.backoff_s * 2.0**attempt


def _end_of(call: Call, outcome: Outcome) -> End:
    end = End(call, outcome.began, outcome.ended, logged=outcome.logged, tables=outcome.tables)
    end = end._replace(reads=outcome.reads, is_committed=outcome.committed == 1)
    if outcome.raised is not None:
        return end._replace(error=_error_of(call, outcome.raised))
    if outcome.stored is not None:
        return end._replace(stored=outcome.stored)
    if not call.step.cache and outcome.value:
        return end._replace(value=pickle.loads(outcome.value), is_here=True)
    return end._replace(
        error=InvalidInput(
            f"the result of step {call.step.name} cannot be stored",
            outcome.refused,
            hint="return tables, arrays, numbers, text or ev.model(...), or keep it in the step",
        )
    )


def _error_of(call: Call, raised: Raised) -> BaseException:
    error: BaseException
    if raised.error:
        error = pickle.loads(raised.error)
    else:
        known: dict[str, Callable[[str], Exception]] = {
            "TimeoutError": TimeoutError,
            "ChildProcessError": ChildProcessError,
        }
        text = (
            f"step {call.step.name}: {raised.message}"
            if raised.kind in known
            else (f"{raised.kind}: {raised.message}")
        )
        error = known.get(raised.kind, RuntimeError)(text)
    if raised.trace:
        error.add_note(f"In the worker process:\n{raised.trace}")
    return error


def _unread(handle: Handle[Any]) -> BaseException | None:
    error = handle.error()
    return None if handle.was_read else error


def _tables_in(value: Any) -> list[tuple[str, Any]]:
    encoder = Encoder()
    is_table = hasattr(value, "sources") and hasattr(value, "changes")
    if is_table or isinstance(value, list | tuple | dict):
        encoder.text(value, "result")
    return encoder.tables
