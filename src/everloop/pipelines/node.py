"""What a worker of a cluster does with a task: executes its calls and commits their results itself.

The step runs in a process of its own, as everywhere: it can be stopped, its crash is told from the
loss of the machine, and it holds the code of one run only. This process opens the workspace,
unpacks the code, keeps those processes and commits, with the fence of the run.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import pickle
import platform
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from everloop.core.context import Place, open_at
from everloop.core.pipeline import StepKey
from everloop.core.run import Run, StepRun
from everloop.errors import BackendError, Conflict, EverloopError, NotFound, StateError
from everloop.pipelines.ends import memo_of, record_changes
from everloop.pipelines.pool import Pool
from everloop.pipelines.snapshot import unpacked
from everloop.pipelines.worker import Outcome, Setup, Task, pickle_or_nothing

__all__ = ["Answer", "Order", "execute", "read_answer", "to_payload"]

#: Results wait so long for others to be committed with them, seconds.
_COMMIT_S = 0.2
#: Processes for steps that are kept beside the one in use, for another run or other resources.
_KEPT_POOLS = 2
#: A run is asked for again after so long, seconds.
_SEEN_S = 1.0


class Order(NamedTuple):
    """Calls of one step for a worker.

    Attributes:
        place: Where the workspace is.
        code: Digest of the code snapshot; empty if the step needs no file of the project.
        main: Name of the driver's main module.
        environment: Variables that the step depends on, as the driver has them; None is unset.
        task: What is to be executed.
        timeout_s: Seconds that one call may take.
        keys: The key of each call; empty where the driver commits.
        numbers: The number of each call's row.
    """

    place: Place
    code: str
    main: str
    environment: tuple[tuple[str, str | None], ...]
    task: Task
    timeout_s: float | None
    keys: list[StepKey]
    numbers: list[int]


class Answer(NamedTuple):
    """What came of an order: an outcome for each call, or why nothing could be executed."""

    outcomes: list[Outcome]
    error: bytes = b""


def to_payload(order: Order) -> bytes:
    """An order as bytes; the versions come first, so that any Everloop can read them."""
    return pickle.dumps((_version(), _python(), pickle.dumps(order)))


def read_answer(data: bytes) -> list[Outcome]:
    """The outcomes in an answer.

    Raises:
        EverloopError: Why nothing could be executed, or not be committed.
    """
    answer: Answer = pickle.loads(data)
    if answer.error:
        raise pickle.loads(answer.error)
    return answer.outcomes


def execute(payload: bytes, node: str) -> bytes:
    """Execute an order.

    Args:
        payload: As :func:`to_payload` wrote it, by the driver. That one may execute anything here
            anyway, which is why it may be a pickle.
        node: The name of this machine, for messages.
    """
    try:
        version, python, body = pickle.loads(payload)
        _check_versions(version, python, node)
        order: Order = pickle.loads(body)
        return pickle.dumps(Answer(_executed(order, node)))
    except EverloopError as error:
        data = pickle_or_nothing(error) or pickle.dumps(BackendError(str(error)))
        return pickle.dumps(Answer([], data))


@functools.cache
def _version() -> str:
    return importlib.metadata.version("everloop")


def _python() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def _check_versions(version: str, python: str, node: str) -> None:
    differ = [
        f"{name} {here}, and the run was started with {there}"
        for name, here, there in (("Everloop", _version(), version), ("Python", _python(), python))
        if here != there
    ]
    if differ:
        raise StateError(
            f"{node} has {'; '.join(differ)}",
            hint="install the same on every node and where runs are started",
        )


def _executed(order: Order, node: str) -> list[Outcome]:
    workspace = _workspace(order, node)
    folder = _code(order, workspace, node)
    task = order.task._replace(folder=str(folder))
    if task.checks is not None:
        task = task._replace(checks=msgspec.structs.replace(task.checks, node=node))
    outcomes: list[Outcome] = []
    batch = _Batch(workspace, order)
    for outcome in _pool(order, folder).run(task, order.timeout_s):
        batch.add(len(outcomes), outcome)
        outcomes.append(outcome)
    batch.commit()
    return [
        outcome._replace(committed=batch.state[number]) for number, outcome in enumerate(outcomes)
    ]


# The workspace

_workspaces: dict[Place, Any] = {}
#: When a run with its fence was last found to be the one that goes on.
_seen: dict[tuple[Place, str, int], float] = {}


def _workspace(order: Order, node: str) -> Any:
    """The workspace of the driver, kept open; it has the run, so it is the same."""
    place, run = order.place, order.task.run
    opened = _workspaces.get(place)
    if opened is None:
        catalog = _file_of(place.location)
        if catalog is not None and not catalog.is_file():
            raise _not_ours(node, place, f"there is no {catalog}")
        with _environment({"EVERLOOP_OBJECTS": place.objects, "EVERLOOP_TOKEN": _token(place)}):
            opened = open_at(place.location, actor=place.actor, clock=None)
            _ = opened.tracking, opened.pipelines, opened.blobs, opened.data
        for key in list(_workspaces):
            _workspaces.pop(key).close()
        _workspaces[place] = opened
        _seen.clear()
    # What is executed in between by mistake is refused when it is committed.
    if time.monotonic() - _seen.get((place, run.id, run.fence), -_SEEN_S) < _SEEN_S:
        return opened
    try:
        found: Run = opened.tracking.run(run.id)
    except NotFound:
        raise _not_ours(node, place, f"it has no run {run.id}") from None
    if found.fence != run.fence or found.state not in ("running", "lost"):
        raise StateError(
            f"run {run.id} is {found.state} with fence {found.fence}, and this task has the fence "
            f"{run.fence}: it was not executed",
            hint="another process carries on with the run, or it ended",
        )
    _seen[place, run.id, run.fence] = time.monotonic()
    return opened


def _file_of(location: str) -> Path | None:
    if location.startswith("sqlite:///"):
        return Path(location.removeprefix("sqlite:///"))
    return None if "://" in location else Path(location) / "catalog.sqlite"


def _token(place: Place) -> str:
    # What the node was given itself counts first.
    return os.environ.get("EVERLOOP_TOKEN", "") or place.token


def _not_ours(node: str, place: Place, why: str) -> BackendError:
    shown = place.location.rpartition("@")[2]
    return BackendError(
        f"the workspace {shown} is another one on {node}, or none: {why}",
        hint="open it in a way that every node can: http://host:port of `everloop server`, "
        "postgresql://..., or a folder that all of them share",
    )


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if value})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# The code


def _code(order: Order, workspace: Any, node: str) -> Path:
    """The folder with the snapshot, unpacked once a machine."""
    try:
        return unpacked(order.code, f"run {order.task.run.id}", workspace.blobs)
    except NotFound as error:
        raise _not_ours(node, order.place, "its objects are not there") from error


# The processes of steps

_pools: OrderedDict[tuple[Any, ...], Pool] = OrderedDict()
_pools_lock = threading.Lock()


def _pool(order: Order, folder: Path) -> Pool:
    """The process that executes steps of this code, with this environment."""
    # Ray tells a task its graphics cards by the environment, and uses a worker for many tasks.
    surroundings = tuple(sorted(os.environ.items()))
    key = (folder, order.place, order.main, order.environment, surroundings)
    with _pools_lock:
        found = _pools.pop(key, None)
        while len(_pools) >= _KEPT_POOLS:
            _pools.popitem(last=False)[1].close()
        if found is None:
            place = order.place
            environment = (
                ("EVERLOOP_OBJECTS", place.objects or None),
                ("EVERLOOP_TOKEN", _token(place) or None),
                *order.environment,
            )
            setup = Setup(str(folder), order.main, place.location, place.actor, environment)
            found = Pool(1, setup, path=[str(folder), *sys.path])
        _pools[key] = found
    return found


# Committing


class _Batch:
    """Results that are committed together.

    Attributes:
        state: By number of the call: 0 is left to the driver, 1 committed, 2 committed by another.
    """

    def __init__(self, workspace: Any, order: Order) -> None:
        self._workspace = workspace
        self._order = order
        self._waiting: list[tuple[int, Outcome]] = []
        self._since = time.monotonic()
        self.state: dict[int, int] = {}

    def add(self, number: int, outcome: Outcome) -> None:
        """Take one; commits when it is time."""
        self.state[number] = 0
        if outcome.stored is not None:  # an error may be tried again: the driver knows
            self._waiting.append((number, outcome))
        if time.monotonic() - self._since > _COMMIT_S:
            self.commit()

    def commit(self) -> None:
        """Make those durable that wait; all of them in one transaction."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._write(waiting)
        self._since = time.monotonic()

    def _write(self, waiting: list[tuple[int, Outcome]]) -> None:
        order, run = self._order, self._order.task.run
        rows, memos = [], []
        for number, outcome in waiting:
            key = order.keys[number]
            assert outcome.stored is not None
            for _, _, changes in outcome.tables:
                record_changes(self._workspace.data, f"run:{run.id}/{key.step}", changes)
            memos.append(
                memo_of(
                    key,
                    outcome.stored,
                    run.id,
                    tables=outcome.tables,
                    reads=outcome.reads,
                    logged=outcome.logged,
                )
            )
            rows.append(_row(run, order.numbers[number], key, outcome))
        try:
            self._workspace.pipelines.commit_steps(run.id, run.fence, rows, memos)
        except Conflict:
            # A worker that was taken for lost came first with some of them.
            if len(waiting) > 1:
                for one in waiting:
                    self._write([one])
                return
            self.state[waiting[0][0]] = 2
            return
        self.state.update({number: 1 for number, _ in waiting})


def _row(run: Run, number: int, key: StepKey, outcome: Outcome) -> StepRun:
    assert outcome.stored is not None
    return StepRun(
        run_id=run.id,
        seq=number,
        step=key.step,
        key=key.digest,
        outcome="ran",
        output=outcome.stored.digest,
        error="",
        started_at=outcome.began,
        ended_at=outcome.ended,
    )
