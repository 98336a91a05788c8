"""``ev.run``: a run that a program opens, logs to and ends."""

from __future__ import annotations

import atexit
import json
import mimetypes
import os
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Mapping, Sequence
from contextvars import Token
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from everloop.core.context import current_workspace
from everloop.core.owner import this_process
from everloop.core.run import PARENT_TAG, Metric, Run
from everloop.core.stop import MOST, SAMPLED, StopIf, StopWatch
from everloop.errors import (
    BackendError,
    EverloopError,
    InvalidInput,
    NotFound,
    RunStopped,
    StateError,
)
from everloop.experiments.describe import describe
from everloop.experiments.record import LoggedRun, artifact_root
from everloop.experiments.system import SystemMetrics
from everloop.experiments.values import Names, point_step, point_value
from everloop.experiments.writer import PointWriter
from everloop.tracking.current import LogTarget, logging_to
from everloop.tracking.leases import EndState

__all__ = ["ActiveRun", "run"]

#: A run whose process died is lost this long after the last renewal, and somebody looks every 15 s:
#: together less than a minute.
LEASE_S, RENEW_S = 40.0, 10.0
#: Longest text of an error that is kept; its end says most.
_MAX_ERROR = 20_000
_INT64 = 1 << 63


def run(
    experiment: str = "Default",
    *,
    name: str = "",
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    seed: int | Mapping[str, int] | None = None,
    resume: str = "",
    stop: Sequence[StopIf] = (),
    system_metrics: bool | float = False,
    workspace: Any = None,
) -> ActiveRun:
    """Open a run; use it as a context manager, or call ``end``.

    It keeps git commit and uncommitted changes, the project's code, versions, machine and command
    line. Within another run it is that run's child. A run whose process died is marked as lost
    within a minute, and ``resume`` goes on with it.

    Args:
        experiment: Name, made if new.
        name: For people; made up if not given.
        params: What it was run with; kept as text.
        tags: Anything else to find it by.
        seed: The random seed, or several by name; kept as parameters ``seed``, ``seed.NAME``.
        resume: Id of a run that was lost, failed or killed; its experiment stays what it was.
        stop: Rules that end it early, see ``ev.stop_if``.
        system_metrics: Also log CPU, memory, disk, network and GPU as ``system/...``, every 10 s
            or every so many seconds.
        workspace: The current one if not given.

    Raises:
        InvalidInput: If a name or value cannot be kept.
        Conflict: If the run to resume is alive.
        StateError: If the run to resume finished, or the experiment is deleted.
    """
    place = workspace if workspace is not None else current_workspace()
    place.reap()
    shown = {key: str(value) for key, value in (params or {}).items()} | _seeds(seed)
    if resume:
        opened = place.tracking.resume_run(resume, owner=this_process(), lease_s=LEASE_S)
        if shown or tags:
            place.tracking.log(resume, None, shown, dict(tags or {}))
    else:
        parent = logging_to.get()
        family = {PARENT_TAG: parent.run.id} if parent is not None else {}
        opened = place.tracking.create_run(
            experiment,
            name=name,
            params=shown,
            tags=family | dict(tags or {}),
            owner=this_process(),
            lease_s=LEASE_S,
        )
    return ActiveRun(place, opened, stop=stop, system_metrics=system_metrics)


def _seeds(seed: int | Mapping[str, int] | None) -> dict[str, str]:
    if seed is None:
        return {}
    if isinstance(seed, Mapping):
        return {f"seed.{name}": str(value) for name, value in seed.items()}
    return {"seed": str(seed)}


class ActiveRun(LoggedRun):
    """A run that this process owns; made by :func:`run`.

    Points that were logged are committed in groups by a thread behind it, some milliseconds later.
    A process that is killed (SIGKILL, power cut) loses what was logged in about the last 10
    milliseconds, or since the catalog went away, and nothing that ``flush`` or ``sync=True``
    acknowledged. An end of the program, also by an error, loses nothing.
    """

    def __init__(
        self,
        workspace: Any,
        record: Run,
        *,
        stop: Sequence[StopIf] = (),
        system_metrics: bool | float = False,
    ) -> None:
        super().__init__(workspace, record)
        self._tracking = workspace.tracking
        self._home = os.getpid()
        self._ended = False
        self._names = Names()
        self._token: Token[LogTarget | None] | None = None
        self._watches = [StopWatch(rule, partial(self._others, rule.metric)) for rule in stop]
        self._writer = PointWriter(self._send, beat=self._renew, beat_s=RENEW_S)
        self._writer.start()
        self._describing = threading.Thread(
            target=describe, args=(workspace, record), name="everloop-describe", daemon=True
        )
        self._describing.start()
        self._system: SystemMetrics | None = None
        if system_metrics:
            interval_s = 10.0 if system_metrics is True else float(system_metrics)
            self._system = SystemMetrics(self.log, interval_s, Path.cwd())
        _open_runs.add(self)

    @property
    def run(self) -> Run:
        """The record; what code that asks for the current run gets."""
        return self.record

    # Metrics

    def log(
        self,
        metrics: Mapping[str, Any] | None = None,
        /,
        *,
        step: int = 0,
        sync: bool = False,
        **named: Any,
    ) -> None:
        """Log metrics; costs the caller some microseconds.

        Args:
            metrics: Name -> value, for names that are no Python names (``"eval/loss"``).
            step: Position on the x axis of charts.
            sync: Return only when they, and all that was logged before, are durable.
            **named: Name = value. NaN and infinities are kept.

        Raises:
            TypeError: If a value is no real number, or the step no whole one; names which.
            InvalidInput: If a name cannot be kept.
            RunStopped: If a rule of ``stop`` gave the run up; the point is kept.
            EverloopError: What kept earlier points from being stored. If the catalog is away these
                stay queued and are tried again; the points of this call are not logged.
        """
        if self._ended:
            raise StateError(f"run {self.id} has ended", hint="go on with ev.run(resume=...)")
        if metrics:
            named = {**metrics, **named}
        if type(step) is not int or not -_INT64 <= step < _INT64:
            step = point_step(step)
        at_ms = time.time_ns() // 1_000_000
        known = self._names.known
        points = []
        for key, value in named.items():
            if key not in known:
                self._names.check(key)
            if type(value) is not float:
                value = point_value(key, value)
            points.append(Metric(key=key, value=value, step=step, at_ms=at_ms))
        if sync:
            self._writer.flush(points)
        else:
            self._writer.add(points)
        for watch in self._watches:
            if watch.rule.metric in named:
                self._judge(watch, point_value(watch.rule.metric, named[watch.rule.metric]), step)

    def flush(self) -> None:
        """All that was logged is durable on return.

        Raises:
            EverloopError: If it could not be stored; if the catalog is away it stays queued.
        """
        self._writer.flush()

    def _send(self, points: Sequence[Metric]) -> None:
        self._tracking.log_points(self.id, list(points), fence=self.record.fence)

    def _renew(self) -> None:
        self._tracking.renew_run(self.id, self.record.fence, lease_s=LEASE_S)

    def _judge(self, watch: StopWatch, value: float, step: int) -> None:
        reason = watch.verdict(value, step)
        if reason:
            raise RunStopped(f"run {self.id} was stopped: {reason}")

    def _others(self, metric: str) -> list[list[Metric]]:
        """The points of finished runs of the same experiment."""
        page = self._tracking.runs(
            [self.record.experiment], filter="status = 'FINISHED'", limit=MOST
        )
        ids = [found.id for found in page.runs if metric in found.metrics]
        if not ids:
            return []
        return list(self._tracking.sampled_history(ids, metric, points=SAMPLED).values())

    # Everything else

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Add parameters, durably; one that is there keeps its value.

        Raises:
            InvalidInput: Naming each that has another value already.
        """
        self._tracking.log(self.id, None, {key: str(value) for key, value in params.items()})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, durably, over what they were."""
        self._tracking.log(self.id, None, None, dict(tags))

    def log_file(self, file: str | os.PathLike[str], path: str = "") -> None:
        """Keep a file, durably, under `path` (its own name if not given).

        Raises:
            NotFound: If there is no such file.
            InvalidInput: If it is a folder, or `path` is not a plain relative one.
        """
        source = Path(file)
        if source.is_dir():
            raise InvalidInput(f"{source} is a folder", [("file", "log each file of it")])
        try:
            with source.open("rb") as stream:
                self._keep(path or source.name, stream)
        except FileNotFoundError as error:
            raise NotFound(f"there is no file {source}") from error

    def log_text(self, text: str, path: str) -> None:
        """Keep a text, durably, as a file in UTF-8."""
        self._keep(path, text.encode())

    def log_dict(self, value: Mapping[str, Any] | Sequence[Any], path: str) -> None:
        """Keep a JSON document, durably.

        Raises:
            InvalidInput: If `path` does not end with ``.json``, or a value is not JSON.
        """
        if mimetypes.guess_type(path)[0] != "application/json":
            raise InvalidInput("log_dict writes JSON", [("path", f"{path!r}: end it with .json")])
        try:
            text = json.dumps(value, indent=2, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise InvalidInput("the document is not JSON", [("value", str(error))]) from error
        self.log_text(text, path)

    def _keep(self, path: str, data: Any) -> None:
        # The path is checked before the bytes travel.
        name = self._names.path(path)
        digest, size = self._workspace.blobs.put(data)
        self._tracking.link_artifact(f"{artifact_root(self.record)}/{name}", digest, size)

    # The end

    def end(self, state: EndState = "finished", *, error: str = "") -> None:
        """End the run with all that is queued; again does nothing.

        In the child of a fork it only stores what the child logged: the run is the parent's.

        Raises:
            BackendError: If the catalog is away; nothing is lost, and `end` may be called again.
            EverloopError: If something could not be stored for good; the run then ends as failed.
        """
        if self._ended:
            return
        self._ended = True
        try:
            self._end(state, error)
        except BackendError:
            self._ended = False  # the end of the program tries it again, too
            raise

    def _end(self, state: EndState, error: str) -> None:
        if self._system is not None:
            self._system.close()
        if self._home != os.getpid():
            self._writer.close()
            return
        try:
            self._writer.close()
        except BackendError:
            raise
        except Exception as fault:  # whatever it was, the run must say it is not complete
            self._end_incomplete(state, f"{error}\nnot everything was stored: {fault}".strip())
            raise
        self._describing.join(timeout=10)
        self.record = self._tracking.end_run(
            self.id, self.record.fence, state, error=error[-_MAX_ERROR:]
        )

    def _end_incomplete(self, state: EndState, error: str) -> None:
        after: EndState = "failed" if state == "finished" else state
        try:
            self._tracking.end_run(self.id, self.record.fence, after, error=error[-_MAX_ERROR:])
        except EverloopError:
            # The same trouble; the caller gets it, and the lease marks the run as lost.
            return

    def __enter__(self) -> ActiveRun:
        self._token = logging_to.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._token is not None:
            logging_to.reset(self._token)
            self._token = None
        state, told = _ending(error)
        try:
            self.end(state, error=told)
        except EverloopError as fault:
            if error is None:
                raise
            # The program's own error goes on; this one is told with it.
            error.add_note(f"and the end of run {self.id} could not be stored: {fault}")


def _ending(error: BaseException | None) -> tuple[EndState, str]:
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return "finished", ""
    if isinstance(error, RunStopped):
        return "killed", error.message
    if isinstance(error, Exception):
        return "failed", "".join(traceback.format_exception(error)).rstrip()
    return "killed", f"{type(error).__name__}: {error}".rstrip(": ")


_open_runs: weakref.WeakSet[ActiveRun] = weakref.WeakSet()


@atexit.register
def _end_open_runs() -> None:
    # A run without `with`: the program's end is its end. An error that nobody caught is left here.
    last = getattr(sys, "last_value", None)
    state, told = _ending(last if isinstance(last, BaseException) else None)
    faults = []
    for open_run in list(_open_runs):
        try:
            open_run.end(state, error=told)
        except EverloopError as fault:
            faults.append(fault)
    if faults:
        # What is raised here is printed without the parts of a group, so the text has them all.
        told = "\n".join(str(fault) for fault in faults)
        raise ExceptionGroup(f"at the end of the program not everything was stored: {told}", faults)
